"""What the scheduler hands to a worker: one attempt, complete, and its packing.

Ray takes a quarter of a millisecond to pickle a small dataclass, as its pickler looks for functions and classes to
ship. Bytes it takes as they are: orders and outcomes cross as packed tuples of plain values.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """What only an attempt by a model must know.

    ``task_type``: REASONING or CODE_GEN. ``skills``: names of the Skills that it goes by. ``rules``: JSON text, which
    tools its task may use (`ToolScope.of`). ``key_id``: the API key that the task came with, empty where there is none.
    """

    task_type: str
    instruction: str
    skills: tuple[str, ...] = ()
    rules: str = ""
    key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOrder:
    """One attempt of one subtask.

    ``input`` is the JSON text of the plan's input, references unresolved; one that is too large for a row is in the
    blob store under ``input_blob``. ``referred``: the subtasks whose outputs it refers to. ``registry_version``: the
    worker's list of tools must be at least this new. ``running``: the row is RUNNING already; else the worker says so
    when it has begun. ``handed_at``: when the scheduler handed it over, in seconds since the epoch. ``cacheable``: the
    result of an equal call will do. ``alternative``: the tool to call, as the breaker of ``tool`` is open;
    ``breaker_wait_s``: when to try again if its input does not fit that. ``thought``: where a model does
    it in place of a tool, what it is told.
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
    handed_at: float
    cacheable: bool = False
    alternative: str = ""
    breaker_wait_s: float = 0.0
    input_blob: str = ""
    thought: Thought | None = None

    @property
    def calls(self) -> str:
        """The tool that is really called."""
        return self.alternative or self.tool

    @property
    def ray_name(self) -> str:
        """The name of the attempt's Ray task: its tool, or the type of what a model does.

        Ray's processes keep a time series for each name until they end, so names must be few.
        """
        return self.calls if self.thought is None else self.thought.task_type

    def pack(self) -> bytes:
        """The order as bytes, for ``unpack`` of the same release."""
        return pickle.dumps(tuple(getattr(self, name) for name in _FIELDS), protocol=pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpack(cls, packed: bytes) -> AttemptOrder:
        """The order that ``pack`` made. Only ever given bytes of our own scheduler."""
        return cls(**dict(zip(_FIELDS, pickle.loads(packed), strict=True)))


_FIELDS = tuple(field.name for field in fields(AttemptOrder))
