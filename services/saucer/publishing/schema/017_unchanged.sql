-- Calls that found nothing to change, so that their retries change nothing either; no record shows them.
CREATE TABLE unchanged_request (
    deployment_id uuid NOT NULL REFERENCES deployment,
    request_id    uuid NOT NULL,
    action        text NOT NULL,
    created_at    timestamptz NOT NULL,
    PRIMARY KEY (deployment_id, request_id)
);
CREATE INDEX unchanged_request_age ON unchanged_request (created_at);
