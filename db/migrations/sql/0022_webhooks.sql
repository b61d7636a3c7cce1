-- A pending webhook can be cancelled, and a host that does not resolve is given up after an hour. Statements are
-- separated by a line of four dashes.
ALTER TABLE webhooks DROP CONSTRAINT ck_webhooks_status
----
ALTER TABLE webhooks ADD CONSTRAINT ck_webhooks_status
    CHECK (status IN ('pending', 'delivered', 'failed', 'cancelled'))
----
-- Since when every attempt failed because the name of the host did not resolve.
ALTER TABLE webhooks ADD COLUMN unresolved_since timestamptz
----
CREATE INDEX ix_webhooks_user_id ON webhooks (user_id, id)
