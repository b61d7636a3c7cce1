"""What was promised, by what it is about. A rule takes a case and gives its violations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.chaos.case import Case, Violation

Rules = tuple[Callable[[Case], Iterator[Violation]], ...]
