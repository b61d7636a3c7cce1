-- What a model is told. Statements are separated by a line of four dashes. The rules at the head of 0001_functions.sql
-- hold here too.
ALTER TABLE sub_tasks
    ADD COLUMN instruction text,
    ADD COLUMN skills text[] NOT NULL DEFAULT '{}'
----
-- It answers more columns, which no replacement may.
DROP FUNCTION claim_subtasks(uuid[], boolean[], uuid, bigint)
----
-- Take the leases of queued subtasks: attempt + 1. Those marked as running become RUNNING at once; the others are
-- handed to Ray as demand and become RUNNING when a worker begins them (begin_attempt). In their order, until their
-- inputs have p_chars characters or more; with null for p_chars all of them, without their inputs. What is on its
-- fallback is claimed with the tool and the input of that. An input that is kept apart is left to the worker. What a model
-- does is claimed with what it is told, and with what its task may use and which key it came with; of all others these
-- are null, and their tasks are not looked at.
CREATE FUNCTION claim_subtasks(p_ids uuid[], p_running boolean[], p_incarnation uuid, p_chars bigint)
RETURNS TABLE (
    id uuid, task_id uuid, user_id uuid, key text, tool text, task_type text, attempt integer, retry_count integer,
    max_retries integer, timeout_s double precision, input text, referred text[], shape text,
    score double precision, running boolean, cacheable boolean, input_blob text, instruction text, skills text[],
    rules text, api_key_id uuid
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
        CASE WHEN NOT c.on_fallback THEN c.input_blob END, m.instruction, m.skills, m.rules, m.api_key_id
    FROM claimed c
    LEFT JOIN LATERAL (
        SELECT c.instruction, c.skills, (t.options -> 'tools')::text AS rules, t.api_key_id
        FROM tasks t WHERE t.id = c.parent_id AND c.tool = '' AND NOT c.on_fallback
    ) m ON true;
END $$
