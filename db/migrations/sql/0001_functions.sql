-- The guarded writes of the engine, each one statement to its caller and so one commit. Statements are separated by
-- a line of four dashes.
--
-- Rules that all of them keep:
--   1. Lock the rows of the tasks concerned first, in order of id. Writers of one task take turns, so its events get
--      their ids in order, counters never race, and no two writers wait for each other in a circle.
--   2. Name the state, and the attempt, that is expected. A row that has moved on is left alone: that is the fence.
--   3. Write the event of every transition in the same statement.
--
-- A subtask that becomes QUEUED is returned as ('queued', id, task, user, shape, score); the caller tells Redis.
CREATE TYPE change AS (
    what text, sub_task_id uuid, task_id uuid, user_id uuid, shape text, score double precision, detail text
)
----
CREATE FUNCTION lock_tasks_of(p_ids uuid[]) RETURNS void LANGUAGE sql AS $$
    SELECT 1 FROM tasks t
    WHERE t.id IN (SELECT s.parent_id FROM sub_tasks s WHERE s.id = ANY (p_ids))
    ORDER BY t.id FOR NO KEY UPDATE
$$
----
-- What a COMPLETED task has come to: the output of the only sink, or {sink: output} of several. Its text, encoded as
-- UTF-8, is what a result that is given by reference consists of. Of several sinks that together have more than
-- p_whole_bytes (PostgreSQL builds no JSON document of 256 MiB), each output over 1 KiB is a reference itself.
CREATE FUNCTION task_result(p_task uuid, p_whole_bytes bigint DEFAULT 64 * 1024 * 1024) RETURNS jsonb
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) = 1 THEN (array_agg(o.whole))[1] ELSE jsonb_object_agg(o.key, o.output) END
    FROM (
        SELECT s.key, s.output_result AS whole,
            CASE WHEN s.output_size > 1024 AND sum(s.output_size) OVER () > p_whole_bytes THEN jsonb_build_object(
                '$blob', format('/api/v1/tasks/%s/subtasks/%s/output', p_task, s.key),
                'size', s.output_size, 'sha256', s.output_sha256) ELSE s.output_result END AS output
        FROM sub_tasks s WHERE s.parent_id = p_task AND s.dependents = '{}'
    ) o
$$
----
-- Close tasks that have nothing open. Called with their rows locked. COMPLETED when nothing is BLOCKED, else FAILED.
-- A result over p_inline_bytes is kept as {"$blob", "size", "sha256"}: the whole is made again for whoever asks for it.
CREATE FUNCTION close_tasks(p_tasks uuid[], p_inline_bytes bigint) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_task record;
    v_sinks record;
    v_result jsonb;
    v_whole bytea;
    v_error jsonb;
BEGIN
    FOR v_task IN
        SELECT t.id, t.user_id, t.blocked_count FROM tasks t
        WHERE t.id = ANY (p_tasks) AND t.status = 'PROCESSING' AND t.open_count = 0
    LOOP
        IF v_task.blocked_count > 0 THEN
            SELECT jsonb_build_object(
                'code', 'SUBTASKS_BLOCKED', 'class', (array_agg(b.error ->> 'class' ORDER BY b.execution_order))[1],
                'retryable', false,
                'message', format('%s of %s subtasks could not be completed; the first is %s: %s', v_task.blocked_count,
                    (SELECT count(*) FROM sub_tasks a WHERE a.parent_id = v_task.id),
                    (array_agg(b.key ORDER BY b.execution_order))[1],
                    (array_agg(b.error ->> 'message' ORDER BY b.execution_order))[1]))
            INTO v_error FROM sub_tasks b WHERE b.parent_id = v_task.id AND b.status = 'BLOCKED';
            UPDATE tasks SET status = 'FAILED', error = v_error, finished_at = now() WHERE id = v_task.id;
        ELSE
            -- As long as the text of the result will be: {"key": output, "key": output}. Keys have nothing to escape.
            SELECT count(*) AS n, min(s.key) AS key, CASE WHEN count(*) = 1 THEN sum(s.output_size)
                ELSE sum(s.output_size + length(s.key) + length('"": , ')) END AS size
            INTO v_sinks FROM sub_tasks s WHERE s.parent_id = v_task.id AND s.dependents = '{}';
            v_result := task_result(v_task.id);
            IF v_sinks.size > p_inline_bytes THEN
                v_whole := convert_to(v_result::text, 'UTF8');
                v_result := jsonb_build_object('$blob', CASE WHEN v_sinks.n = 1
                    THEN format('/api/v1/tasks/%s/subtasks/%s/output', v_task.id, v_sinks.key)
                    ELSE format('/api/v1/tasks/%s/result', v_task.id) END,
                    'size', length(v_whole), 'sha256', encode(sha256(v_whole), 'hex'));
            END IF;
            UPDATE tasks SET status = 'COMPLETED', result = v_result, finished_at = now() WHERE id = v_task.id;
        END IF;
        INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
        SELECT t.id, 'task', 'PROCESSING', t.status, t.error ->> 'message' FROM tasks t WHERE t.id = v_task.id;
        RETURN QUERY SELECT 'closed', NULL::uuid, t.id, t.user_id, NULL::text, NULL::float8, t.status
            FROM tasks t WHERE t.id = v_task.id;
    END LOOP;
