"""The command line: ``rayloom``. Every command is a thin layer over the Python client or over one function."""

from rayloom.cluster.cli.program import main

__all__ = ["main"]
