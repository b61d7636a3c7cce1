"""How long the stages of runs took, and how often a sandbox was waiting: told to whoever wants to count it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rayloom.tools.sandbox.sandbox import LineSink, Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run, in seconds since it was asked for. ``first_output_s`` is None when nothing was printed.

    ``start_s``: until a sandbox stood; ``warm``: it had been waiting.
    """

    backend: str
    warm: bool
    start_s: float
    first_output_s: float | None
    total_s: float


class Stages:
    """Takes the times of one run."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._asked_at = time.monotonic()
        self._start_s = 0.0
        self._warm = False
        self._first_output_s: float | None = None

    def stood(self, *, warm: bool = False) -> None:
        """The sandbox stands."""
        self._start_s = time.monotonic() - self._asked_at
        self._warm = warm

    def first(self, on_line: LineSink) -> LineSink:
        """The same sink, which also takes the time of the first line."""

        def told(stream: Output, line: str) -> None:
            if self._first_output_s is None:
                self._first_output_s = time.monotonic() - self._asked_at
            on_line(stream, line)

        return told

    def tell(self) -> None:
        """The run is over."""
        run = Run(
            backend=self._backend,
            warm=self._warm,
            start_s=self._start_s,
            first_output_s=self._first_output_s,
            total_s=time.monotonic() - self._asked_at,
        )
        for listener in _listeners:
            listener(run)


_listeners: list[Callable[[Run], None]] = []


def listen(listener: Callable[[Run], None]) -> None:
    """Tell this one of every run of this process from now on; it must neither raise nor wait."""
    if listener not in _listeners:
        _listeners.append(listener)


def ignore(listener: Callable[[Run], None]) -> None:
    """Tell it no more."""
    if listener in _listeners:
        _listeners.remove(listener)
