-- The trace of the call that asked for the present start.
CREATE TABLE deployment_trace (
    deployment_id uuid PRIMARY KEY REFERENCES deployment,
    traceparent   text NOT NULL
);
