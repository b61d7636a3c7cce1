"""PostgreSQL and Redis of our own: real servers from packages, run as children of `rayloom up`."""
