-- A plan that had begun and never became whole is gone on with by a retry. The rules at the head of 0001_functions.sql
-- hold here too.
--
-- A task that failed over its plan, or over what its plan was to grow by, is planned again: it has no subtasks yet, or
-- only the beginning of a plan, or its growth was refused. Not one whose prompt nobody could plan. What had begun and is
-- not done was ended with the task, for good: it is no part of the plan any more, and what is done stays. Answers its
-- status; nothing where there is no such task.
CREATE OR REPLACE FUNCTION plan_again(p_task uuid, p_reason text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
    v_task tasks%ROWTYPE;
    v_partial boolean;
    v_status text;
BEGIN
    SELECT * INTO v_task FROM tasks t WHERE t.id = p_task AND t.status = 'FAILED'
        AND may_be_retried(t.status, t.error, t.deadline_at) FOR NO KEY UPDATE;
    v_partial := coalesce(v_task.plan_meta -> 'partial', 'false') = 'true';
    IF NOT FOUND
        OR ((v_task.subtask_count = 0 OR v_partial) AND v_task.error ->> 'class' = 'user')
        OR (v_task.subtask_count > 0 AND NOT v_partial
            AND (v_task.replans_left = 0 OR v_task.error ->> 'code' <> 'BUDGET_EXCEEDED'))
    THEN
        RETURN;
    END IF;
    v_status := CASE WHEN v_task.subtask_count = 0 THEN 'PENDING' ELSE 'PROCESSING' END;
    UPDATE tasks t SET error = NULL, finished_at = NULL, status = v_status,
        growth = CASE WHEN t.subtask_count > 0 THEN 'due' END,
        open_count = CASE WHEN t.subtask_count > 0 THEN 1 ELSE 0 END,
        replans_left = CASE WHEN t.subtask_count > 0 AND NOT v_partial THEN t.replans_left - 1 ELSE t.replans_left END
    WHERE t.id = p_task;
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    VALUES (p_task, 'task', 'FAILED', v_status, p_reason);
    IF v_partial THEN
        PERFORM drop_subtasks(p_task, ARRAY(
            SELECT s.key FROM sub_tasks s WHERE s.parent_id = p_task
                AND (s.status IN ('SKIPPED', 'CANCELLED') OR (s.status = 'BLOCKED' AND s.stand_in IS NULL))), p_reason);
    END IF;
    RETURN NEXT v_status;
END $$