END $$
----
-- Take the leases of queued subtasks: attempt + 1. Those marked as running become RUNNING at once; the others are
-- handed to Ray as demand and become RUNNING when a worker begins them (begin_attempt). In their order, until their
-- inputs have p_chars characters or more; with null for p_chars all of them, without their inputs.
CREATE FUNCTION claim_subtasks(p_ids uuid[], p_running boolean[], p_incarnation uuid, p_chars bigint)
RETURNS TABLE (
    id uuid, task_id uuid, user_id uuid, key text, tool text, task_type text, attempt integer, retry_count integer,
    max_retries integer, timeout_s double precision, input text, referred text[], shape text,
    score double precision, running boolean
) LANGUAGE plpgsql AS $$
BEGIN
    -- A life that somebody has ended, and that hasn't heard of it yet, must take nothing more.
    IF NOT EXISTS (SELECT FROM schedulers h WHERE h.incarnation = p_incarnation AND h.ended_at IS NULL) THEN
        RETURN;
    END IF;
    PERFORM lock_tasks_of(p_ids);
    RETURN QUERY
    WITH asked AS MATERIALIZED (
        SELECT a.*, CASE WHEN p_chars IS NULL THEN '{}' ELSE s.input_context::text END AS input
        FROM unnest(p_ids, p_running) WITH ORDINALITY AS a (id, running, place)
        JOIN sub_tasks s ON s.id = a.id AND s.status = 'QUEUED' AND s.incarnation IS NULL
    ), measured AS (
        SELECT a.*, sum(length(a.input)) OVER (ORDER BY a.place) - length(a.input) AS chars_before FROM asked a
    ), claimed AS (
        UPDATE sub_tasks s SET
            status = CASE WHEN a.running THEN 'RUNNING' ELSE s.status END,
            phase = CASE WHEN a.running THEN 'PREPARE_ENV' END,
            started_at = CASE WHEN a.running THEN now() ELSE s.started_at END,
            attempt = s.attempt + 1, incarnation = p_incarnation, worker_id = NULL
        FROM measured a
        WHERE s.id = a.id AND s.status = 'QUEUED' AND s.incarnation IS NULL AND (p_chars IS NULL OR a.chars_before < p_chars)
        RETURNING s.*, a.running AS is_running, a.input AS input_text
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, phase, attempt)
        SELECT c.parent_id, 'subtask', c.key, 'QUEUED', 'RUNNING', 'PREPARE_ENV', c.attempt FROM claimed c WHERE c.is_running
    )
    SELECT c.id, c.parent_id, c.user_id, c.key, c.tool, c.task_type, c.attempt, c.retry_count, c.max_retries, c.timeout_s,
        c.input_text, c.referred, c.shape, c.score, c.is_running
    FROM claimed c;
