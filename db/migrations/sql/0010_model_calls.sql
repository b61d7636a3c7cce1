-- The ledger of the calls of models, and what they come to. Statements are separated by a line of four dashes. The rules
-- of writers stand at the head of 0001_functions.sql. The token controller alone writes here.
--
-- A call is `reserved` before it is made, with what it may use at most, and `settled` with what it used. One whose caller
-- is silent until expires_at is `released`: as far as anybody knows it used nothing. Should the caller tell yet, it is
-- settled all the same. No references to other tables: what was used is used, whatever is deleted later, and one row that
-- refers to nothing must not keep the others of its batch from being written.
CREATE TABLE model_calls (
    -- Made by the caller, so that whoever says the same twice says it once.
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    key_id uuid,
    task_id uuid,
    -- null: for the task as a whole, its planning.
    sub_task_id uuid,
    attempt integer NOT NULL DEFAULT 0,
    model text NOT NULL,
    purpose text NOT NULL,
    reserved_tokens bigint NOT NULL,
    reserved_usd double precision NOT NULL,
    tokens_in bigint NOT NULL DEFAULT 0,
    tokens_out bigint NOT NULL DEFAULT 0,
    cost_usd double precision NOT NULL DEFAULT 0,
    is_estimated boolean NOT NULL DEFAULT false,
    status text NOT NULL CONSTRAINT ck_model_calls_status CHECK (status IN ('reserved', 'settled', 'released')),
    reserved_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    -- When it was settled or released.
    settled_at timestamptz,
    CONSTRAINT ck_model_calls_settled CHECK ((status = 'reserved') = (settled_at IS NULL)),
    CONSTRAINT ck_model_calls_reserved CHECK (reserved_tokens >= 0 AND reserved_usd >= 0),
    CONSTRAINT ck_model_calls_used CHECK (tokens_in >= 0 AND tokens_out >= 0 AND cost_usd >= 0),
    CONSTRAINT ck_model_calls_unused CHECK (status = 'settled' OR (tokens_in = 0 AND tokens_out = 0 AND cost_usd = 0)),
    CONSTRAINT ck_model_calls_payer CHECK (sub_task_id IS NULL OR task_id IS NOT NULL)
)
----
CREATE INDEX ix_model_calls_user_id ON model_calls (user_id, reserved_at)
----
CREATE INDEX ix_model_calls_sub_task_id ON model_calls (sub_task_id, attempt) WHERE sub_task_id IS NOT NULL
----
CREATE INDEX ix_model_calls_open ON model_calls (expires_at) WHERE status = 'reserved'
----
CREATE INDEX ix_model_calls_settled_at ON model_calls (settled_at) WHERE settled_at IS NOT NULL
----
ALTER TABLE token_totals ADD COLUMN cost_usd double precision NOT NULL DEFAULT 0
----
CREATE TABLE key_totals (
    key_id uuid PRIMARY KEY,
    tokens_used bigint NOT NULL DEFAULT 0,
    cost_usd double precision NOT NULL DEFAULT 0
)
----
CREATE TABLE key_quotas (
    key_id uuid PRIMARY KEY REFERENCES api_keys (id),
    max_tokens bigint,
    max_cost_usd double precision,
    tokens_per_min bigint,
    requests_per_min integer,
    max_concurrent integer,
    updated_at timestamptz NOT NULL DEFAULT now()
)
----
-- A sum that stays where it is rather than overflow.
CREATE FUNCTION add_tokens(p_tokens bigint, p_more numeric) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT least(p_tokens::numeric + p_more, 9223372036854775807)::bigint
$$
----
-- Write down calls before they are made. Those whose ids are known stay as they are: they are answered, with their status.
-- The commit does not wait for the disk: a controller that is killed loses none, and of what a PostgreSQL that is killed
-- loses (the last moments) settle_calls writes down all the same what was used.
CREATE FUNCTION reserve_calls(
    p_id uuid[], p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_attempt integer[], p_model text[],
    p_purpose text[], p_reserved bigint[], p_reserved_usd double precision[], p_lease_s double precision[]
) RETURNS TABLE (id uuid, status text) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    RETURN QUERY
    WITH added AS (
        INSERT INTO model_calls (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens,
            reserved_usd, status, expires_at)
        SELECT g.id, g.user_id, g.key_id, g.task_id, g.sub_task_id, g.attempt, g.model, g.purpose, g.reserved, g.usd,
            'reserved', now() + make_interval(secs => g.lease_s)
        FROM unnest(p_id, p_user, p_key, p_task, p_sub_task, p_attempt, p_model, p_purpose, p_reserved, p_reserved_usd,
            p_lease_s) AS g (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved, usd, lease_s)
        ON CONFLICT DO NOTHING RETURNING model_calls.id
    )
    SELECT c.id, c.status FROM model_calls c WHERE c.id = ANY (p_id) AND c.id NOT IN (SELECT a.id FROM added a);
