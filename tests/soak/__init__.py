"""Soak runs: many subtasks, and the memory of every process meanwhile."""
