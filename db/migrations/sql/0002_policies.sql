-- What follows a failure (block, continue, default, fallback), approval, and whose result may be kept: columns, and the
-- functions that know them.
-- Statements are separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here too.
--
-- A subtask is done when it is COMPLETED, and also when it is BLOCKED and has a stand-in: then its dependents were freed,
-- and it is called missing. Nothing takes it out of BLOCKED again: they have run without it.
ALTER TABLE sub_tasks
    ADD COLUMN on_failure text NOT NULL DEFAULT 'block'
        CONSTRAINT ck_sub_tasks_on_failure CHECK (on_failure IN ('block', 'continue', 'default', 'fallback')),
    -- What dependents and the result are given in place of the output of a missing subtask: a JSON null, or its default.
    ADD COLUMN stand_in jsonb,
    ADD COLUMN fallback_tool text,
    ADD COLUMN fallback_input jsonb,
    -- As referred, for fallback_input.
    ADD COLUMN fallback_referred text[] NOT NULL DEFAULT '{}',
    -- Whether its next attempts, or the current one, run the fallback; and the numbers of all that ever did.
    ADD COLUMN on_fallback boolean NOT NULL DEFAULT false,
    ADD COLUMN fallback_attempts integer[] NOT NULL DEFAULT '{}',
    ADD COLUMN require_approval boolean NOT NULL DEFAULT false,
    -- Whether the result of an equal call will do for it.
    ADD COLUMN cacheable boolean NOT NULL DEFAULT false,
    -- Since when it waits, or waited, for approval.
    ADD COLUMN held_at timestamptz,
    ADD CONSTRAINT ck_sub_tasks_stand_in CHECK ((stand_in IS NOT NULL) = (on_failure IN ('continue', 'default'))),
    ADD CONSTRAINT ck_sub_tasks_fallback CHECK ((on_failure = 'fallback') = (fallback_tool IS NOT NULL)
        AND (fallback_tool IS NULL) = (fallback_input IS NULL) AND NOT (on_fallback AND fallback_tool IS NULL)),
    ADD CONSTRAINT ck_sub_tasks_held CHECK (status <> 'AWAITING_APPROVAL' OR held_at IS NOT NULL)
----
CREATE INDEX ix_sub_tasks_held ON sub_tasks (held_at) WHERE status = 'AWAITING_APPROVAL'
----
-- Since when the plan waits for approval, while the task is READY.
ALTER TABLE tasks
    ADD COLUMN held_at timestamptz,
    ADD CONSTRAINT ck_tasks_held CHECK (held_at IS NULL OR status = 'READY')
----
CREATE INDEX ix_tasks_held ON tasks (held_at) WHERE held_at IS NOT NULL
----
CREATE FUNCTION leave_fallback() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.on_fallback := false;
    RETURN NEW;
END $$
----
-- A dead letter that is retried begins with its own tool again.
CREATE TRIGGER sub_tasks_leave_fallback BEFORE UPDATE OF status ON sub_tasks FOR EACH ROW
    WHEN (OLD.status = 'BLOCKED' AND NEW.status = 'QUEUED' AND OLD.on_fallback) EXECUTE FUNCTION leave_fallback()
----
-- What a COMPLETED task has come to: the output of the only sink, or {sink: output} of several. Its text, encoded as
-- UTF-8, is what a result that is given by reference consists of. Of several sinks that together have more than
-- p_whole_bytes (PostgreSQL builds no JSON document of 256 MiB), each output over 1 KiB is a reference itself. A sink
-- that is missing gives its stand-in.
CREATE OR REPLACE FUNCTION task_result(p_task uuid, p_whole_bytes bigint DEFAULT 64 * 1024 * 1024) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 1 THEN (array_agg(o.whole))[1] ELSE jsonb_object_agg(o.key, o.output) END
    FROM (
        SELECT s.key, coalesce(s.output_result, s.stand_in) AS whole,
            CASE WHEN s.output_size > 1024 AND sum(s.output_size) OVER () > p_whole_bytes THEN jsonb_build_object(
                '$blob', format('/api/v1/tasks/%s/subtasks/%s/output', p_task, s.key),
                'size', s.output_size, 'sha256', s.output_sha256) ELSE coalesce(s.output_result, s.stand_in) END AS output
        FROM sub_tasks s WHERE s.parent_id = p_task AND s.dependents = '{}'
    ) o
