DROP INDEX task_unsettled;
CREATE INDEX task_unsettled ON task (updated_at) WHERE state IN ('PENDING', 'WAITING', 'EVALUATING');
