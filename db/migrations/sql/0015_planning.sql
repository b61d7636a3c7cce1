-- Planning: its calls are found by their task, and who has enough prompts waiting keeps nobody else's from being planned.
-- Statements are separated by a line of four dashes. The rules at the head of 0001_functions.sql hold here too.
CREATE INDEX ix_model_calls_task_id ON model_calls (task_id) WHERE task_id IS NOT NULL AND sub_task_id IS NULL
----
-- The same, but of these users nothing new. What one of them had begun with is taken over all the same.
CREATE FUNCTION claim_tasks(p_limit integer, p_incarnation uuid, p_dead uuid[], p_busy uuid[], p_full uuid[])
RETURNS SETOF tasks LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY
    WITH taken AS (
        SELECT t.id, t.status FROM tasks t
        WHERE (t.status = 'PENDING' AND t.user_id <> ALL (p_full))
            OR (t.status = 'SPLITTING' AND t.incarnation = ANY (p_dead))
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
----
-- For a scheduler of the release before.
CREATE OR REPLACE FUNCTION claim_tasks(p_limit integer, p_incarnation uuid, p_dead uuid[], p_busy uuid[] DEFAULT NULL)
RETURNS SETOF tasks LANGUAGE sql AS $$
    SELECT * FROM claim_tasks(p_limit, p_incarnation, p_dead, p_busy, '{}')
$$
