-- Circuit breakers that are not closed: what the registry must still know after a restart. A breaker that closes loses
-- its row. The registry alone reads and writes here; it counts in memory.
CREATE TABLE breakers (
    -- The name of the tool, or of the MCP server.
    key text PRIMARY KEY,
    -- null: open until somebody closes it by hand.
    retry_at timestamptz,
    openings integer NOT NULL CONSTRAINT ck_breakers_openings CHECK (openings >= 0),
    opened_at timestamptz NOT NULL DEFAULT now()
)
----
-- Give FAILED subtasks that wait for a retry another resource shape: their attempts ran out of memory.
CREATE FUNCTION reshape_failed(p_ids uuid[], p_attempt integer[], p_shape text[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_count integer;
BEGIN
    PERFORM lock_tasks_of(p_ids);
    UPDATE sub_tasks s SET shape = o.shape
    FROM unnest(p_ids, p_attempt, p_shape) AS o (id, attempt, shape)
    WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'FAILED';
    GET DIAGNOSTICS v_count = ROW_COUNT;
    RETURN v_count;
END $$
