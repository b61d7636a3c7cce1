-- Tools that an admin switched off, that their server does not list at present: by endpoint, as their rows are gone.
ALTER TABLE mcp_servers ADD COLUMN off text[] NOT NULL DEFAULT '{}'::text[]
