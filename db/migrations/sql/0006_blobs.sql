-- Contents that are too large for a row: inputs and outputs by reference, and the register of where each content is.
-- Statements are separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here too.
ALTER TABLE blobs
    ALTER COLUMN data DROP NOT NULL,
    -- The object that has the content when it is not in data: s3://bucket/prefix/name. No two rows ever have the same one,
    -- not even one after the other: to remove that of a row that is gone can harm no other.
    ADD COLUMN place text,
    -- When somebody put it the last time. Until it is older than the time of grace nobody need refer to it. Without an
    -- index, so that to touch a row costs no index anything.
    ADD COLUMN touched_at timestamptz NOT NULL DEFAULT now(),
    ADD CONSTRAINT ck_blobs_place CHECK ((data IS NULL) = (place IS NOT NULL))
----
-- Objects whose rows are gone, and that have still to be removed.
CREATE TABLE blob_remains (
    place text PRIMARY KEY
)
----
CREATE INDEX ix_task_files_sha256 ON task_files (sha256)
----
-- The references hold a blob: it can't be collected while a row names it, and no row can name one that is gone.
ALTER TABLE sub_tasks
    ADD COLUMN input_blob text REFERENCES blobs (sha256),
    ADD COLUMN output_blob text REFERENCES blobs (sha256),
    DROP CONSTRAINT ck_sub_tasks_output,
    ADD CONSTRAINT ck_sub_tasks_output
        CHECK (num_nonnulls(output_result, output_blob) = (status = 'COMPLETED')::integer),
    ADD CONSTRAINT ck_sub_tasks_input CHECK (input_blob IS NULL OR input_context = '{}')
----
CREATE INDEX ix_sub_tasks_input_blob ON sub_tasks (input_blob) WHERE input_blob IS NOT NULL
----
CREATE INDEX ix_sub_tasks_output_blob ON sub_tasks (output_blob) WHERE output_blob IS NOT NULL
----
-- Whether the result has still to be put together from outputs that are kept apart: whoever is asked for it first does
-- that, and notes it.
ALTER TABLE tasks
    ADD COLUMN result_apart boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT ck_tasks_result_apart CHECK (NOT result_apart OR status = 'COMPLETED')
----
-- Close tasks that have nothing open. Called with their rows locked. COMPLETED when nothing is BLOCKED but what is
-- missing, else FAILED.
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
                bool_or(s.output_blob IS NOT NULL) AS is_apart, min(s.output_sha256) AS sha256,
                CASE WHEN count(*) = 1 THEN sum(z.size) ELSE sum(z.size + length(s.key) + length('"": , ')) END AS size
            INTO v_sinks FROM sub_tasks s
            CROSS JOIN LATERAL (SELECT coalesce(s.output_size, octet_length(s.stand_in::text)) AS size) z
            WHERE s.parent_id = v_task.id AND s.dependents = '{}';
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
-- fallback is claimed with the tool and the input of that. An input that is kept apart is left to the worker.
CREATE FUNCTION claim_subtasks(p_ids uuid[], p_running boolean[], p_incarnation uuid, p_chars bigint)
RETURNS TABLE (
    id uuid, task_id uuid, user_id uuid, key text, tool text, task_type text, attempt integer, retry_count integer,
    max_retries integer, timeout_s double precision, input text, referred text[], shape text,
    score double precision, running boolean, cacheable boolean, input_blob text
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
        CASE WHEN c.on_fallback THEN c.fallback_referred ELSE c.referred END, c.shape, c.score, c.is_running, c.cacheable,
        CASE WHEN NOT c.on_fallback THEN c.input_blob END
    FROM claimed c;
END $$
----
DROP FUNCTION complete_attempts(uuid[], integer[], text[], text[], text[], double precision[], boolean[],
    double precision[], double precision[], bigint[], text[], text[], text[], text[], text[], text[], text[], bigint,
    boolean[])
----
-- Record how attempts ended, in one commit: results, one log row each, events, dependents' counters, what became
-- free, what must be skipped, what closed. p_retry_in_s: null for a failure that is spent. p_spends: whether a failure
-- counts against max_retries. An outcome whose attempt is no longer current changes nothing but the log of a
-- cancelled attempt. p_use_fallback: whether a failure turns to the fallback at once, though retries may be left; one that
-- has none, or is on it, goes by p_retry_in_s. p_output_blob, p_output_size: an output that is
-- kept apart, in place of p_output; foreign_key_violation when it is no longer there. Answers ('accepted' | 'queued' | 'closed' | 'retry', …).
CREATE FUNCTION complete_attempts(
    p_id uuid[], p_attempt integer[], p_verdict text[], p_output text[], p_error text[],
    p_retry_in_s double precision[], p_spends boolean[], p_started double precision[], p_finished double precision[],
    p_tokens bigint[], p_stdout text[], p_stderr text[], p_log text[], p_spans text[], p_worker text[], p_node text[],
    p_ray_task text[], p_inline_bytes bigint, p_use_fallback boolean[] DEFAULT NULL,
    p_output_blob text[] DEFAULT NULL, p_output_size bigint[] DEFAULT NULL
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
            p_stdout, p_stderr, p_log, p_spans, p_worker, p_node, p_ray_task, p_output_blob, p_output_size)
        AS g (id, attempt, verdict, output_text, error, retry_in_s, spends, started, finished, tokens, stdout, stderr, log,
            spans, worker, node, ray_task, blob, blob_size)
    ), o AS MATERIALIZED (
        -- Size and digest are those of the bytes that are served: what jsonb makes of the text, not the text itself; or
        -- the blob.
        SELECT g.*, convert_to(g.output::text, 'UTF8') AS served FROM given g
    ), done AS (
        UPDATE sub_tasks s SET
            status = CASE WHEN o.verdict = 'COMPLETED' THEN 'COMPLETED' ELSE 'FAILED' END,
            phase = NULL, incarnation = NULL, worker_id = o.worker,
            output_result = o.output, output_blob = o.blob,
            output_size = coalesce(length(o.served), o.blob_size),
            output_sha256 = coalesce(encode(sha256(o.served), 'hex'), o.blob),
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