$$
----
-- Close tasks that have nothing open. Called with their rows locked. COMPLETED when nothing is BLOCKED but what is
-- missing, else FAILED.
-- A result over p_inline_bytes is kept as {"$blob", "size", "sha256"}: the whole is made again for whoever asks for it.
CREATE OR REPLACE FUNCTION close_tasks(p_tasks uuid[], p_inline_bytes bigint) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
    v_sinks record;
    v_result jsonb;
    v_whole bytea;
    v_error jsonb;
    v_missing text;
BEGIN
    FOR v_task IN
        SELECT t.id, t.user_id, t.blocked_count FROM tasks t
        WHERE t.id = ANY (p_tasks) AND t.status = 'PROCESSING' AND t.open_count = 0
    LOOP
        v_missing := NULL;
        IF v_task.blocked_count > 0 AND EXISTS (
            SELECT 1 FROM sub_tasks b WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' AND b.stand_in IS NULL
        ) THEN
            SELECT jsonb_build_object(
                'code', 'SUBTASKS_BLOCKED', 'class', (array_agg(b.error ->> 'class' ORDER BY b.execution_order))[1],
                'retryable', false,
                'message', format('%s of %s subtasks could not be completed; the first is %s: %s', count(*),
                    (SELECT count(*) FROM sub_tasks a WHERE a.parent_id = v_task.id),
                    (array_agg(b.key ORDER BY b.execution_order))[1],
                    (array_agg(b.error ->> 'message' ORDER BY b.execution_order))[1]))
            INTO v_error FROM sub_tasks b
            WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' AND b.stand_in IS NULL;
            UPDATE tasks SET status = 'FAILED', error = v_error, finished_at = now() WHERE id = v_task.id;
        ELSE
            -- As long as the text of the result will be: {"key": output, "key": output}. Keys have nothing to escape.
            SELECT count(*) AS n, min(s.key) AS key, bool_and(s.status = 'COMPLETED') AS is_whole,
                CASE WHEN count(*) = 1 THEN sum(z.size) ELSE sum(z.size + length(s.key) + length('"": , ')) END AS size
            INTO v_sinks FROM sub_tasks s
            CROSS JOIN LATERAL (SELECT coalesce(s.output_size, octet_length(s.stand_in::text)) AS size) z
            WHERE s.parent_id = v_task.id AND s.dependents = '{}';
            v_result := task_result(v_task.id);
            IF v_sinks.size > p_inline_bytes THEN
                v_whole := convert_to(v_result::text, 'UTF8');
                v_result := jsonb_build_object('$blob', CASE WHEN v_sinks.n = 1 AND v_sinks.is_whole
                    THEN format('/api/v1/tasks/%s/subtasks/%s/output', v_task.id, v_sinks.key)
                    ELSE format('/api/v1/tasks/%s/result', v_task.id) END,
                    'size', length(v_whole), 'sha256', encode(sha256(v_whole), 'hex'));
            END IF;
            UPDATE tasks SET status = 'COMPLETED', result = v_result, finished_at = now() WHERE id = v_task.id;
            IF v_task.blocked_count > 0 THEN
                SELECT 'missing: ' || string_agg(m.key, ', ' ORDER BY m.execution_order)
                    || CASE WHEN v_task.blocked_count > 10 THEN format(' and %s more', v_task.blocked_count - 10) ELSE '' END
                INTO v_missing FROM (
                    SELECT b.key, b.execution_order FROM sub_tasks b
                    WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED' ORDER BY b.execution_order LIMIT 10
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
-- It answers one column more, which no replacement may.
DROP FUNCTION claim_subtasks(uuid[], boolean[], uuid, bigint)
----
-- Take the leases of queued subtasks: attempt + 1. Those marked as running become RUNNING at once; the others are
-- handed to Ray as demand and become RUNNING when a worker begins them (begin_attempt). In their order, until their
-- inputs have p_chars characters or more; with null for p_chars all of them, without their inputs. What is on its
-- fallback is claimed with the tool and the input of that.
CREATE FUNCTION claim_subtasks(p_ids uuid[], p_running boolean[], p_incarnation uuid, p_chars bigint)
RETURNS TABLE (
    id uuid, task_id uuid, user_id uuid, key text, tool text, task_type text, attempt integer, retry_count integer,
    max_retries integer, timeout_s double precision, input text, referred text[], shape text,
    score double precision, running boolean, cacheable boolean
) LANGUAGE plpgsql AS $$
BEGIN
    -- A life that somebody has ended, and that hasn't heard of it yet, must take nothing more.
    IF NOT EXISTS (SELECT FROM schedulers h WHERE h.incarnation = p_incarnation AND h.ended_at IS NULL) THEN
        RETURN;
    END IF;
    PERFORM lock_tasks_of(p_ids);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT a.*, CASE WHEN p_chars IS NULL THEN '{}' WHEN s.on_fallback THEN s.fallback_input::text
            ELSE s.input_context::text END AS input
        FROM unnest(p_ids, p_running) WITH ORDINALITY AS a (id, running, place)
        JOIN sub_tasks s ON s.id = a.id AND s.status = 'QUEUED' AND s.incarnation IS NULL
    ), measured AS (
        SELECT a.*, sum(length(a.input)) OVER (ORDER BY a.place) - length(a.input) AS chars_before FROM asked a
    ), claimed AS (
        UPDATE sub_tasks s SET
            status = CASE WHEN a.running THEN 'RUNNING' ELSE s.status END,
            phase = CASE WHEN a.running THEN 'PREPARE_ENV' END,
            started_at = CASE WHEN a.running THEN now() ELSE s.started_at END,
            attempt = s.attempt + 1, incarnation = p_incarnation, worker_id = NULL,
            fallback_attempts = CASE WHEN s.on_fallback THEN s.fallback_attempts || (s.attempt + 1)
                ELSE s.fallback_attempts END
        FROM measured a
        WHERE s.id = a.id AND s.status = 'QUEUED' AND s.incarnation IS NULL AND (p_chars IS NULL OR a.chars_before < p_chars)
        RETURNING s.*, a.running AS is_running, a.input AS input_text
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, phase, attempt)
        SELECT c.parent_id, 'subtask', c.key, 'QUEUED', 'RUNNING', 'PREPARE_ENV', c.attempt FROM claimed c WHERE c.is_running
    )
    SELECT c.id, c.parent_id, c.user_id, c.key, CASE WHEN c.on_fallback THEN c.fallback_tool ELSE c.tool END, c.task_type,
        c.attempt, c.retry_count, c.max_retries, c.timeout_s, c.input_text,
        CASE WHEN c.on_fallback THEN c.fallback_referred ELSE c.referred END, c.shape, c.score, c.is_running, c.cacheable
    FROM claimed c;