END $$
----
-- A worker begins an attempt that was handed over as demand. False: the lease is gone, don't run it.
CREATE FUNCTION begin_attempt(p_id uuid, p_attempt integer, p_worker text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_task uuid;
    v_key text;
BEGIN
    PERFORM lock_tasks_of(ARRAY[p_id]);
    UPDATE sub_tasks s SET status = 'RUNNING', phase = 'PREPARE_ENV', started_at = now(), worker_id = p_worker
    WHERE s.id = p_id AND s.attempt = p_attempt AND s.status = 'QUEUED' AND s.incarnation IS NOT NULL
    RETURNING s.parent_id, s.key INTO v_task, v_key;
    IF NOT FOUND THEN
        -- The same worker may have said so before.
        RETURN EXISTS (
            SELECT FROM sub_tasks s
            WHERE s.id = p_id AND s.attempt = p_attempt AND s.status = 'RUNNING' AND s.worker_id = p_worker
        );
    END IF;
    INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, phase, attempt)
    VALUES (v_task, 'subtask', v_key, 'QUEUED', 'RUNNING', 'PREPARE_ENV', p_attempt);
    RETURN true;
END $$
----
-- A worker tells the phase of an attempt that takes long enough for somebody to look.
CREATE FUNCTION report_phase(p_id uuid, p_attempt integer, p_phase text, p_worker text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_task uuid;
    v_key text;
BEGIN
    PERFORM lock_tasks_of(ARRAY[p_id]);
    UPDATE sub_tasks s SET phase = p_phase, worker_id = p_worker
    WHERE s.id = p_id AND s.attempt = p_attempt AND s.status = 'RUNNING'
    RETURNING s.parent_id, s.key INTO v_task, v_key;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, phase, attempt)
    VALUES (v_task, 'subtask', v_key, 'RUNNING', 'RUNNING', p_phase, p_attempt);
    RETURN true;
