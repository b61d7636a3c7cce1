-- The usage of a user is read by an index. Statements are separated by a line of four dashes.
--
-- An attempt whose tool used tokens names the user who pays for them. Most attempts use none: their user_id stays null,
-- which takes no space in the row and none in the index.
ALTER TABLE execution_logs ADD COLUMN user_id uuid
----
UPDATE execution_logs l SET user_id = t.user_id FROM tasks t WHERE t.id = l.task_id AND l.tokens_used > 0
----
CREATE INDEX ix_execution_logs_user_id ON execution_logs (user_id, start_time) WHERE user_id IS NOT NULL
----
CREATE FUNCTION name_payer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.user_id := (SELECT t.user_id FROM tasks t WHERE t.id = NEW.task_id);
    RETURN NEW;
END $$
----
-- The condition stands in the trigger: an attempt without tokens costs no function call.
CREATE TRIGGER execution_logs_payer BEFORE INSERT ON execution_logs FOR EACH ROW
WHEN (NEW.tokens_used > 0) EXECUTE FUNCTION name_payer()
