"""MCP servers as tools: their sessions, what goes over them, and what it becomes here."""