END $$
----
DROP FUNCTION complete_attempts(uuid[], integer[], text[], text[], text[], double precision[], boolean[],
    double precision[], double precision[], bigint[], text[], text[], text[], text[], text[], text[], text[], bigint)
----
DROP FUNCTION block_subtasks(uuid[])
----
-- What follows for those that wait for subtasks that have just become BLOCKED. Below one without a stand-in all is
-- SKIPPED. One with a stand-in is done: its dependents are freed, and their logs say what they go without. Only by
-- index: the planner can't know how little a turn finds, and would read the whole table in each.
CREATE FUNCTION follow_blocked(p_ids uuid[]) RETURNS SETOF change LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_turn uuid[];
BEGIN
    -- What waits is walked once, however many of a task were blocked together: those take turns, one of each task at a
    -- time, and a turn goes no further than what earlier ones left READY (below anything that is SKIPPED, all is).
    FOR v_turn IN
        SELECT array_agg(r.id) FROM (
            SELECT s.id, row_number() OVER (PARTITION BY s.parent_id ORDER BY s.execution_order) AS turn
            FROM sub_tasks s WHERE s.id = ANY (p_ids) AND s.dependents <> '{}' AND s.stand_in IS NULL
        ) r GROUP BY r.turn ORDER BY r.turn
    LOOP
        WITH RECURSIVE below (id, cause) AS (
            SELECT d.id, s.key FROM sub_tasks s, unnest(s.dependents) AS d (id) WHERE s.id = ANY (v_turn)
            UNION
            SELECT d.id, b.cause FROM below b JOIN sub_tasks s ON s.id = b.id AND s.status = 'READY',
                unnest(s.dependents) AS d (id)
        ), skipped AS (
            UPDATE sub_tasks s SET status = 'SKIPPED', finished_at = now() FROM below b
            WHERE s.id = b.id AND s.status = 'READY'
            RETURNING s.parent_id, s.key, b.cause
        ), told AS (
            INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
            SELECT parent_id, 'subtask', key, 'READY', 'SKIPPED', 'the dependency ' || cause || ' is BLOCKED' FROM skipped
        )
        UPDATE tasks t SET open_count = t.open_count - k.n
        FROM (SELECT parent_id, count(*) AS n FROM skipped GROUP BY parent_id) k WHERE t.id = k.parent_id;
    END LOOP;

    IF NOT EXISTS (SELECT 1 FROM sub_tasks s WHERE s.id = ANY (p_ids) AND s.stand_in IS NOT NULL AND s.dependents <> '{}') THEN
        RETURN;
    END IF;
    RETURN QUERY
    WITH counted AS (
        SELECT d.id, count(*) AS n, string_agg(s.key || CASE s.on_failure WHEN 'default' THEN ' (its default stands in)'
            ELSE ' (null stands in)' END, ', ' ORDER BY s.execution_order) AS missing
        FROM sub_tasks s, unnest(s.dependents) AS d (id)
        WHERE s.id = ANY (p_ids) AND s.stand_in IS NOT NULL GROUP BY d.id
    ), waiting AS (
        UPDATE sub_tasks s SET
            pending_dependencies = s.pending_dependencies - c.n,
            status = CASE WHEN s.pending_dependencies > c.n THEN s.status
                WHEN s.require_approval THEN 'AWAITING_APPROVAL' ELSE 'QUEUED' END,
            queued_at = CASE WHEN s.pending_dependencies = c.n AND NOT s.require_approval THEN now() END,
            held_at = CASE WHEN s.pending_dependencies = c.n AND s.require_approval THEN now() END
        FROM counted c
        WHERE s.id = c.id AND s.status = 'READY'
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.status, s.shape, s.score, c.missing
    ), noted AS (
        INSERT INTO log_lines (task_id, subtask, stream, level, message)
        SELECT w.parent_id, w.key, 'system', 'WARNING', 'goes on without ' || w.missing FROM waiting w
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
        SELECT w.parent_id, k.kind, w.key, 'READY', w.status, CASE k.kind WHEN 'approval' THEN 'asked' END
        FROM waiting w JOIN (VALUES ('subtask'), ('approval')) AS k (kind)
            ON k.kind = 'subtask' OR w.status = 'AWAITING_APPROVAL'
        WHERE w.status <> 'READY'
        ORDER BY k.kind DESC
    )
    SELECT 'queued', w.id, w.parent_id, w.user_id, w.shape, w.score, NULL::text FROM waiting w WHERE w.status = 'QUEUED';
