"""rayloom as an MCP server: an assistant uses it as a tool."""
