-- MCP servers. The role of the workers gets nothing here: only the host of their sessions reads what is in `secrets`.
CREATE TABLE mcp_servers (
    name text PRIMARY KEY,
    transport text NOT NULL CONSTRAINT ck_mcp_servers_transport CHECK (transport IN ('stdio', 'http', 'sse')),
    spec jsonb NOT NULL,
    -- env, headers and auth as encrypted JSON.
    secrets text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    health text NOT NULL DEFAULT 'unknown' CONSTRAINT ck_mcp_servers_health CHECK (health IN ('ok', 'offline', 'unknown')),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
----
-- Whose tool it is; null for all but those of MCP servers, which go with their server.
ALTER TABLE tools ADD COLUMN server text CONSTRAINT fk_tools_server REFERENCES mcp_servers (name) ON DELETE CASCADE
----
CREATE INDEX ix_tools_server ON tools (server) WHERE server IS NOT NULL
