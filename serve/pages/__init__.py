"""The pages and styles that are served, as files."""
