-- Restarts and stops by their request ids: a retry acts no more, however late it comes.
CREATE TABLE task_change (
    task_id    uuid NOT NULL REFERENCES task,
    request_id uuid NOT NULL,
    action     text NOT NULL CHECK (action IN ('RESTARTED', 'STOPPED')),
    PRIMARY KEY (task_id, request_id)
);
INSERT INTO task_change (task_id, request_id, action)
SELECT task_id, restart_request_id, 'RESTARTED' FROM task WHERE restart_request_id IS NOT NULL;