END $$
----
-- Record how attempts ended, in one commit: results, one log row each, events, dependents' counters, what became
-- free, what must be skipped, what closed. p_retry_in_s: null for a failure that is spent. p_spends: whether a failure
-- counts against max_retries. An outcome whose attempt is no longer current changes nothing but the log of a
-- cancelled attempt. Answers ('accepted' | 'queued' | 'closed' | 'retry', …).
CREATE FUNCTION complete_attempts(
    p_id uuid[], p_attempt integer[], p_verdict text[], p_output text[], p_error text[],
    p_retry_in_s double precision[], p_spends boolean[], p_started double precision[], p_finished double precision[],
    p_tokens bigint[], p_stdout text[], p_stderr text[], p_log text[], p_spans text[], p_worker text[], p_node text[],
    p_ray_task text[], p_inline_bytes bigint
) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_spent uuid[];
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
            status = CASE WHEN s.pending_dependencies = c.n THEN 'QUEUED' ELSE s.status END,
            queued_at = CASE WHEN s.pending_dependencies = c.n THEN now() END
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
        SELECT e.task_id, 'subtask', e.key, e.source, e.target, e.attempt, e.reason FROM (
            SELECT parent_id AS task_id, key, 'RUNNING' AS source, status AS target, attempt, error ->> 'message' AS reason, 0 AS rank FROM done
            UNION ALL
            SELECT parent_id, key, 'READY', 'QUEUED', NULL, NULL, 1 FROM waiting WHERE status = 'QUEUED'
        ) e ORDER BY e.rank
    )
    SELECT 'accepted', d.id, d.parent_id, d.user_id, d.shape, d.score, d.status FROM done d
    UNION ALL
    SELECT 'queued', w.id, w.parent_id, w.user_id, w.shape, w.score, NULL FROM waiting w WHERE w.status = 'QUEUED'
    UNION ALL
    SELECT 'retry', d.id, d.parent_id, d.user_id, d.shape, d.score, d.retry_in_s::text FROM done d
        WHERE d.status = 'FAILED' AND d.retry_in_s IS NOT NULL;

    IF array_position(p_retry_in_s, NULL) IS NOT NULL AND EXISTS (SELECT 1 FROM unnest(p_verdict) v WHERE v <> 'COMPLETED') THEN
        SELECT array_agg(s.id) INTO v_spent
        FROM unnest(p_id, p_attempt, p_verdict, p_retry_in_s) AS o (id, attempt, verdict, retry_in_s)
        JOIN sub_tasks s ON s.id = o.id AND s.attempt = o.attempt AND s.status = 'FAILED'
        WHERE o.verdict <> 'COMPLETED' AND o.retry_in_s IS NULL;
        IF v_spent IS NOT NULL THEN
            PERFORM block_subtasks(v_spent);
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
-- FAILED subtasks whose retries are spent become BLOCKED, and everything that waits for them SKIPPED. Only by index:
-- the planner can't know how little a turn finds, and would read the whole table in each.
CREATE FUNCTION block_subtasks(p_ids uuid[]) RETURNS void LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_turn uuid[];
BEGIN
    WITH blocked AS (
        UPDATE sub_tasks s SET status = 'BLOCKED', not_before = NULL, finished_at = now()
        WHERE s.id = ANY (p_ids) AND s.status = 'FAILED'
        RETURNING s.parent_id, s.key, s.attempt, s.error
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, 'FAILED', 'BLOCKED', attempt, error ->> 'code' FROM blocked
    )
    UPDATE tasks t SET open_count = t.open_count - b.n, blocked_count = t.blocked_count + b.n
    FROM (SELECT parent_id, count(*) AS n FROM blocked GROUP BY parent_id) b WHERE t.id = b.parent_id;

    -- What waits is walked once, however many of a task were blocked together: those take turns, one of each task at a
    -- time, and a turn goes no further than what earlier ones left READY (below anything that is SKIPPED, all is).
    FOR v_turn IN
        SELECT array_agg(r.id) FROM (
            SELECT s.id, row_number() OVER (PARTITION BY s.parent_id ORDER BY s.execution_order) AS turn
            FROM sub_tasks s WHERE s.id = ANY (p_ids) AND s.dependents <> '{}'
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
END $$
----
-- Back-offs that are over: FAILED becomes QUEUED.
CREATE FUNCTION requeue_due(p_limit integer) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
BEGIN
    SELECT array_agg(d.id) INTO v_ids FROM (
        SELECT s.id FROM sub_tasks s WHERE s.status = 'FAILED' AND s.not_before <= now() ORDER BY s.not_before LIMIT p_limit
    ) d;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM lock_tasks_of(v_ids);
    RETURN QUERY
    WITH due AS (
        UPDATE sub_tasks s SET status = 'QUEUED', not_before = NULL, queued_at = now()
        WHERE s.id = ANY (v_ids) AND s.status = 'FAILED' AND s.not_before <= now()
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.shape, s.score, s.attempt
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, 'FAILED', 'QUEUED', attempt, 'retry' FROM due
    )
    SELECT 'queued', d.id, d.parent_id, d.user_id, d.shape, d.score, NULL::text FROM due d;
END $$
----
-- Take back the leases of dead incarnations. An attempt that was running is LOST (it spends no retry) and queued again;
-- one that was only handed over is simply free again. p_only with p_attempt: of these, only those leases.
CREATE FUNCTION recover_leases(
    p_dead uuid[], p_limit integer, p_only uuid[] DEFAULT NULL, p_attempt integer[] DEFAULT NULL
) RETURNS SETOF change LANGUAGE plpgsql AS $$
DECLARE
    v_ids uuid[];
    v_lost uuid[];
    v_why text := CASE WHEN p_only IS NULL THEN 'the scheduler that ran this attempt died'
        ELSE 'the attempt was never started: its claim was not answered' END;
BEGIN
    SELECT array_agg(l.id) INTO v_ids
    FROM (
        SELECT s.id FROM sub_tasks s
        WHERE s.incarnation = ANY (p_dead)
            AND (p_only IS NULL OR (s.id, s.attempt) IN (SELECT * FROM unnest(p_only, p_attempt)))
        LIMIT p_limit
    ) l;
    IF v_ids IS NULL THEN
        RETURN;
    END IF;
    PERFORM lock_tasks_of(v_ids);
    WITH lost AS (
        UPDATE sub_tasks s SET status = 'FAILED', phase = NULL, incarnation = NULL, not_before = now(),
            error = jsonb_build_object('code', 'SCHEDULER_LOST', 'class', 'transient', 'retryable', true, 'attempt', s.attempt,
                'message', v_why)
        WHERE s.id = ANY (v_ids) AND s.status = 'RUNNING' AND s.incarnation = ANY (p_dead)
        RETURNING s.*
    ), logged AS (
        INSERT INTO execution_logs (sub_task_id, attempt, task_id, status, queued_at, start_time, end_time, duration,
            error_message, error, worker_id)
        SELECT l.id, l.attempt, l.parent_id, 'LOST', l.queued_at, l.started_at, now(),
            extract(epoch FROM now() - l.started_at) * 1000, l.error ->> 'message', l.error, l.worker_id
        FROM lost l ON CONFLICT DO NOTHING
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT l.parent_id, 'subtask', l.key, 'RUNNING', 'FAILED', l.attempt, l.error ->> 'message' FROM lost l
    )
    SELECT coalesce(array_agg(l.id), '{}') INTO v_lost FROM lost l;

    RETURN QUERY
    WITH again AS (
        UPDATE sub_tasks s SET status = 'QUEUED', incarnation = NULL, not_before = NULL, queued_at = now()
        WHERE (s.id = ANY (v_ids) AND s.status = 'QUEUED' AND s.incarnation = ANY (p_dead)) OR s.id = ANY (v_lost)
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.shape, s.score, s.attempt
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, 'FAILED', 'QUEUED', attempt, 'lost attempt' FROM again
        WHERE id = ANY (v_lost)
    )
    SELECT 'queued', a.id, a.parent_id, a.user_id, a.shape, a.score, NULL::text FROM again a;
END $$
----
-- Give back the leases of subtasks that were handed over but not begun.
CREATE FUNCTION release_leases(p_ids uuid[], p_attempt integer[]) RETURNS SETOF change LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_tasks_of(p_ids);
    RETURN QUERY
    UPDATE sub_tasks s SET incarnation = NULL, queued_at = now()
    FROM unnest(p_ids, p_attempt) AS o (id, attempt)
    WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'QUEUED' AND s.incarnation IS NOT NULL
    RETURNING 'queued', s.id, s.parent_id, s.user_id, s.shape, s.score, NULL::text;
END $$
----
-- End a task from outside: cancelled by its user, or failed by its deadline or its splitting. Everything that is not
-- settled becomes CANCELLED. Answers ('refused', …, status) when it is too late, else ('stopped', id, …, attempt) for
-- each subtask whose lease a scheduler holds, and ('closed', …, status) last.
CREATE FUNCTION end_task(p_task uuid, p_status text, p_error jsonb, p_reason text) RETURNS SETOF change LANGUAGE plpgsql AS $$
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
    UPDATE tasks t SET status = p_status, error = p_error, open_count = 0, incarnation = NULL, finished_at = now()
    WHERE t.id = p_task;
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    VALUES (p_task, 'task', v_task.status, p_status, p_reason);
    RETURN QUERY SELECT 'closed', NULL::uuid, v_task.id, v_task.user_id, NULL::text, NULL::float8, p_status;
END $$
----
-- Take tasks to split. A task whose splitter died is taken over by whoever asks with the dead incarnation's name.
CREATE FUNCTION claim_tasks(p_limit integer, p_incarnation uuid, p_dead uuid[], p_busy uuid[] DEFAULT NULL)
RETURNS SETOF tasks LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        SELECT t.id, t.status FROM tasks t
        WHERE t.status = 'PENDING' OR (t.status = 'SPLITTING' AND t.incarnation = ANY (p_dead))
            OR (t.status = 'SPLITTING' AND t.incarnation = p_incarnation AND t.id <> ALL (p_busy))
        ORDER BY t.priority DESC, t.created_at LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED
    ), told AS (
        INSERT INTO task_events (task_id, kind, from_status, to_status)
        SELECT k.id, 'task', 'PENDING', 'SPLITTING' FROM taken k WHERE k.status = 'PENDING'
    )
    UPDATE tasks t SET status = 'SPLITTING', incarnation = p_incarnation, started_at = coalesce(t.started_at, now())
    FROM taken k WHERE t.id = k.id
    RETURNING t.*;
END $$
