"""What a subtask can do: tools, sandboxes and the addresses they may reach."""