END $$
----
-- FAILED subtasks for which no attempt is left become BLOCKED, with all that follows: see follow_blocked.
CREATE FUNCTION block_subtasks(p_ids uuid[]) RETURNS SETOF change LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_blocked uuid[];
BEGIN
    WITH blocked AS (
        UPDATE sub_tasks s SET status = 'BLOCKED', not_before = NULL, finished_at = now()
        WHERE s.id = ANY (p_ids) AND s.status = 'FAILED'
        RETURNING s.id, s.parent_id, s.key, s.attempt, s.error
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, 'FAILED', 'BLOCKED', attempt, error ->> 'code' FROM blocked
    ), counted AS (
        UPDATE tasks t SET open_count = t.open_count - b.n, blocked_count = t.blocked_count + b.n
        FROM (SELECT parent_id, count(*) AS n FROM blocked GROUP BY parent_id) b WHERE t.id = b.parent_id
    )
    SELECT array_agg(id) INTO v_blocked FROM blocked;
    IF v_blocked IS NOT NULL THEN
        RETURN QUERY SELECT * FROM follow_blocked(v_blocked);
    END IF;
END $$
----
-- FAILED subtasks that have a fallback which has not been tried are queued again to run that, with retries of its own.
CREATE FUNCTION use_fallbacks(p_ids uuid[]) RETURNS SETOF change LANGUAGE sql AS $$
    WITH turned AS (
        UPDATE sub_tasks s SET status = 'QUEUED', on_fallback = true, retry_count = 0, not_before = NULL, queued_at = now()
        WHERE s.id = ANY (p_ids) AND s.status = 'FAILED' AND s.on_failure = 'fallback' AND NOT s.on_fallback
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.shape, s.score, s.attempt
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, 'FAILED', 'QUEUED', attempt, 'fallback' FROM turned
    )
    SELECT 'queued', t.id, t.parent_id, t.user_id, t.shape, t.score, NULL::text FROM turned t
$$
----
-- Record how attempts ended, in one commit: results, one log row each, events, dependents' counters, what became
-- free, what must be skipped, what closed. p_retry_in_s: null for a failure that is spent. p_spends: whether a failure
-- counts against max_retries. An outcome whose attempt is no longer current changes nothing but the log of a
-- cancelled attempt. p_use_fallback: whether a failure turns to the fallback at once, though retries may be left; one that
-- has none, or is on it, goes by p_retry_in_s. Answers ('accepted' | 'queued' | 'closed' | 'retry', …).
CREATE FUNCTION complete_attempts(
    p_id uuid[], p_attempt integer[], p_verdict text[], p_output text[], p_error text[],
    p_retry_in_s double precision[], p_spends boolean[], p_started double precision[], p_finished double precision[],
    p_tokens bigint[], p_stdout text[], p_stderr text[], p_log text[], p_spans text[], p_worker text[], p_node text[],
    p_ray_task text[], p_inline_bytes bigint, p_use_fallback boolean[] DEFAULT NULL
) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_spent uuid[];
    v_turning uuid[];
    v_closing uuid[];
