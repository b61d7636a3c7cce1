"""What the demonstration's sandboxed subtasks run, and the template of its report."""
