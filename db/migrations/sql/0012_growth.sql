-- Plans that grow while they run: more subtasks for a task that is PROCESSING, as its plan is still being made, or as
-- what it has come to asks for more. Statements are separated by a line of four dashes. The rules at the head of
-- 0001_functions.sql hold here too.
--
-- A task that grows counts one more in open_count: its plan is open, too, so it can't close before that is settled.
ALTER TABLE tasks
    -- due: somebody has to look what it needs; under_way: the incarnation named does.
    ADD COLUMN growth text CONSTRAINT ck_tasks_growth CHECK (growth IN ('due', 'under_way')),
    -- So many times more it may grow on account of what it has come to.
    ADD COLUMN replans_left smallint NOT NULL DEFAULT 0 CONSTRAINT ck_tasks_replans_left CHECK (replans_left >= 0),
    DROP CONSTRAINT ck_tasks_open_count,
    ADD CONSTRAINT ck_tasks_open_count
        CHECK (open_count BETWEEN (growth IS NOT NULL)::integer AND subtask_count + (growth IS NOT NULL)::integer),
    ADD CONSTRAINT ck_tasks_growing CHECK (growth IS NULL OR status = 'PROCESSING'),
    ADD CONSTRAINT ck_tasks_grower CHECK (growth IS DISTINCT FROM 'under_way' OR incarnation IS NOT NULL)
----
CREATE INDEX ix_tasks_growth ON tasks (priority DESC, created_at) WHERE growth IS NOT NULL
----
-- The plan went around it: it is no part of the result, and keeps no task from being COMPLETED.
ALTER TABLE sub_tasks
    ADD COLUMN superseded boolean NOT NULL DEFAULT false
        CONSTRAINT ck_sub_tasks_superseded CHECK (NOT superseded OR status IN ('BLOCKED', 'SKIPPED'))
----
-- What a COMPLETED task has come to: the output of the only sink, or {sink: output} of several. Its text, encoded as
-- UTF-8, is what a result that is given by reference consists of. Of several sinks that together have more than
-- p_whole_bytes (PostgreSQL builds no JSON document of 256 MiB), each output over 1 KiB is a reference itself. A sink
-- that is missing gives its stand-in; one that is superseded nothing.
CREATE OR REPLACE FUNCTION task_result(p_task uuid, p_whole_bytes bigint DEFAULT 64 * 1024 * 1024) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 1 THEN (array_agg(o.whole))[1] ELSE jsonb_object_agg(o.key, o.output) END
    FROM (
        SELECT s.key, coalesce(s.output_result, s.stand_in) AS whole,
            CASE WHEN s.output_size > 1024 AND sum(s.output_size) OVER () > p_whole_bytes THEN jsonb_build_object(
                '$blob', format('/api/v1/tasks/%s/subtasks/%s/output', p_task, s.key),
                'size', s.output_size, 'sha256', s.output_sha256) ELSE coalesce(s.output_result, s.stand_in) END AS output
        FROM sub_tasks s WHERE s.parent_id = p_task AND s.dependents = '{}' AND NOT s.superseded
    ) o