BEGIN
    PERFORM lock_tasks_of(p_id);
    -- Attempts that were handed over as demand and ended before anybody told that they began. Only one that is LOST may
    -- never have begun.
    WITH begun AS (
        UPDATE sub_tasks s SET status = 'RUNNING', started_at = greatest(s.queued_at, least(now(), to_timestamp(o.started)))
        FROM unnest(p_id, p_attempt, p_verdict, p_started, p_ray_task) AS o (id, attempt, verdict, started, ray_task)
        WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'QUEUED' AND s.incarnation IS NOT NULL
            AND (o.verdict <> 'LOST' OR o.ray_task <> '')
        RETURNING s.parent_id, s.key, s.attempt
    )
    INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, phase, attempt)
    SELECT b.parent_id, 'subtask', b.key, 'QUEUED', 'RUNNING', 'PREPARE_ENV', b.attempt FROM begun b;
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT g.*, g.output_text::jsonb AS output
        FROM unnest(p_id, p_attempt, p_verdict, p_output, p_error, p_retry_in_s, p_spends, p_started, p_finished, p_tokens,
            p_stdout, p_stderr, p_log, p_spans, p_worker, p_node, p_ray_task)
        AS g (id, attempt, verdict, output_text, error, retry_in_s, spends, started, finished, tokens, stdout, stderr, log,
            spans, worker, node, ray_task)
    ), o AS MATERIALIZED (
        -- Size and digest are those of the bytes that are served: what jsonb makes of the text, not the text itself.
        SELECT g.*, convert_to(g.output::text, 'UTF8') AS served FROM given g
    ), done AS (
        UPDATE sub_tasks s SET
            status = CASE WHEN o.verdict = 'COMPLETED' THEN 'COMPLETED' ELSE 'FAILED' END,
            phase = NULL, incarnation = NULL, worker_id = o.worker,
            output_result = o.output, output_size = length(o.served), output_sha256 = encode(sha256(o.served), 'hex'),
            error = o.error::jsonb,
            finished_at = CASE WHEN o.verdict = 'COMPLETED' THEN now() END,
            not_before = CASE WHEN o.verdict <> 'COMPLETED' THEN now() + make_interval(secs => coalesce(o.retry_in_s, 0)) END,
            retry_count = s.retry_count + (o.verdict <> 'COMPLETED' AND o.spends AND o.retry_in_s IS NOT NULL)::int,
            duration_ms = (o.finished - o.started) * 1000, tokens_used = s.tokens_used + o.tokens,
            started_at = coalesce(s.started_at, to_timestamp(o.started))
        FROM o
        WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'RUNNING'
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.attempt, s.status, s.dependents, s.queued_at, s.shape, s.score,
            s.error, o.tokens, o.retry_in_s
    ), logged AS (
        INSERT INTO execution_logs (sub_task_id, attempt, task_id, status, queued_at, start_time, end_time, duration,
            tokens_used, stdout, stderr, log_content, error_message, error, spans, worker_id, node_id, ray_task_id)
        SELECT s.id, o.attempt, s.parent_id, CASE WHEN s.status = 'CANCELLED' THEN 'CANCELLED' ELSE o.verdict END,
            s.queued_at, to_timestamp(o.started), to_timestamp(o.finished), (o.finished - o.started) * 1000, o.tokens,
            o.stdout, o.stderr, o.log, o.error::jsonb ->> 'message', o.error::jsonb, o.spans::jsonb, o.worker, o.node, o.ray_task
        FROM o JOIN sub_tasks s ON s.id = o.id AND s.attempt = o.attempt AND s.status IN ('RUNNING', 'CANCELLED')
        ON CONFLICT DO NOTHING
        RETURNING task_id, tokens_used
    ), spent AS (
        -- In the order of users, as every writer: so none waits for another in a circle.
        INSERT INTO token_totals AS t (user_id, tokens_used)
        SELECT k.user_id, least(sum(l.tokens_used), 9223372036854775807)::bigint
        FROM logged l JOIN tasks k ON k.id = l.task_id WHERE l.tokens_used > 0 GROUP BY k.user_id ORDER BY k.user_id
        ON CONFLICT (user_id) DO UPDATE
            SET tokens_used = least(t.tokens_used::numeric + excluded.tokens_used, 9223372036854775807)::bigint
    ), counted AS (
        SELECT d.id, count(*) AS n FROM done, unnest(done.dependents) AS d (id) WHERE done.status = 'COMPLETED' GROUP BY d.id
    ), waiting AS (
        UPDATE sub_tasks s SET
            pending_dependencies = s.pending_dependencies - c.n,
            status = CASE WHEN s.pending_dependencies > c.n THEN s.status
                WHEN s.require_approval THEN 'AWAITING_APPROVAL' ELSE 'QUEUED' END,
            queued_at = CASE WHEN s.pending_dependencies = c.n AND NOT s.require_approval THEN now() END,
            held_at = CASE WHEN s.pending_dependencies = c.n AND s.require_approval THEN now() END
        FROM counted c
        WHERE s.id = c.id AND s.status = 'READY'
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.status, s.shape, s.score
    ), tallied AS (
        UPDATE tasks t SET open_count = t.open_count - d.completed, tokens_used = t.tokens_used + d.tokens
        FROM (
            SELECT parent_id, count(*) FILTER (WHERE status = 'COMPLETED') AS completed, sum(tokens) AS tokens
            FROM done GROUP BY parent_id
        ) d WHERE t.id = d.parent_id
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT e.task_id, e.kind, e.key, e.source, e.target, e.attempt, e.reason FROM (
            SELECT parent_id AS task_id, 'subtask' AS kind, key, 'RUNNING' AS source, status AS target, attempt,
                error ->> 'message' AS reason, 0 AS rank FROM done
            UNION ALL
            SELECT parent_id, 'subtask', key, 'READY', status, NULL, NULL, 1 FROM waiting WHERE status <> 'READY'
            UNION ALL
            SELECT parent_id, 'approval', key, 'READY', status, NULL, 'asked', 2 FROM waiting WHERE status = 'AWAITING_APPROVAL'
        ) e ORDER BY e.rank
    )
    SELECT 'accepted', d.id, d.parent_id, d.user_id, d.shape, d.score, d.status FROM done d
    UNION ALL
    SELECT 'queued', w.id, w.parent_id, w.user_id, w.shape, w.score, NULL FROM waiting w WHERE w.status = 'QUEUED'
    UNION ALL
    SELECT 'retry', d.id, d.parent_id, d.user_id, d.shape, d.score, d.retry_in_s::text FROM done d
        WHERE d.status = 'FAILED' AND d.retry_in_s IS NOT NULL;

    IF (array_position(p_retry_in_s, NULL) IS NOT NULL OR array_position(p_use_fallback, true) IS NOT NULL)
        AND EXISTS (SELECT 1 FROM unnest(p_verdict) v WHERE v <> 'COMPLETED')
    THEN
        SELECT array_agg(s.id), array_agg(s.id) FILTER (WHERE s.on_failure = 'fallback' AND NOT s.on_fallback)
        INTO v_spent, v_turning
        FROM unnest(p_id, p_attempt, p_verdict, p_retry_in_s, p_use_fallback) AS o (id, attempt, verdict, retry_in_s, use_fallback)
        JOIN sub_tasks s ON s.id = o.id AND s.attempt = o.attempt AND s.status = 'FAILED'
        WHERE o.verdict <> 'COMPLETED'
            AND (o.retry_in_s IS NULL OR (o.use_fallback AND s.on_failure = 'fallback' AND NOT s.on_fallback));
        IF v_turning IS NOT NULL THEN
            RETURN QUERY SELECT * FROM use_fallbacks(v_turning);
        END IF;
        IF v_spent IS NOT NULL THEN
            -- Those that have turned are no longer FAILED.
            RETURN QUERY SELECT * FROM block_subtasks(v_spent);
        END IF;
    END IF;

    SELECT array_agg(DISTINCT s.parent_id) INTO v_closing
    FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id
    WHERE s.id = ANY (p_id) AND t.open_count = 0 AND t.status = 'PROCESSING';
    IF v_closing IS NOT NULL THEN
        RETURN QUERY SELECT * FROM close_tasks(v_closing, p_inline_bytes);
    END IF;
