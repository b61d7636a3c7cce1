-- Settling and reserving at once never wait for each other in a circle, and it is known whether anything may be granted and
-- not written down. Statements are separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here
-- too.
--
-- There is a row as long as the token controller may have granted what it has not written down, and none otherwise.
ALTER TABLE granting_ahead DROP COLUMN until_at, ADD COLUMN began_at timestamptz NOT NULL DEFAULT now()
----
-- As in 0014_token_control.sql. Calls are locked one by one in the order of their ids, those that nobody has written down yet
-- among them, since that is how reserve_calls takes them: of two who took the known ones first, and then the others, each
-- might wait for the other.
CREATE OR REPLACE FUNCTION settle_calls(
    p_id uuid[], p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_attempt integer[], p_model text[],
    p_purpose text[], p_reserved bigint[], p_reserved_usd double precision[], p_in bigint[], p_out bigint[],
    p_cost double precision[], p_is_estimated boolean[]
) RETURNS TABLE (id uuid, tokens numeric, cost_usd double precision) LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v record;
BEGIN
    PERFORM 1 FROM tasks t WHERE t.id = ANY (p_task) ORDER BY t.id FOR NO KEY UPDATE;
    INSERT INTO model_calls AS c (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens,
        reserved_usd, status, expires_at)
    SELECT g.*, 'reserved', now()
    FROM unnest(p_id, p_user, p_key, p_task, p_sub_task, p_attempt, p_model, p_purpose, p_reserved, p_reserved_usd)
        AS g (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved, usd)
    ORDER BY g.id
    -- What is known is locked, and stays as it is.
    ON CONFLICT ON CONSTRAINT model_calls_pkey DO UPDATE SET status = c.status WHERE false;
    WITH before AS MATERIALIZED (
        SELECT c.id, c.tokens_in::numeric + c.tokens_out AS tokens, c.cost_usd FROM model_calls c
        WHERE c.id = ANY (p_id) AND c.status = 'released'
    ), settled AS (
        UPDATE model_calls c SET tokens_in = g.tokens_in, tokens_out = g.tokens_out, cost_usd = g.cost_usd,
            is_estimated = g.is_estimated, status = 'settled', settled_at = now()
        FROM unnest(p_id, p_in, p_out, p_cost, p_is_estimated) AS g (id, tokens_in, tokens_out, cost_usd, is_estimated)
        WHERE c.id = g.id AND c.status <> 'settled'
        RETURNING c.*
    )
    SELECT array_agg(s.id) AS ids, array_agg(s.user_id) AS users, array_agg(s.key_id) AS keys, array_agg(s.task_id) AS tasks,
        array_agg(s.sub_task_id) AS sub_tasks,
        array_agg(s.tokens_in::numeric + s.tokens_out - coalesce(b.tokens, 0)) AS tokens,
        array_agg(s.cost_usd - coalesce(b.cost_usd, 0)) AS costs
    INTO v FROM settled s LEFT JOIN before b ON b.id = s.id;
    PERFORM add_up_calls(v.users, v.keys, v.tasks, v.sub_tasks, v.tokens, v.costs);
    RETURN QUERY SELECT * FROM unnest(v.ids, v.tokens, v.costs);
END $$
