-- Dead letters, and the way back from BLOCKED. Statements are separated by a line of four dashes. The rules of writers
-- stand at the head of 0001_functions.sql.
CREATE TABLE dead_letters (
    -- The id of the subtask. One that is retried and BLOCKED again is the same letter, open again.
    id uuid PRIMARY KEY REFERENCES sub_tasks (id) ON DELETE CASCADE,
    task_id uuid NOT NULL,
    user_id uuid NOT NULL,
    subtask text NOT NULL,
    tool text NOT NULL,
    code text NOT NULL,
    -- The same for equal causes.
    fingerprint text NOT NULL,
    error jsonb NOT NULL,
    attempts integer NOT NULL,
    status text NOT NULL CONSTRAINT ck_dead_letters_status CHECK (status IN ('open', 'retried', 'discarded')),
    -- When the subtask became BLOCKED, the last time.
    at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Since when nothing can come of it any more; from then on its time of retention runs. An open letter is so when its
    -- task is over, or when it can never be retried: see retry_subtasks.
    settled_at timestamptz,
    -- Whether the stream in Redis has been told.
    mirrored boolean NOT NULL DEFAULT false,
    CONSTRAINT ck_dead_letters_settled CHECK (status = 'open' OR settled_at IS NOT NULL)
)
----
CREATE INDEX ix_dead_letters_user_id_at ON dead_letters (user_id, at DESC, id DESC)
----
CREATE INDEX ix_dead_letters_user_id_status_at ON dead_letters (user_id, status, at DESC, id DESC)
----
CREATE INDEX ix_dead_letters_user_id_fingerprint_at ON dead_letters (user_id, fingerprint, status, at DESC, id DESC)
----
CREATE INDEX ix_dead_letters_task_id ON dead_letters (task_id)
----
CREATE INDEX ix_dead_letters_settled ON dead_letters (settled_at) WHERE settled_at IS NOT NULL
----
CREATE INDEX ix_dead_letters_unmirrored ON dead_letters (at) WHERE NOT mirrored
----
-- What makes two failures one cause: the tool, the code, and the message without what differs from case to case
-- (addresses, UUIDs, what stands in quotes, hexadecimal and other numbers). An apostrophe inside a word opens no quote.
CREATE FUNCTION letter_fingerprint(p_tool text, p_code text, p_message text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    v_words text := left(coalesce(p_message, ''), 2000);
BEGIN
    v_words := regexp_replace(v_words, '\m[a-z][a-z0-9+.-]*://[^\s''"`<>]+', '<url>', 'gi');
    v_words := regexp_replace(v_words, '[[:alnum:]_.+-]+@[[:alnum:].-]+', '<mail>', 'g');
    v_words := regexp_replace(v_words, '\m[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\M', '#', 'gi');
    v_words := regexp_replace(v_words, '"[^"]*"|`[^`]*`|(?<![[:alnum:]])''[^'']*''(?![[:alnum:]])', '<text>', 'g');
    v_words := regexp_replace(v_words, '\m(0x[0-9a-f]+|(?=[a-f]*[0-9])[0-9a-f]{8,})\M', '#', 'gi');
    v_words := regexp_replace(v_words, '[0-9]+([.,:][0-9]+)*', '#', 'g');
    v_words := regexp_replace(v_words, '\s+', ' ', 'g');
    RETURN left(encode(sha256(convert_to(
        coalesce(p_tool, '') || E'\n' || coalesce(p_code, '') || E'\n' || v_words, 'UTF8')), 'hex'), 16);
END $$
----
-- Whether a BLOCKED subtask can never run again: it is missing, its dependents have run without it; or it was rejected
-- before its first attempt, and a retry would go past the approval.
CREATE FUNCTION is_beyond_retry(p_stand_in jsonb, p_attempt integer) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT p_stand_in IS NOT NULL OR p_attempt = 0
$$
----
-- The cause is that of the tool that failed last: that of the fallback, if it came to that.
CREATE FUNCTION keep_dead_letter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO dead_letters AS l (id, task_id, user_id, subtask, tool, code, fingerprint, error, attempts, status, at, updated_at, settled_at)
    VALUES (NEW.id, NEW.parent_id, NEW.user_id, NEW.key, NEW.tool, coalesce(NEW.error ->> 'code', ''),
        letter_fingerprint(CASE WHEN NEW.on_fallback THEN NEW.fallback_tool ELSE NEW.tool END,
            NEW.error ->> 'code', NEW.error ->> 'message'),
        NEW.error, NEW.attempt, 'open', now(), now(),
        CASE WHEN is_beyond_retry(NEW.stand_in, NEW.attempt) THEN now() END)
    ON CONFLICT (id) DO UPDATE SET tool = excluded.tool, code = excluded.code, fingerprint = excluded.fingerprint,
        error = excluded.error, attempts = excluded.attempts, status = 'open', at = now(), updated_at = now(),
        settled_at = excluded.settled_at, mirrored = false;
    RETURN NULL;
END $$
----
CREATE TRIGGER sub_tasks_dead_letter AFTER UPDATE OF status ON sub_tasks FOR EACH ROW
    WHEN (NEW.status = 'BLOCKED' AND OLD.status <> 'BLOCKED') EXECUTE FUNCTION keep_dead_letter()
----
CREATE FUNCTION settle_retried_letter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE dead_letters l SET status = 'retried', updated_at = now(), settled_at = now() WHERE l.id = NEW.id;
    RETURN NULL;
END $$
----
CREATE TRIGGER sub_tasks_letter_retried AFTER UPDATE OF status ON sub_tasks FOR EACH ROW
    WHEN (OLD.status = 'BLOCKED' AND NEW.status <> 'BLOCKED') EXECUTE FUNCTION settle_retried_letter()
----
-- Whether what is BLOCKED of a task could go on. One whose deadline has ended it has lost subtasks for good; one whose
-- deadline has passed otherwise would be ended by it at once.
CREATE FUNCTION may_be_retried(p_status text, p_error jsonb, p_deadline_at timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT (p_status = 'PROCESSING'
            OR (p_status = 'FAILED' AND coalesce(p_error ->> 'code', '') <> 'DEADLINE_EXCEEDED'))
        AND (p_deadline_at IS NULL OR p_deadline_at > now())
$$
----
CREATE FUNCTION settle_letters_of_task() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE dead_letters l SET updated_at = now(), settled_at = now() WHERE l.task_id = NEW.id AND l.settled_at IS NULL;
    RETURN NULL;
END $$
----
CREATE TRIGGER tasks_letters_settled AFTER UPDATE OF status ON tasks FOR EACH ROW
    WHEN (NEW.blocked_count > 0 AND OLD.status <> NEW.status AND (NEW.status IN ('COMPLETED', 'CANCELLED')
        OR (NEW.status = 'FAILED' AND NEW.error ->> 'code' = 'DEADLINE_EXCEEDED')))
    EXECUTE FUNCTION settle_letters_of_task()
----
-- BLOCKED subtasks whose letters are open run again, with all their retries anew; what was SKIPPED for their sake alone
-- is READY again; a task that had FAILED goes on. What was on its fallback begins with its own tool again (see
-- sub_tasks_leave_fallback); what somebody has approved needs no other approval, and what is revived asks when its time
-- comes. Those that can't are left alone. Only by index, as follow_blocked.
CREATE FUNCTION retry_subtasks(p_ids uuid[], p_reason text) RETURNS SETOF change LANGUAGE plpgsql
SET enable_hashjoin = off SET enable_mergejoin = off AS $$
DECLARE
    v_ids uuid[];
    v_tasks uuid[];
BEGIN
    PERFORM lock_tasks_of(p_ids);
    SELECT array_agg(DISTINCT s.id), array_agg(DISTINCT s.parent_id) INTO v_ids, v_tasks
    FROM unnest(p_ids) AS a (id)
    JOIN sub_tasks s ON s.id = a.id AND s.status = 'BLOCKED' AND NOT is_beyond_retry(s.stand_in, s.attempt)
    JOIN dead_letters l ON l.id = s.id AND l.status = 'open'
    JOIN tasks t ON t.id = s.parent_id AND may_be_retried(t.status, t.error, t.deadline_at);
    IF v_ids IS NULL THEN
        RETURN;
    END IF;
    WITH reopened AS (
        UPDATE tasks t SET status = 'PROCESSING', error = NULL, finished_at = NULL
        WHERE t.id = ANY (v_tasks) AND t.status = 'FAILED'
        RETURNING t.id
    )
    INSERT INTO task_events (task_id, kind, from_status, to_status, reason)
    SELECT r.id, 'task', 'FAILED', 'PROCESSING', p_reason FROM reopened r;

    RETURN QUERY
    WITH again AS (
        UPDATE sub_tasks s SET status = 'QUEUED', retry_count = 0, error = NULL, finished_at = NULL, queued_at = now()
        WHERE s.id = ANY (v_ids) AND s.status = 'BLOCKED'
        RETURNING s.id, s.parent_id, s.user_id, s.key, s.shape, s.score, s.attempt
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, attempt, reason)
        SELECT a.parent_id, 'subtask', a.key, 'BLOCKED', 'QUEUED', nullif(a.attempt, 0), p_reason FROM again a
    ), tallied AS (
        UPDATE tasks t SET open_count = t.open_count + a.n, blocked_count = t.blocked_count - a.n
        FROM (SELECT parent_id, count(*) AS n FROM again GROUP BY parent_id) a WHERE t.id = a.parent_id
    )
    SELECT 'queued', a.id, a.parent_id, a.user_id, a.shape, a.score, NULL::text FROM again a;

    IF NOT EXISTS (SELECT FROM sub_tasks s WHERE s.id = ANY (v_ids) AND s.dependents <> '{}') THEN
        RETURN;
    END IF;
    -- Below what is still BLOCKED, and not missing, all stays SKIPPED. What is revived counts anew what it waits for: while
    -- it was SKIPPED nobody counted what was done.
    WITH RECURSIVE below (id) AS (
        SELECT d.id FROM sub_tasks s, unnest(s.dependents) AS d (id) WHERE s.id = ANY (v_ids)
        UNION
        SELECT d.id FROM below b JOIN sub_tasks s ON s.id = b.id AND s.status = 'SKIPPED', unnest(s.dependents) AS d (id)
    ), held (id) AS (
        SELECT d.id FROM sub_tasks s, unnest(s.dependents) AS d (id)
        WHERE s.parent_id = ANY (v_tasks) AND s.status = 'BLOCKED' AND s.stand_in IS NULL
        UNION
        SELECT d.id FROM held h JOIN sub_tasks s ON s.id = h.id AND s.status = 'SKIPPED', unnest(s.dependents) AS d (id)
    ), free AS (
        SELECT b.id FROM below b EXCEPT SELECT h.id FROM held h
    ), revived AS (
        UPDATE sub_tasks s SET status = 'READY', finished_at = NULL, pending_dependencies = (
            SELECT count(*) FROM jsonb_array_elements_text(s.dependencies) AS d (key)
            JOIN sub_tasks p ON p.parent_id = s.parent_id AND p.key = d.key
            WHERE p.status <> 'COMPLETED' AND (p.status <> 'BLOCKED' OR p.stand_in IS NULL))
        FROM free f WHERE s.id = f.id AND s.status = 'SKIPPED'
        RETURNING s.parent_id, s.key
    ), told AS (
        INSERT INTO task_events (task_id, kind, subtask, from_status, to_status, reason)
        SELECT r.parent_id, 'subtask', r.key, 'SKIPPED', 'READY', 'what it was skipped for is retried' FROM revived r
    )
    UPDATE tasks t SET open_count = t.open_count + r.n
    FROM (SELECT parent_id, count(*) AS n FROM revived GROUP BY parent_id) r WHERE t.id = r.parent_id;
END $$
----
-- Put open letters away: their subtasks stay BLOCKED. Answers those that it put away.
CREATE FUNCTION discard_letters(p_ids uuid[]) RETURNS SETOF uuid LANGUAGE plpgsql AS $$
BEGIN
    -- So that nobody retries meanwhile what is being discarded.
    PERFORM lock_tasks_of(p_ids);
    RETURN QUERY
    UPDATE dead_letters l SET status = 'discarded', updated_at = now(), settled_at = now()
    WHERE l.id = ANY (p_ids) AND l.status = 'open'
    RETURNING l.id;
END $$
----
INSERT INTO dead_letters (id, task_id, user_id, subtask, tool, code, fingerprint, error, attempts, status, at, updated_at, settled_at)
SELECT s.id, s.parent_id, s.user_id, s.key, s.tool, coalesce(s.error ->> 'code', ''),
    letter_fingerprint(CASE WHEN s.on_fallback THEN s.fallback_tool ELSE s.tool END, s.error ->> 'code', s.error ->> 'message'),
    s.error, s.attempt, 'open', s.finished_at, now(),
    CASE WHEN is_beyond_retry(s.stand_in, s.attempt) OR NOT (t.status = 'PROCESSING'
        OR (t.status = 'FAILED' AND coalesce(t.error ->> 'code', '') <> 'DEADLINE_EXCEEDED')) THEN now() END
FROM sub_tasks s JOIN tasks t ON t.id = s.parent_id WHERE s.status = 'BLOCKED'