END $$
----
-- Write down what calls used, whether their reservations are known or not, and add it up: for the user, the key, the task
-- and the subtask, in the same commit. A call that is settled already stays as it is. Answers those that it settled.
-- Nobody else adds up what models used; what tools report is added by complete_attempts.
CREATE FUNCTION settle_calls(
    p_id uuid[], p_user uuid[], p_key uuid[], p_task uuid[], p_sub_task uuid[], p_attempt integer[], p_model text[],
    p_purpose text[], p_reserved bigint[], p_reserved_usd double precision[], p_in bigint[], p_out bigint[],
    p_cost double precision[], p_is_estimated boolean[]
) RETURNS SETOF uuid LANGUAGE plpgsql SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    PERFORM 1 FROM tasks t WHERE t.id = ANY (p_task) ORDER BY t.id FOR NO KEY UPDATE;
    RETURN QUERY
    WITH settled AS (
        INSERT INTO model_calls AS c (id, user_id, key_id, task_id, sub_task_id, attempt, model, purpose, reserved_tokens,
            reserved_usd, tokens_in, tokens_out, cost_usd, is_estimated, status, expires_at, settled_at)
        SELECT g.*, 'settled', now(), now()
        FROM unnest(p_id, p_user, p_key, p_task, p_sub_task, p_attempt, p_model, p_purpose, p_reserved, p_reserved_usd,
            p_in, p_out, p_cost, p_is_estimated) AS g
        ON CONFLICT (id) DO UPDATE SET tokens_in = excluded.tokens_in, tokens_out = excluded.tokens_out,
            cost_usd = excluded.cost_usd, is_estimated = excluded.is_estimated, status = 'settled', settled_at = now()
            WHERE c.status <> 'settled'
        RETURNING c.id, c.user_id, c.key_id, c.task_id, c.sub_task_id, c.tokens_in::numeric + c.tokens_out AS tokens,
            c.cost_usd
    ), by_user AS (
        -- In the order of users, as every writer: so none waits for another in a circle.
        INSERT INTO token_totals AS t (user_id, tokens_used, cost_usd)
        SELECT s.user_id, add_tokens(0, sum(s.tokens)), sum(s.cost_usd) FROM settled s
        WHERE s.tokens > 0 OR s.cost_usd > 0 GROUP BY s.user_id ORDER BY s.user_id
        ON CONFLICT (user_id) DO UPDATE SET tokens_used = add_tokens(t.tokens_used, excluded.tokens_used),
            cost_usd = t.cost_usd + excluded.cost_usd
    ), by_key AS (
        INSERT INTO key_totals AS t (key_id, tokens_used, cost_usd)
        SELECT s.key_id, add_tokens(0, sum(s.tokens)), sum(s.cost_usd) FROM settled s
        WHERE s.key_id IS NOT NULL AND (s.tokens > 0 OR s.cost_usd > 0) GROUP BY s.key_id ORDER BY s.key_id
        ON CONFLICT (key_id) DO UPDATE SET tokens_used = add_tokens(t.tokens_used, excluded.tokens_used),
            cost_usd = t.cost_usd + excluded.cost_usd
    ), by_task AS (
        UPDATE tasks t SET tokens_used = add_tokens(t.tokens_used, d.tokens), cost_usd = t.cost_usd + d.cost_usd
        FROM (SELECT s.task_id, sum(s.tokens) AS tokens, sum(s.cost_usd) AS cost_usd FROM settled s GROUP BY 1) d
        WHERE t.id = d.task_id
    ), by_sub_task AS (
        UPDATE sub_tasks u SET tokens_used = add_tokens(u.tokens_used, d.tokens)
        FROM (SELECT s.sub_task_id, sum(s.tokens) AS tokens FROM settled s GROUP BY 1) d
        WHERE u.id = d.sub_task_id AND d.tokens > 0
    )
    SELECT s.id FROM settled s;
END $$