END $$
----
-- Subtasks that wait for approval are refused for good: BLOCKED, with all that follows. The caller holds the locks of
-- their tasks. p_reason: for people, and in the events.
CREATE FUNCTION reject_subtasks(p_ids uuid[], p_reason text, p_inline_bytes bigint) RETURNS SETOF change LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_rejected uuid[];
    v_closing uuid[];
BEGIN
    WITH rejected AS (
        UPDATE sub_tasks s SET status = 'BLOCKED', finished_at = now(), error = jsonb_build_object(
            'code', 'REJECTED', 'class', 'refused', 'retryable', false, 'message', p_reason)
        WHERE s.id = ANY (p_ids) AND s.status = 'AWAITING_APPROVAL'
        RETURNING s.id, s.parent_id, s.key, s.execution_order
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
        SELECT r.parent_id, k.kind, r.key, 'AWAITING_APPROVAL', 'BLOCKED', p_reason
        FROM rejected r CROSS JOIN (VALUES ('subtask'), ('approval')) AS k (kind) ORDER BY k.kind DESC, r.execution_order
    ), counted AS (
        UPDATE tasks t SET open_count = t.open_count - r.n, blocked_count = t.blocked_count + r.n
        FROM (SELECT parent_id, count(*) AS n FROM rejected GROUP BY parent_id) r WHERE t.id = r.parent_id
    )
    SELECT array_agg(id ORDER BY execution_order) INTO v_rejected FROM rejected;
    IF v_rejected IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY SELECT 'decided', s.id, s.parent_id, s.user_id, s.shape, s.score, s.key
        FROM unnest(v_rejected) WITH ORDINALITY AS r (id, place) JOIN sub_tasks s ON s.id = r.id ORDER BY r.place;
    RETURN QUERY SELECT * FROM follow_blocked(v_rejected);
    SELECT array_agg(DISTINCT s.parent_id) INTO v_closing
    FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id
    WHERE s.id = ANY (v_rejected) AND t.open_count = 0 AND t.status = 'PROCESSING';
    IF v_closing IS NOT NULL THEN
        RETURN QUERY SELECT * FROM close_tasks(v_closing, p_inline_bytes);
    END IF;
