-- What waits for a group's capacity is over in the transaction that sees to the group's end. Holds that an earlier version
-- left waiting are ended by the first round of the sweeper.
CREATE VIEW audit_nothing_waits_for_an_ended_group AS
SELECT h.hold_id, h.group_id, g.ends_at FROM hold h JOIN resource_group g USING (group_id)
WHERE h.state = 'WAITING' AND g.ended;
