"""What is known of an attempt while it runs, and the outcome that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import orjson

from rayloom.dag.cache_key import input_digest
from rayloom.dag.errors import ErrorInfo, RayloomError
from rayloom.dag.model import ModelUse
from rayloom.dag.outcome import Outcome, Verdict
from rayloom.dag.output import clean_text
from rayloom.dag.states import Phase
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.tool import ToolResult


@dataclass(frozen=True, slots=True)
class Output:
    """What was made: its JSON text, or its name in the blob store; and its size in bytes."""

    text: str | None = None
    blob: str = ""
    size: int = 0


class ModelCallTold(Protocol):
    """What is told of a call of a model when it is over: `rayloom.tools.models.metered.CallRecord`."""

    @property
    def purpose(self) -> str:
        """What it was made for."""

    @property
    def use(self) -> ModelUse:
        """What it used."""

    @property
    def started_at(self) -> float:
        """Seconds since the epoch."""

    @property
    def is_ok(self) -> bool:
        """Whether it gave an answer that is what was asked for."""

    @property
    def attributes(self) -> JsonObject:
        """What its span says: model, tokens, cost …"""

    @property
    def line(self) -> str:
        """What the log says of it."""


@dataclass(slots=True)
class AttemptRecord:
    """What is known of the attempt so far.

    ``limit``: of its text so many characters are kept. ``by``: the worker, the node and the Ray task that run it.
    """

    started_at: float
    clock: Callable[[], float]
    limit: int
    by: tuple[str, str, str]
    spans: list[JsonObject] = field(default_factory=list)
    result: ToolResult | None = None
    called: bool = False
    """Something of the tool may have run."""
    is_thought: bool = False
    """A model does it: then it has called something as soon as a model has been asked."""
    model_use: ModelUse = field(default_factory=ModelUse)
    """What calls of models used so far, whatever became of them; each was settled when it was over."""
    tool_tokens: int = 0
    """What tools that a model called said that they used."""

    @property
    def undone(self) -> Verdict:
        """How it ended when the world failed it: nothing is tried, and no retry spent, before the tool is called."""
        return "failed" if self.called else "lost"

    @contextmanager
    def phase(self, phase: Phase, tell: Callable[[Phase], None]) -> Iterator[None]:
        """The attempt is in this phase as long as the block lasts; ``tell``: whom to say so."""
        tell(phase)
        started_at, ok = self.clock(), False
        try:
            yield
            ok = True
        finally:
            self.add(phase, "phase", started_at, ok)

    @contextmanager
    def tool_call(self, name: str, version: str, input: JsonObject) -> Iterator[JsonObject]:
        """A tool is called by a model as long as the block lasts; the attributes of its span may be added to.

        It is what the audit is read from.
        """
        self.called = True
        told: JsonObject = {"version": version, "input_sha256": input_digest(input), "called": True}
        started_at, ok = self.clock(), False
        try:
            yield told
            ok = True
        except RayloomError as error:
            told["error"] = error.code
            raise
        finally:
            self.add(name, "tool", started_at, ok, **told)

    def note(self, call: ModelCallTold) -> None:
        """A call of a model is over."""
        self.called = True
        self.model_use += call.use
        self.add(call.purpose, "model", call.started_at, call.is_ok, **call.attributes)

    def add(
        self, name: str, kind: Literal["phase", "tool", "model"], started_at: float, ok: bool, **attributes: Json
    ) -> None:
        """A named, timed piece that ends now; ``started_at`` in seconds since the epoch."""
        self.spans.append(
            {
                "name": name,
                "kind": kind,
                "started_at": started_at,
                "finished_at": self.clock(),
                "ok": ok,
                "attributes": attributes,
            }
        )

    def outcome(self, verdict: Verdict, *, error: ErrorInfo | None = None, output: Output | None = None) -> Outcome:
        """The outcome that all this comes to."""
        output = output or Output()
        result, (worker_id, node_id, ray_task_id) = self.result, self.by
        return Outcome(
            verdict=verdict,
            output=output.text,
            output_size=output.size,
            output_blob=output.blob,
            error=error,
            started_at=self.started_at,
            finished_at=self.clock(),
            stdout=_head(result.stdout, self.limit) if result else "",
            stderr=_head(result.stderr, self.limit) if result else "",
            tokens_used=(result.tokens_used if result else 0) + self.tool_tokens + self.model_use.tokens,
            model_tokens=self.model_use.tokens,
            spans=orjson.dumps(self.spans).decode(),
            worker_id=worker_id,
            node_id=node_id,
            ray_task_id=ray_task_id,
            called=self.called,
        )


def _head(text: str, limit: int) -> str:
    clean = clean_text(text)
    return clean if len(clean) <= limit else clean[:limit] + f"\n… {len(clean) - limit} more characters"