END $$
----
-- Why there was nothing to decide.
CREATE FUNCTION nothing_waits(p_task uuid, p_subtask text, p_user uuid, p_status text) RETURNS SETOF change
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN p_subtask IS NOT NULL AND s.status IS NULL THEN 'unknown' ELSE 'refused' END,
        NULL::uuid, p_task, p_user, NULL::text, NULL::float8, coalesce(s.status, p_status)
    FROM (SELECT (SELECT s.status FROM sub_tasks s WHERE s.parent_id = p_task AND s.key = p_subtask) AS status) s
$$
----
-- Somebody approves what waits: the plan of a READY task, one subtask, or, without a name, every subtask that waits now.
-- Two that approve the same thing take turns at the task's row, and the second finds that nothing waits. Answers
-- ('decided', id, …, key) for each subtask, or ('decided', null, task, …) for the plan, and ('queued', …); else one of
-- ('unknown', …) for a subtask that there is not, and ('refused', …, the status of what was named).
CREATE FUNCTION approve_task(p_task uuid, p_subtask text, p_reason text) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
    v_status text;
BEGIN
    SELECT t.id, t.user_id, t.status INTO v_task FROM tasks t WHERE t.id = p_task FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF v_task.status = 'READY' AND p_subtask IS NULL THEN
        UPDATE tasks SET status = 'PROCESSING', held_at = NULL WHERE id = p_task;
        INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
        VALUES (p_task, 'approval', 'READY', 'PROCESSING', p_reason), (p_task, 'task', 'READY', 'PROCESSING', p_reason);
        WITH accepted AS (
            UPDATE sub_tasks s SET status = 'READY' WHERE s.parent_id = p_task AND s.status = 'PENDING'
            RETURNING s.key, s.execution_order
        )
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status)
        SELECT p_task, 'subtask', a.key, 'PENDING', 'READY' FROM accepted a ORDER BY a.execution_order;
        RETURN QUERY SELECT 'decided', NULL::uuid, p_task, v_task.user_id, NULL::text, NULL::float8, NULL::text;
        RETURN QUERY
        WITH freed AS (
            UPDATE sub_tasks s SET
                status = CASE WHEN s.require_approval THEN 'AWAITING_APPROVAL' ELSE 'QUEUED' END,
                queued_at = CASE WHEN NOT s.require_approval THEN now() END,
                held_at = CASE WHEN s.require_approval THEN now() END
            WHERE s.parent_id = p_task AND s.status = 'READY' AND s.pending_dependencies = 0
            RETURNING s.*
        ), told AS (
            INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
            SELECT p_task, k.kind, f.key, 'READY', f.status, CASE k.kind WHEN 'approval' THEN 'asked' END
            FROM freed f JOIN (VALUES ('subtask'), ('approval')) AS k (kind)
                ON k.kind = 'subtask' OR f.status = 'AWAITING_APPROVAL'
            ORDER BY k.kind DESC, f.execution_order
        )
        SELECT 'queued', f.id, f.parent_id, f.user_id, f.shape, f.score, NULL::text FROM freed f WHERE f.status = 'QUEUED';
        RETURN;
    END IF;
    RETURN QUERY
    WITH approved AS (
        UPDATE sub_tasks s SET status = 'QUEUED', queued_at = now()
        WHERE s.parent_id = p_task AND s.status = 'AWAITING_APPROVAL' AND (p_subtask IS NULL OR s.key = p_subtask)
        RETURNING s.*
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
        SELECT p_task, k.kind, a.key, 'AWAITING_APPROVAL', 'QUEUED', p_reason
        FROM approved a CROSS JOIN (VALUES ('subtask'), ('approval')) AS k (kind) ORDER BY k.kind DESC, a.execution_order
    )
    SELECT w.what, a.id, a.parent_id, a.user_id, a.shape, a.score, a.key
    FROM approved a CROSS JOIN (VALUES ('decided'), ('queued')) AS w (what) ORDER BY a.execution_order;
    IF NOT FOUND THEN
        RETURN QUERY SELECT * FROM nothing_waits(p_task, p_subtask, v_task.user_id, v_task.status);
    END IF;
