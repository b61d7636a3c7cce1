"""What models do as subtasks: REASONING and CODE_GEN. Knows what a model is asked, not who pays for it."""
