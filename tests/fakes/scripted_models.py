"""Models that say what the test says, in turn, and raise once they have nothing left to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayloom.dag.errors import AnswerInvalid, ErrorInfo
from rayloom.dag.model import Completion, ModelRequest, ModelUse, ModelView, Role
from rayloom.dag.values import JsonObject
from rayloom.tools.call import schema_faults

Answer = str | BaseException | Callable[[ModelRequest], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldCall:
    """`rayloom.tools.models.metered.CallRecord`, as far as it is looked at."""

    purpose: str
    use: ModelUse
    error: ErrorInfo | None = None
    started_at: float = 1.0

    @property
    def is_ok(self) -> bool:
        return self.error is None

    @property
    def attributes(self) -> JsonObject:
        return {"model": "scripted", "tokens_in": self.use.tokens_in, "tokens_out": self.use.tokens_out}

    @property
    def line(self) -> str:
        return f"{self.purpose}: scripted"


@dataclass
class ScriptedModels:
    """``ModelPort``. A text is an answer, an exception is raised, a callable makes an answer of the request.

    A token is a word. ``views``: those of single roles; ``asked``: the requests so far.
    """

    answers: Sequence[Answer] = ()
    context_tokens: int = 4_000
    answer_tokens: int = 500
    views: dict[str, ModelView] = field(default_factory=dict)
    finish: Any = "stop"
    asked: list[ModelRequest] = field(default_factory=list)
    on_call: Callable[[Any], None] = lambda _call: None
    use: ModelUse = field(default_factory=ModelUse)

    def view(self, role: Role) -> ModelView:
        plain = ModelView(
            name="default", model="scripted", context_tokens=self.context_tokens, answer_tokens=self.answer_tokens
        )
        return self.views.get(role, plain)

    def count(self, text: str) -> int:
        return len(text.split())

    async def complete(self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None) -> Completion:
        self.asked.append(request)
        assert len(self.asked) <= len(self.answers), f"nothing is left to say to {request.messages[-1].text[:500]}"
        answer = self.answers[len(self.asked) - 1]
        text = "" if isinstance(answer, BaseException) else answer if isinstance(answer, str) else answer(request)
        use = ModelUse(tokens_in=sum(self.count(m.text) for m in request.messages), tokens_out=self.count(text))
        self.use += use
        try:
            if isinstance(answer, BaseException):
                raise answer
            value = _value(text, request.schema)
        except Exception as error:
            self.on_call(ToldCall(purpose=request.purpose, use=use, error=ErrorInfo.from_exception(error)))
            raise
        self.on_call(ToldCall(purpose=request.purpose, use=use))
        if on_text is not None:
            on_text(text)
        return Completion(
            text=text, value=value, model="default", use=use, finish=self.finish, first_text_s=0.0, duration_s=0.0
        )


def _value(text: str, schema: JsonObject | None) -> Any:
    if schema is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise AnswerInvalid("not JSON", text=text, faults=[f"not JSON: {error}"]) from None
    faults = schema_faults(schema, value, of="the answer")
    if faults:
        raise AnswerInvalid("does not fit", text=text, faults=faults)
    return value
