"""The hands: scheduler, tool registry, token controller and the Ray tasks that run attempts."""
