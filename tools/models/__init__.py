"""Models behind OpenAI-compatible endpoints: calls, answers, tokens, and what they cost."""
