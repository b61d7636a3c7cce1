-- What tools keep in the blob store, and which tools a key may use. Statements are separated by a line of four dashes.
CREATE TABLE tool_blobs (
    tool_id uuid NOT NULL REFERENCES tools (id) ON DELETE CASCADE,
    -- The reference holds a blob: it can't be collected while a tool names it.
    sha256 text NOT NULL REFERENCES blobs (sha256),
    CONSTRAINT pk_tool_blobs PRIMARY KEY (tool_id, sha256)
)
----
CREATE INDEX ix_tool_blobs_sha256 ON tool_blobs (sha256)
----
ALTER TABLE api_keys
    -- {"allow": [globs], "deny": [globs]}; null: all. And the highest permission level; null: what the role allows.
    ADD COLUMN tools jsonb,
    ADD COLUMN max_level text CONSTRAINT ck_api_keys_max_level CHECK (max_level IN ('read', 'write', 'execute', 'admin'))
----
-- The key that it was submitted with, for the audit. Without a reference, which every submission would have to check: keys
-- are revoked, and never removed.
ALTER TABLE tasks ADD COLUMN api_key_id uuid
