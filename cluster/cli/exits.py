"""The exit codes of the command line; scripts rely on them."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. 130, the shell's code for Ctrl-C, comes from the shell's own convention."""

    OK = 0
    ERROR = 1
    USAGE = 2
    TASK_FAILED = 3
    TASK_CANCELLED = 4
    INTERRUPTED = 130


_OF_STATUS = {"FAILED": ExitCode.TASK_FAILED, "CANCELLED": ExitCode.TASK_CANCELLED}


def exit_of(status: object) -> ExitCode:
    """The exit code of a command that waited for a task, from the task's status."""
    return _OF_STATUS.get(str(status), ExitCode.OK)