END $$
----
-- Somebody refuses what waits, as approve_task has it. A refused plan ends its task: CANCELLED, with the reason.
-- p_plan_ttl_s: only a plan that has waited longer than so many seconds. It may have been approved a moment ago.
CREATE FUNCTION reject_task(
    p_task uuid, p_subtask text, p_reason text, p_inline_bytes bigint, p_plan_ttl_s double precision DEFAULT NULL
) RETURNS SETOF change
LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
    v_ids uuid[];
BEGIN
    SELECT t.id, t.user_id, t.status, t.held_at INTO v_task FROM tasks t WHERE t.id = p_task FOR NO KEY UPDATE;
    IF NOT FOUND OR (p_plan_ttl_s IS NOT NULL AND (v_task.status <> 'READY' OR v_task.held_at IS NULL
        OR v_task.held_at > now() - make_interval(secs => p_plan_ttl_s)))
    THEN
        RETURN;
    END IF;
    IF v_task.status = 'READY' AND p_subtask IS NULL THEN
        UPDATE tasks SET held_at = NULL WHERE id = p_task;
        INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
        VALUES (p_task, 'approval', 'READY', 'CANCELLED', p_reason);
        RETURN QUERY SELECT 'decided', NULL::uuid, p_task, v_task.user_id, NULL::text, NULL::float8, NULL::text;
        RETURN QUERY SELECT * FROM end_task(p_task, 'CANCELLED', jsonb_build_object(
            'code', 'REJECTED', 'class', 'refused', 'retryable', false, 'message', p_reason), p_reason);
        RETURN;
    END IF;
    SELECT array_agg(s.id) INTO v_ids FROM sub_tasks s
    WHERE s.parent_id = p_task AND s.status = 'AWAITING_APPROVAL' AND (p_subtask IS NULL OR s.key = p_subtask);
    IF v_ids IS NULL THEN
        RETURN QUERY SELECT * FROM nothing_waits(p_task, p_subtask, v_task.user_id, v_task.status);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM reject_subtasks(v_ids, p_reason, p_inline_bytes);
END $$
----
-- Subtasks that have waited for approval longer than p_ttl_s seconds are refused.
CREATE FUNCTION expire_approvals(p_ttl_s double precision, p_reason text, p_limit integer, p_inline_bytes bigint)
RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    SELECT array_agg(h.id) INTO v_ids FROM (
        SELECT s.id FROM sub_tasks s
        WHERE s.status = 'AWAITING_APPROVAL' AND s.held_at <= now() - make_interval(secs => p_ttl_s)
        ORDER BY s.held_at LIMIT p_limit
    ) h;
    IF v_ids IS NOT NULL THEN
        PERFORM lock_tasks_of(v_ids);
        RETURN QUERY SELECT * FROM reject_subtasks(v_ids, p_reason, p_inline_bytes);
    END IF;
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
    UPDATE tasks t SET status = p_status, error = p_error, open_count = 0, incarnation = NULL, held_at = NULL,
        finished_at = now()
    WHERE t.id = p_task;
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    VALUES (p_task, 'task', v_task.status, p_status, p_reason);
    RETURN QUERY SELECT 'closed', NULL::uuid, v_task.id, v_task.user_id, NULL::text, NULL::float8, p_status;
END $$
