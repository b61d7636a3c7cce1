"""How an attempt ended, as a value that crosses processes: an attempt never raises, it returns one of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayloom.dag.errors import ErrorInfo

Verdict = Literal["succeeded", "failed", "timed_out", "cancelled", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one attempt.

    ``verdict`` says how it ended; ``output`` is the JSON text of what it produced (only when succeeded), ready for
    the database, and ``output_size`` the bytes of that; an output that is too large for a row is in the blob store,
    and ``output_blob`` is its name there, in place of ``output``. ``error`` is why it did not. ``log`` is the
    attempt's own lines as text, from their beginning. ``tokens_used``: all that it used; ``model_tokens``: those of
    them that calls of models used, which the ledger has counted already. ``called``: its tool was called, as far as its
    worker could say. ``spans`` is the JSON text of its pieces (phases, calls). Times are seconds since the epoch, taken
    on the worker's clock. ``ray_task_id``: empty where nothing was handed to Ray.
    """

    verdict: Verdict
    output: str | None = None
    output_size: int = 0
    output_blob: str = ""
    error: ErrorInfo | None = None
    started_at: float = 0.0
    finished_at: float = 0.0
    stdout: str = ""
    stderr: str = ""
    log: str = ""
    tokens_used: int = 0
    model_tokens: int = 0
    spans: str = "[]"
    worker_id: str = ""
    node_id: str = ""
    ray_task_id: str = ""
    called: bool = False

    @property
    def is_from_worker(self) -> bool:
        """Whether a worker gave this outcome. Else the scheduler made it, for an attempt whose worker could not."""
        return bool(self.worker_id)

    @property
    def tool_tokens(self) -> int:
        """What its tool said that it used: to be counted at the end of the attempt, as nobody else has."""
        return max(self.tokens_used - self.model_tokens, 0)
