"""From the end of a watched child to the result of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from rayloom.tools.sandbox.sandbox import KILLED, OutFile, RunResult, RunSpec
from rayloom.tools.sandbox.supervisor import Child, Verdict

_NOTES: Final[Mapping[Verdict, str]] = {
    "flood": "killed: it printed without end",
    "memory": "killed: it used more memory than its limit",
    "processes": "killed: it ran more processes than its limit",
}


def result_of(
    child: Child,
    spec: RunSpec,
    verdict: Verdict,
    *,
    duration_ms: int,
    files: Mapping[str, OutFile],
    left_out: Sequence[str],
    backend: str,
) -> RunResult:
    """The result of a run whose child is closed. What we did to it is said at the end of its stderr."""
    exit_code = child.exit_code if verdict == "exited" and child.exit_code is not None else KILLED
    stderr = child.stderr.text()
    notes = [_NOTES[verdict]] if verdict in _NOTES else []
    if left_out:
        notes.append(f"{len(left_out)} files left out, for example {left_out[0][:200]!r}")
    for note in notes:
        spec.on_line("stderr", f"[sandbox] {note}")
        stderr += ("" if not stderr or stderr.endswith("\n") else "\n") + f"[sandbox] {note}\n"
    return RunResult(
        exit_code=exit_code,
        stdout=child.stdout.text(),
        stderr=stderr,
        truncated=child.stdout.truncated or child.stderr.truncated or bool(left_out),
        timed_out=verdict == "timed_out",
        oom=verdict == "memory",
        duration_ms=duration_ms,
        backend=backend,
        files=files,
    )
