"""The splitter against records of prompts, tools and the graphs that they should give."""
