"""What the scheduler hands to a worker: one attempt, complete and picklable."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOrder:
    """One attempt of one subtask.

    ``input`` is the JSON text of the plan's input, references unresolved; ``referred``: the subtasks
    whose outputs it refers to. ``registry_version``: the worker's list of
    tools must be at least this new. ``running``: the row is RUNNING already; else the worker says so when it has begun.
    """

    sub_task_id: str
    task_id: str
    user_id: str
    key: str
    tool: str
    registry_version: int
    attempt: int
    timeout_s: float
    input: str
    referred: tuple[str, ...]
    running: bool

    @property
    def ray_name(self) -> str:
        """The name of the attempt's Ray task (contract section 4)."""
        return f"{self.task_id}:{self.key}"
