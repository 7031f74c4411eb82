-- Prepaid work serves without being charged.
ALTER TABLE deployment DROP CONSTRAINT deployment_check1,
    ADD CONSTRAINT deployment_charged_while_active CHECK (charge_status <> 'BILLING' OR state = 'ACTIVE');
