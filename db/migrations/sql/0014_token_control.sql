-- What is counted of calls whose callers never tell, and ways on for what a budget has stopped before it ran. Statements
-- are separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here too.
--
-- A call that is `released` counts for what its caller last said that it has used at least: its question at first, which
-- is paid for whatever became of the answer, and what was heard since.
ALTER TABLE model_calls
    ADD COLUMN least_in bigint NOT NULL DEFAULT 0,
    ADD COLUMN least_out bigint NOT NULL DEFAULT 0,
    ADD COLUMN least_usd double precision NOT NULL DEFAULT 0,
    DROP CONSTRAINT ck_model_calls_unused,
    ADD CONSTRAINT ck_model_calls_unused
        CHECK (status <> 'reserved' OR (tokens_in = 0 AND tokens_out = 0 AND cost_usd = 0)),
    ADD CONSTRAINT ck_model_calls_least CHECK (least_in >= 0 AND least_out >= 0 AND least_usd >= 0)
----
-- Until when the token controller may grant what it has not written down yet. One row, or none before the first time.
CREATE TABLE granting_ahead (
    is_row boolean PRIMARY KEY DEFAULT true CONSTRAINT ck_granting_ahead_row CHECK (is_row),
    until_at timestamptz NOT NULL
)
----
-- Limits that came to be nearly used up: one row each time, until the limit has been far from it for a minute.
CREATE TABLE limit_alerts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    level text NOT NULL CONSTRAINT ck_limit_alerts_level CHECK (level IN ('user', 'key', 'task')),
    -- The user, the key or the task whose limit it is, and who is to know.
    owner_id uuid NOT NULL,
    user_id uuid NOT NULL,
    limit_name text NOT NULL,
    share double precision NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    over_at timestamptz
)
----
CREATE UNIQUE INDEX uq_limit_alerts_open ON limit_alerts (level, owner_id, limit_name) WHERE over_at IS NULL
----
CREATE INDEX ix_limit_alerts_user_id ON limit_alerts (user_id, at)
----
-- Write down limits that are nearly used up; answers those of whom that was not known yet.
CREATE FUNCTION alert_limits(p_level text[], p_owner uuid[], p_limit text[], p_share double precision[])
RETURNS TABLE (level text, owner_id uuid, limit_name text) LANGUAGE sql AS $$
    INSERT INTO limit_alerts (level, owner_id, user_id, limit_name, share)
    SELECT g.level, g.owner_id, w.user_id, g.limit_name, g.share
    FROM unnest(p_level, p_owner, p_limit, p_share) AS g (level, owner_id, limit_name, share)
    JOIN LATERAL (
        SELECT u.id AS user_id FROM users u WHERE g.level = 'user' AND u.id = g.owner_id
        UNION ALL SELECT k.user_id FROM api_keys k WHERE g.level = 'key' AND k.id = g.owner_id
        UNION ALL SELECT t.user_id FROM tasks t WHERE g.level = 'task' AND t.id = g.owner_id
    ) w ON true
    ON CONFLICT (level, owner_id, limit_name) WHERE over_at IS NULL DO NOTHING
    RETURNING level, owner_id, limit_name
