-- What was claimed too early is unclaimed. The rules at the head of 0001_functions.sql hold here too.
--
-- Take claims back as if they had never been made: the numbers of their attempts are free again. Only for what was
-- claimed as demand by this life of a scheduler and never handed to anybody: nobody else may ever have heard of these
-- attempts. Told again it changes nothing, unless the same life has claimed one of them again meanwhile.
CREATE FUNCTION unclaim_subtasks(p_ids uuid[], p_attempt integer[], p_incarnation uuid) RETURNS SETOF change
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM lock_tasks_of(p_ids);
    RETURN QUERY
    UPDATE sub_tasks s SET incarnation = NULL, attempt = s.attempt - 1,
        fallback_attempts = array_remove(s.fallback_attempts, s.attempt)
    FROM unnest(p_ids, p_attempt) AS o (id, attempt)
    WHERE s.id = o.id AND s.attempt = o.attempt AND s.status = 'QUEUED' AND s.incarnation = p_incarnation
    RETURNING 'queued', s.id, s.parent_id, s.user_id, s.shape, s.score, NULL::text;
END $$
----
REVOKE ALL ON FUNCTION unclaim_subtasks(uuid[], integer[], uuid) FROM PUBLIC
