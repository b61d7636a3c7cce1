"""The tools that ship with rayloom, one file a family."""
