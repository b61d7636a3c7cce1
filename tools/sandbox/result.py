"""From the end of a run to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from rayloom.tools.sandbox.capture import Kept
from rayloom.tools.sandbox.sandbox import KILLED, OutFile, RunResult, RunSpec
from rayloom.tools.sandbox.supervisor import Verdict

_NOTES: Final[Mapping[Verdict, str]] = {
    "flood": "killed: it printed without end",
    "memory": "killed: it used more memory than its limit",
    "processes": "killed: it ran more processes than its limit",
    "broken": "killed: the first process of its container ended before it",
}


class Ran(Protocol):
    """What is left of a run: what it printed, and the code that it ended with, if it did so by itself."""

    @property
    def stdout(self) -> Kept:
        """Its standard output."""

    @property
    def stderr(self) -> Kept:
        """Its standard error."""

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None where there is none."""


def result_of(
    ran: Ran,
    spec: RunSpec,
    verdict: Verdict,
    *,
    duration_ms: int,
    files: Mapping[str, OutFile],
    left_out: Sequence[str],
    backend: str,
) -> RunResult:
    """The result of a run that is over. What we did to it is said at the end of its stderr."""
    told = ran.stderr.text()
    notes = [_NOTES[verdict]] if verdict in _NOTES else []
    if left_out:
        notes.append(f"{len(left_out)} files left out, for example {left_out[0][:200]!r}")
    for note in notes:
        spec.on_line("stderr", f"[sandbox] {note}")
        told += ("" if not told or told.endswith("\n") else "\n") + f"[sandbox] {note}\n"
    return RunResult(
        exit_code=ran.exit_code if verdict == "exited" and ran.exit_code is not None else KILLED,
        stdout=ran.stdout.text(),
        stderr=told,
        truncated=ran.stdout.truncated or ran.stderr.truncated or bool(left_out),
        timed_out=verdict == "timed_out",
        oom=verdict == "memory",
        duration_ms=duration_ms,
        backend=backend,
        files=files,
    )
