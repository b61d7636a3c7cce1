-- Plans that begin before they are whole: while a model writes the rest, what only reads runs already. Statements are
-- separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here too.
--
-- plan_meta has "partial": true until the plan is whole; such a task grows (see 0012_growth.sql), by whoever splits it.
ALTER TABLE tasks
    -- Whatever happens: a beginning is never taken for all that was asked for.
    ADD CONSTRAINT ck_tasks_whole CHECK (status <> 'COMPLETED' OR coalesce(plan_meta -> 'partial', 'false') <> 'true')
----
ALTER TABLE sub_tasks
    DROP CONSTRAINT ck_sub_tasks_superseded,
    -- What has begun may be done, or stopped, when the whole plan does without it.
    ADD CONSTRAINT ck_sub_tasks_superseded
        CHECK (NOT superseded OR status IN ('BLOCKED', 'SKIPPED', 'COMPLETED', 'CANCELLED'))
----
-- Leave aside what has begun and is no part of the whole plan: what is not settled is CANCELLED, letters are put away.
-- Called with the task's row locked. No other depends on these; what they depended on waits for them no longer, so that
-- it may be what the plan comes to.
CREATE FUNCTION drop_subtasks(p_task uuid, p_keys text[], p_reason text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH before AS MATERIALIZED (
        SELECT s.id, s.status FROM sub_tasks s
        WHERE s.parent_id = p_task AND s.key = ANY (p_keys) AND s.finished_at IS NULL
        FOR NO KEY UPDATE
    ), ended AS (
        UPDATE sub_tasks s SET status = 'CANCELLED', phase = NULL, incarnation = NULL, not_before = NULL, finished_at = now()
        FROM before b WHERE s.id = b.id
        RETURNING s.parent_id, s.key, s.attempt, b.status AS was
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT parent_id, 'subtask', key, was, 'CANCELLED', nullif(attempt, 0), p_reason FROM ended
    )
    UPDATE tasks t SET open_count = t.open_count - (SELECT count(*) FROM ended) WHERE t.id = p_task;
    UPDATE sub_tasks s SET superseded = true WHERE s.parent_id = p_task AND s.key = ANY (p_keys);
    WITH dropped AS (SELECT array_agg(s.id) AS ids FROM sub_tasks s WHERE s.parent_id = p_task AND s.key = ANY (p_keys))
    UPDATE sub_tasks s SET dependents = ARRAY(SELECT d FROM unnest(s.dependents) d WHERE d <> ALL (g.ids))
    FROM dropped g WHERE s.parent_id = p_task AND NOT s.superseded AND s.dependents && g.ids;
    PERFORM discard_letters(ARRAY(
        SELECT s.id FROM sub_tasks s WHERE s.parent_id = p_task AND s.key = ANY (p_keys) AND s.status = 'BLOCKED'));
END $$
----
-- End a task from outside: cancelled by its user, or failed by its deadline or its splitting. Everything that is not
-- settled becomes CANCELLED. Of a plan that is not whole nothing can be run again: its letters are put away. Answers
-- ('refused', …, status) when it is too late, else ('stopped', id, …, attempt) for each subtask whose lease a scheduler
-- holds, and ('closed', …, status) last.
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
    IF v_task.plan_meta -> 'partial' = 'true' THEN
        PERFORM discard_letters(ARRAY(
            SELECT s.id FROM sub_tasks s WHERE s.parent_id = p_task AND s.status = 'BLOCKED'));
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
DROP FUNCTION claim_growths(integer, uuid, uuid[], uuid[])
----
-- Take tasks that grow: those that are due, and those whose grower died. p_busy: what this incarnation sees to already.
-- p_partial: those whose plan is not whole yet, which its splitter sees to; else all others.
CREATE FUNCTION claim_growths(p_limit integer, p_incarnation uuid, p_dead uuid[], p_busy uuid[], p_partial boolean)
RETURNS SETOF tasks LANGUAGE sql AS $$
    WITH taken AS (
        SELECT t.id FROM tasks t
        WHERE t.growth IS NOT NULL AND t.id <> ALL (p_busy)
            AND (coalesce(t.plan_meta -> 'partial', 'false') = 'true') = p_partial
            AND (t.growth = 'due' OR t.incarnation = ANY (p_dead) OR t.incarnation = p_incarnation)
        ORDER BY t.priority DESC, t.created_at LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE tasks t SET growth = 'under_way', incarnation = p_incarnation FROM taken k WHERE t.id = k.id RETURNING t.*
$$
