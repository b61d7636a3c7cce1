-- The Ray task of the attempt that runs, as its worker told it; of this attempt only while worker_id is not null.
ALTER TABLE sub_tasks ADD COLUMN ray_task_id text
----
DROP FUNCTION begin_attempt(uuid, integer, text)
----
-- A worker begins an attempt that was handed over as demand. False: the lease is gone, don't run it.
CREATE FUNCTION begin_attempt(p_id uuid, p_attempt integer, p_worker text, p_ray_task text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_task uuid;
    v_key text;
BEGIN
    PERFORM lock_tasks_of(ARRAY[p_id]);
    UPDATE sub_tasks s SET status = 'RUNNING', phase = 'PREPARE_ENV', started_at = now(), worker_id = p_worker,
        ray_task_id = p_ray_task
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
DROP FUNCTION report_phase(uuid, integer, text, text)
----
-- A worker tells the phase of an attempt that takes long enough for somebody to look.
CREATE FUNCTION report_phase(p_id uuid, p_attempt integer, p_phase text, p_worker text, p_ray_task text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_task uuid;
    v_key text;
BEGIN
    PERFORM lock_tasks_of(ARRAY[p_id]);
    UPDATE sub_tasks s SET phase = p_phase, worker_id = p_worker, ray_task_id = p_ray_task
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
-- cancelled attempt. p_use_fallback: whether a failure turns to the fallback at once, though retries may be left; one that
-- has none, or is on it, goes by p_retry_in_s. p_output_blob, p_output_size: an output that is
-- kept apart, in place of p_output; foreign_key_violation when it is no longer there. Answers ('accepted' | 'queued' | 'closed' | 'retry', …).
CREATE OR REPLACE FUNCTION complete_attempts(
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
    -- Attempts that were handed over as demand and ended before anybody told that they began. Only one that is LOST, and
    -- whose outcome no worker gave, may never have begun.
    WITH begun AS (
        UPDATE sub_tasks s SET status = 'RUNNING', started_at = greatest(s.queued_at, least(now(), to_timestamp(o.started)))
        FROM unnest(p_id, p_attempt, p_verdict, p_started, p_worker) AS o (id, attempt, verdict, started, worker)
        WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'QUEUED' AND s.incarnation IS NOT NULL
            AND (o.verdict <> 'LOST' OR o.worker <> '')
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
----
-- Take back the leases of dead incarnations. An attempt that was running is LOST (it spends no retry) and queued again;
-- one that was only handed over is simply free again. p_only with p_attempt: of these, only those leases.
CREATE OR REPLACE FUNCTION recover_leases(
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
            error_message, error, worker_id, ray_task_id)
        SELECT l.id, l.attempt, l.parent_id, 'LOST', l.queued_at, l.started_at, now(),
            extract(epoch FROM now() - l.started_at) * 1000, l.error ->> 'message', l.error, l.worker_id,
            CASE WHEN l.worker_id IS NOT NULL THEN l.ray_task_id END
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