$$
----
DROP FUNCTION reserve_calls(
    uuid[], uuid[], uuid[], uuid[], uuid[], integer[], text[], text[], bigint[], double precision[], double precision[]
)
----
-- Write down calls before they are made, or that they are still under way: their leases are as long as asked for from now
-- on. Answers those that are settled or released already, with their status: they stay as they are. Ids must be different.
-- The commit does not wait for the disk: a controller that is killed loses none, and of what a PostgreSQL that is killed
-- loses (the last moments) settle_calls writes down all the same what was used.
CREATE FUNCTION reserve_calls(
    p_id uuid[], p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_attempt integer[], p_model text[],
    p_purpose text[], p_reserved bigint[], p_reserved_usd double precision[], p_lease_s double precision[],
    p_least_in bigint[], p_least_out bigint[], p_least_usd double precision[]
) RETURNS TABLE (id uuid, status text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    INSERT INTO model_calls AS c (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens,
        reserved_usd, status, expires_at, least_in, least_out, least_usd)
    SELECT g.id, g.user_id, g.key_id, g.task_id, g.sub_task_id, g.attempt, g.model, g.purpose, g.reserved, g.usd,
        'reserved', now() + make_interval(secs => g.lease_s), g.least_in, g.least_out, g.least_usd
    FROM unnest(p_id, p_user, p_key, p_task, p_sub_task, p_attempt, p_model, p_purpose, p_reserved, p_reserved_usd,
        p_lease_s, p_least_in, p_least_out, p_least_usd) AS g (id, user_id, key_id, task_id, sub_task_id, attempt, model,
        purpose, reserved, usd, lease_s, least_in, least_out, least_usd)
    ORDER BY g.id
    ON CONFLICT ON CONSTRAINT model_calls_pkey DO UPDATE SET expires_at = excluded.expires_at,
        least_in = greatest(c.least_in, excluded.least_in), least_out = greatest(c.least_out, excluded.least_out),
        least_usd = greatest(c.least_usd, excluded.least_usd)
        WHERE c.status = 'reserved';
    RETURN QUERY SELECT c.id, c.status FROM model_calls c WHERE c.id = ANY (p_id) AND c.status <> 'reserved';
END $$
----
-- Add up what calls used: for the user, the key, the task and the subtask. With their tasks locked. Nobody else adds up
-- what models used; what tools report is added by complete_attempts. What was counted of a call that was taken for dead,
-- and told less, is taken away again.
CREATE FUNCTION add_up_calls(
    p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_tokens numeric[], p_cost double precision[]
) RETURNS void LANGUAGE sql SET enable_hashjoin = off SET enable_mergejoin = off AS $$
    WITH used AS MATERIALIZED (
        SELECT g.* FROM unnest(p_user, p_key, p_task, p_sub_task, p_tokens, p_cost)
            AS g (user_id, key_id, task_id, sub_task_id, tokens, cost_usd)
        WHERE g.tokens <> 0 OR g.cost_usd <> 0
    ), by_user AS (
        -- In the order of users, as every writer: so none waits for another in a circle.
        INSERT INTO token_totals AS t (user_id, tokens_used, cost_usd)
        SELECT u.user_id, add_tokens(0, sum(u.tokens)), sum(u.cost_usd) FROM used u GROUP BY u.user_id ORDER BY u.user_id
        ON CONFLICT (user_id) DO UPDATE SET tokens_used = add_tokens(t.tokens_used, excluded.tokens_used),
            cost_usd = t.cost_usd + excluded.cost_usd
    ), by_key AS (
        INSERT INTO key_totals AS t (key_id, tokens_used, cost_usd)
        SELECT u.key_id, add_tokens(0, sum(u.tokens)), sum(u.cost_usd) FROM used u
        WHERE u.key_id IS NOT NULL GROUP BY u.key_id ORDER BY u.key_id
        ON CONFLICT (key_id) DO UPDATE SET tokens_used = add_tokens(t.tokens_used, excluded.tokens_used),
            cost_usd = t.cost_usd + excluded.cost_usd
    ), by_task AS (
        UPDATE tasks t SET tokens_used = add_tokens(t.tokens_used, d.tokens), cost_usd = t.cost_usd + d.cost_usd
        FROM (SELECT u.task_id, sum(u.tokens) AS tokens, sum(u.cost_usd) AS cost_usd FROM used u GROUP BY 1) d
        WHERE t.id = d.task_id
    )
    UPDATE sub_tasks s SET tokens_used = add_tokens(s.tokens_used, d.tokens)
    FROM (SELECT u.sub_task_id, sum(u.tokens) AS tokens FROM used u GROUP BY 1) d
    WHERE s.id = d.sub_task_id AND d.tokens <> 0
$$
----
DROP FUNCTION settle_calls(
    uuid[], uuid[], uuid[], uuid[], uuid[], integer[], text[], text[], bigint[], double precision[], bigint[], bigint[],
    double precision[], boolean[]
)
----
-- Write down what calls used, whether their reservations are known or not, and add it up in the same commit. A call that
-- is settled already stays as it is. Answers those that it settled, with what they add to what was counted before: of
-- those that had been taken for dead, something was.
CREATE FUNCTION settle_calls(
    p_id uuid[], p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_attempt integer[], p_model text[],
    p_purpose text[], p_reserved bigint[], p_reserved_usd double precision[], p_in bigint[], p_out bigint[],
    p_cost double precision[], p_is_estimated boolean[]
) RETURNS TABLE (id uuid, tokens numeric, cost_usd double precision) LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v record;
BEGIN
    PERFORM 1 FROM tasks t WHERE t.id = ANY (p_task) ORDER BY t.id FOR NO KEY UPDATE;
    PERFORM 1 FROM model_calls c WHERE c.id = ANY (p_id) ORDER BY c.id FOR NO KEY UPDATE;
    WITH before AS MATERIALIZED (
        SELECT c.id, c.tokens_in::numeric + c.tokens_out AS tokens, c.cost_usd FROM model_calls c
        WHERE c.id = ANY (p_id) AND c.status = 'released'
    ), settled AS (
        INSERT INTO model_calls AS c (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens,
            reserved_usd, tokens_in, tokens_out, cost_usd, is_estimated, status, expires_at, settled_at)
        SELECT g.*, 'settled', now(), now()
        FROM unnest(p_id, p_user, p_key, p_task, p_sub_task, p_attempt, p_model, p_purpose, p_reserved, p_reserved_usd,
            p_in, p_out, p_cost, p_is_estimated) AS g
        ON CONFLICT ON CONSTRAINT model_calls_pkey DO UPDATE SET tokens_in = excluded.tokens_in,
            tokens_out = excluded.tokens_out, cost_usd = excluded.cost_usd, is_estimated = excluded.is_estimated,
            status = 'settled', settled_at = now()
            WHERE c.status <> 'settled'
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
----
-- The calls that their callers have left: whose lease is over (p_expired), whose attempt has ended or is another one by
-- now, or whose task is not being planned any more.
CREATE FUNCTION left_calls(p_expired boolean, p_limit integer) RETURNS TABLE (id uuid, has_expired boolean)
LANGUAGE sql STABLE AS $$
    SELECT c.id, c.expires_at <= now() FROM model_calls c
    WHERE c.status = 'reserved' AND ((p_expired AND c.expires_at <= now()) OR CASE
        WHEN c.sub_task_id IS NOT NULL THEN NOT EXISTS (
            SELECT FROM sub_tasks s WHERE s.id = c.sub_task_id AND s.attempt = c.attempt AND s.incarnation IS NOT NULL)
        WHEN c.task_id IS NOT NULL THEN NOT EXISTS (
            SELECT FROM tasks t WHERE t.id = c.task_id AND t.incarnation IS NOT NULL)
        ELSE false END)
    ORDER BY c.expires_at LIMIT p_limit
$$
----
-- Give back what is reserved for calls that their callers have left, and count what they have used at least. Answers what
-- that is of each.
CREATE FUNCTION release_calls(p_id uuid[])
RETURNS TABLE (id uuid, user_id uuid, tokens numeric, cost_usd double precision)
LANGUAGE plpgsql SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v record;
BEGIN
    PERFORM 1 FROM tasks t WHERE t.id IN (SELECT c.task_id FROM model_calls c WHERE c.id = ANY (p_id))
    ORDER BY t.id FOR NO KEY UPDATE;
    PERFORM 1 FROM model_calls c WHERE c.id = ANY (p_id) ORDER BY c.id FOR NO KEY UPDATE;
    WITH released AS (
        UPDATE model_calls c SET status = 'released', settled_at = now(), tokens_in = c.least_in, tokens_out = c.least_out,
            cost_usd = c.least_usd, is_estimated = true
        WHERE c.id = ANY (p_id) AND c.status = 'reserved'
        RETURNING c.*
    )
    SELECT array_agg(r.id) AS ids, array_agg(r.user_id) AS users, array_agg(r.key_id) AS keys, array_agg(r.task_id) AS tasks,
        array_agg(r.sub_task_id) AS sub_tasks, array_agg(r.tokens_in::numeric + r.tokens_out) AS tokens,
        array_agg(r.cost_usd) AS costs
    INTO v FROM released r;
    PERFORM add_up_calls(v.users, v.keys, v.tasks, v.sub_tasks, v.tokens, v.costs);
    RETURN QUERY SELECT * FROM unnest(v.ids, v.users, v.tokens, v.costs);
END $$
----
-- The growth of a task is refused by its budget: nothing is lost of what it may still grow, and if nothing else is open
-- the task fails, until somebody raises the budget. Nothing where the growth is not this incarnation's any more.
CREATE FUNCTION refuse_growth(p_task uuid, p_incarnation uuid, p_error jsonb) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
BEGIN
    UPDATE tasks t SET growth = NULL, incarnation = NULL, open_count = t.open_count - 1, replans_left = t.replans_left + 1
    WHERE t.id = p_task AND t.growth = 'under_way' AND t.incarnation = p_incarnation
    RETURNING t.open_count, t.user_id INTO v_task;
    IF v_task.open_count = 0 THEN
        UPDATE tasks t SET status = 'FAILED', error = p_error, finished_at = now() WHERE t.id = p_task;
        INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
        VALUES (p_task, 'task', 'PROCESSING', 'FAILED', p_error ->> 'message');
        RETURN QUERY SELECT 'closed', NULL::uuid, p_task, v_task.user_id, NULL::text, NULL::float8, 'FAILED';
    END IF;
END $$
----
-- A task that failed over its plan, or over what its plan was to grow by, is planned again: it has no subtasks yet, or its
-- growth was refused. Not one whose prompt nobody could plan. Answers its status; nothing where there is no such task.
CREATE FUNCTION plan_again(p_task uuid, p_reason text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    v_status text;
BEGIN
    UPDATE tasks t SET error = NULL, finished_at = NULL,
        status = CASE WHEN t.subtask_count = 0 THEN 'PENDING' ELSE 'PROCESSING' END,
        growth = CASE WHEN t.subtask_count > 0 THEN 'due' END,
        open_count = CASE WHEN t.subtask_count > 0 THEN 1 ELSE 0 END,
        replans_left = CASE WHEN t.subtask_count > 0 THEN t.replans_left - 1 ELSE t.replans_left END
    WHERE t.id = p_task AND t.status = 'FAILED' AND may_be_retried(t.status, t.error, t.deadline_at)
        AND ((t.subtask_count = 0 AND t.error ->> 'class' <> 'user')
            OR (t.subtask_count > 0 AND t.replans_left > 0 AND t.error ->> 'code' = 'BUDGET_EXCEEDED'))
    RETURNING t.status INTO v_status;
    IF v_status IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    VALUES (p_task, 'task', 'FAILED', v_status, p_reason);
    RETURN NEXT v_status;
END $$