$$
----
-- Why a task with nothing open should grow; null when it should not. What a rule forbids (a budget, a rejection) no other
-- plan may go around.
CREATE FUNCTION reason_to_grow(p_task uuid, p_joiner text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN bool_or(s.status = 'BLOCKED' AND s.error ->> 'class' = 'refused') THEN NULL
        WHEN count(*) FILTER (WHERE s.status = 'BLOCKED') > 0 THEN 'BLOCKED: '
            || left(string_agg(s.key, ', ' ORDER BY s.execution_order) FILTER (WHERE s.status = 'BLOCKED'), 500)
        WHEN bool_or(s.status = 'COMPLETED') THEN left('needs more: '
            || (array_agg(s.output_result ->> 'more') FILTER (WHERE s.status = 'COMPLETED'))[1], 500)
    END
    FROM sub_tasks s
    WHERE s.parent_id = p_task AND NOT s.superseded
        AND ((s.status = 'BLOCKED' AND s.stand_in IS NULL)
            OR (s.key = p_joiner AND s.status = 'COMPLETED' AND s.output_result ->> 'more' <> ''))
$$
----
-- Close tasks that have nothing open. Called with their rows locked. COMPLETED when nothing is BLOCKED but what is
-- missing or superseded, else FAILED. One that may still grow, and has a reason, is due to do that instead: something is
-- BLOCKED that no rule forbids, or its joiner (plan_meta) has answered that it needs more. Answers ('grows', …) for it.
-- What is in the blob store can't be put together here: such a result is left apart (see result_apart), unless it is
-- just one large output, which has a name already.
-- A result over p_inline_bytes is kept as {"$blob", "size", "sha256"}: the whole is made again for whoever asks for it.
CREATE OR REPLACE FUNCTION close_tasks(p_tasks uuid[], p_inline_bytes bigint) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
    v_sinks record;
    v_result jsonb;
    v_whole bytea;
    v_apart boolean;
    v_error jsonb;
    v_missing text;
    v_reason text;
BEGIN
    FOR v_task IN
        SELECT t.id, t.user_id, t.blocked_count, t.replans_left, t.plan_meta ->> 'joiner' AS joiner FROM tasks t
        WHERE t.id = ANY (p_tasks) AND t.status = 'PROCESSING' AND t.open_count = 0
    LOOP
        v_missing := NULL;
        IF v_task.replans_left > 0 THEN
            v_reason := reason_to_grow(v_task.id, v_task.joiner);
            IF v_reason IS NOT NULL THEN
                UPDATE tasks t SET growth = 'due', open_count = 1, replans_left = t.replans_left - 1 WHERE t.id = v_task.id;
                INSERT INTO task_events (task_id, kind, reason) VALUES (v_task.id, 'plan', v_reason);
                RETURN QUERY SELECT 'grows', NULL::uuid, v_task.id, v_task.user_id, NULL::text, NULL::float8, v_reason;
                CONTINUE;
            END IF;
        END IF;
        IF v_task.blocked_count > 0 AND EXISTS (
            SELECT 1 FROM sub_tasks b WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' AND b.stand_in IS NULL AND NOT b.superseded
        ) THEN
            SELECT jsonb_build_object(
                'code', 'SUBTASKS_BLOCKED', 'class', (array_agg(b.error ->> 'class' ORDER BY b.execution_order))[1],
                'retryable', false,
                'message', format('%s of %s subtasks could not be completed; the first is %s: %s', count(*),
                    (SELECT count(*) FROM sub_tasks a WHERE a.parent_id = v_task.id),
                    (array_agg(b.key ORDER BY b.execution_order))[1],
                    (array_agg(b.error ->> 'message' ORDER BY b.execution_order))[1]))
            INTO v_error FROM sub_tasks b
            WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' AND b.stand_in IS NULL AND NOT b.superseded;
            UPDATE tasks SET status = 'FAILED', error = v_error, finished_at = now() WHERE id = v_task.id;
        ELSE
            -- As long as the text of the result will be: {"key": output, "key": output}. Keys have nothing to escape.
            SELECT count(*) AS n, min(s.key) AS key, bool_and(s.status = 'COMPLETED') AS is_whole,
                bool_or(s.output_blob IS NOT NULL) AS is_apart, min(s.output_sha256) AS sha256,
                CASE WHEN count(*) = 1 THEN sum(z.size) ELSE sum(z.size + length(s.key) + length('"": , ')) END AS size
            INTO v_sinks FROM sub_tasks s
            CROSS JOIN LATERAL (SELECT coalesce(s.output_size, octet_length(s.stand_in::text)) AS size) z
            WHERE s.parent_id = v_task.id AND s.dependents = '{}' AND NOT s.superseded;
            v_apart := v_sinks.is_apart AND (v_sinks.n > 1 OR v_sinks.size <= p_inline_bytes);
            IF v_apart THEN
                v_result := 'null';
            ELSIF v_sinks.is_apart THEN
                v_result := jsonb_build_object(
                    '$blob', format('/api/v1/tasks/%s/subtasks/%s/output', v_task.id, v_sinks.key),
                    'size', v_sinks.size, 'sha256', v_sinks.sha256);
            ELSE
                v_result := task_result(v_task.id);
            END IF;
            IF v_sinks.size > p_inline_bytes AND NOT v_sinks.is_apart THEN
                v_whole := convert_to(v_result::text, 'UTF8');
                v_result := jsonb_build_object('$blob', CASE WHEN v_sinks.n = 1 AND v_sinks.is_whole
                    THEN format('/api/v1/tasks/%s/subtasks/%s/output', v_task.id, v_sinks.key)
                    ELSE format('/api/v1/tasks/%s/result', v_task.id) END,
                    'size', length(v_whole), 'sha256', encode(sha256(v_whole), 'hex'));
            END IF;
            UPDATE tasks SET status = 'COMPLETED', result = v_result, result_apart = v_apart, finished_at = now() WHERE id = v_task.id;
            IF v_task.blocked_count > 0 THEN
                SELECT 'missing: ' || string_agg(m.key, ', ' ORDER BY m.execution_order)
                    || CASE WHEN max(m.n) > 10 THEN format(' and %s more', max(m.n) - 10) ELSE '' END
                INTO v_missing FROM (
                    SELECT b.key, b.execution_order, count(*) OVER () AS n FROM sub_tasks b
                    WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' AND b.stand_in IS NOT NULL
                    ORDER BY b.execution_order LIMIT 10
                ) m;
            END IF;
        END IF;
        INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
        SELECT t.id, 'task', 'PROCESSING', t.status, coalesce(t.error ->> 'message', v_missing) FROM tasks t WHERE t.id = v_task.id;
        RETURN QUERY SELECT 'closed', NULL::uuid, t.id, t.user_id, NULL::text, NULL::float8, t.status
            FROM tasks t WHERE t.id = v_task.id;
    END LOOP;
END $$
----
-- End a task from outside: cancelled by its user, or failed by its deadline or its splitting. Everything that is not
-- settled becomes CANCELLED. Answers ('refused', …, status) when it is too late, else ('stopped', id, …, attempt) for
-- each subtask whose lease a scheduler holds, and ('closed', …, status) last.
CREATE OR REPLACE FUNCTION end_task(p_task uuid, p_status text, p_error jsonb, p_reason text) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task tasks%ROWTYPE;
BEGIN
    SELECT * INTO v_task FROM tasks t WHERE t.id = p_task FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_task.status IN ('COMPLETED', 'FAILED', 'CANCELLED') THEN
        RETURN QUERY SELECT 'refused', NULL::uuid, v_task.id, v_task.user_id, NULL::text, NULL::float8, v_task.status;
        RETURN;
    END IF;
    RETURN QUERY
    WITH before AS MATERIALIZED (
        SELECT s.id, s.status, s.incarnation FROM sub_tasks s
        WHERE s.parent_id = p_task AND s.status IN ('PENDING', 'READY', 'AWAITING_APPROVAL', 'QUEUED', 'RUNNING', 'FAILED')
        FOR NO KEY UPDATE
    ), ended AS (
        UPDATE sub_tasks s SET status = 'CANCELLED', phase = NULL, incarnation = NULL, not_before = NULL, finished_at = now()
        FROM before b WHERE s.id = b.id
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.attempt, s.shape, s.score, b.status AS was, b.incarnation AS held_by
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, was, 'CANCELLED', nullif(attempt, 0), p_reason FROM ended
    )
    SELECT 'stopped', e.id, e.parent_id, e.user_id, e.shape, e.score, e.attempt::text FROM ended e WHERE e.held_by IS NOT NULL;
    UPDATE tasks t SET status = p_status, error = p_error, open_count = 0, incarnation = NULL, growth = NULL, held_at = NULL,
        finished_at = now()
    WHERE t.id = p_task;
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    VALUES (p_task, 'task', v_task.status, p_status, p_reason);
    RETURN QUERY SELECT 'closed', NULL::uuid, v_task.id, v_task.user_id, NULL::text, NULL::float8, p_status;
END $$
----
-- Take tasks that grow: those that are due, and those whose grower died. p_busy: what this incarnation sees to already.
CREATE FUNCTION claim_growths(p_limit integer, p_incarnation uuid, p_dead uuid[], p_busy uuid[])
RETURNS SETOF tasks LANGUAGE sql AS $$
    WITH taken AS (
        SELECT t.id FROM tasks t
        WHERE t.growth IS NOT NULL AND t.id <> ALL (p_busy)
            AND (t.growth = 'due' OR t.incarnation = ANY (p_dead) OR t.incarnation = p_incarnation)
        ORDER BY t.priority DESC, t.created_at LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE tasks t SET growth = 'under_way', incarnation = p_incarnation FROM taken k WHERE t.id = k.id RETURNING t.*
$$
----
-- The growth of a task has come to its end: nothing more is added to its plan by this incarnation, and it closes if
-- nothing else is open. p_spent: nor by any other. Nothing where it is not this incarnation's any more.
CREATE FUNCTION end_growth(p_task uuid, p_incarnation uuid, p_spent boolean, p_inline_bytes bigint) RETURNS SETOF change
LANGUAGE plpgsql AS $$
DECLARE
    v_open integer;
BEGIN
    UPDATE tasks t SET growth = NULL, incarnation = NULL, open_count = t.open_count - 1,
        replans_left = CASE WHEN p_spent THEN 0 ELSE t.replans_left END
    WHERE t.id = p_task AND t.growth = 'under_way' AND t.incarnation = p_incarnation
    RETURNING t.open_count INTO v_open;
    IF v_open = 0 THEN
        RETURN QUERY SELECT * FROM close_tasks(ARRAY[p_task], p_inline_bytes);
    END IF;
END $$