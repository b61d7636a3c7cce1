"""From words to a plan, as far as that is thinking and not calling: prompts, schemas, faults, minimal dependencies."""
