-- Webhooks. Statements are separated by a line of four dashes.
--
-- A task that was submitted with a callback_url gets a row in the outbox `webhooks` in the very statement that brings it
-- to a terminal status: whoever commits the one has committed the other, and nobody has to remember it. A scheduler
-- delivers what is there (db/webhooks.py). callback_secret is encrypted; the key is not in the database.
ALTER TABLE tasks ADD COLUMN callback_url text, ADD COLUMN callback_secret text,
    ADD CONSTRAINT ck_tasks_callback CHECK ((callback_url IS NULL) = (callback_secret IS NULL))
----
CREATE TABLE webhooks (
    -- The receiver sees it as webhook-id: the same however often it is sent. Version 7, so that the last one is the newest.
    id uuid PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    -- What there is to tell, as it was then: a FAILED task may be retried before anybody hears of it.
    task_status text NOT NULL CONSTRAINT ck_webhooks_task_status CHECK (task_status IN ('COMPLETED', 'FAILED', 'CANCELLED')),
    at timestamptz NOT NULL,
    result jsonb,
    error jsonb,
    status text NOT NULL DEFAULT 'pending' CONSTRAINT ck_webhooks_status CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts integer NOT NULL DEFAULT 0,
    -- When it is sent again. While it is being sent: when whoever sends it is taken for dead.
    next_at timestamptz NOT NULL DEFAULT now(),
    last_error text,
    delivered_at timestamptz,
    CONSTRAINT ck_webhooks_delivered CHECK ((status = 'delivered') = (delivered_at IS NOT NULL))
)
----
CREATE INDEX ix_webhooks_task_id ON webhooks (task_id, id)
----
CREATE INDEX ix_webhooks_due ON webhooks (next_at) WHERE status = 'pending'
----
-- A UUID of version 7 (RFC 9562): 48 bits of milliseconds, the version, and what chance gave.
CREATE FUNCTION webhook_id() RETURNS uuid LANGUAGE sql VOLATILE AS $$
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        PLACING substring(int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3) FROM 1 FOR 6),
        52, 1), 53, 1), 'hex')::uuid
$$
----
CREATE FUNCTION post_webhook() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO webhooks (id, task_id, user_id, task_status, at, result, error)
    VALUES (webhook_id(), NEW.id, NEW.user_id, NEW.status, NEW.finished_at, NEW.result, NEW.error);
    RETURN NULL;
END $$
----
-- The condition stands in the trigger: a task without a callback costs no function call.
CREATE TRIGGER tasks_webhook AFTER UPDATE OF status ON tasks FOR EACH ROW
WHEN (NEW.callback_url IS NOT NULL AND OLD.status <> NEW.status AND NEW.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
EXECUTE FUNCTION post_webhook()
