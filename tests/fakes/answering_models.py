"""Models that answer by a script: texts, errors, or what a function makes of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rayloom.dag.model import Completion, ModelRequest, ModelUse, ModelView, Role

PIECE_CHARS = 8
Step = str | Exception | Callable[[ModelRequest], Completion]


class AnsweringModels:
    """A `ModelPort` that takes the steps of its script in turn, the last one again and again."""

    def __init__(self, *script: Step, context_tokens: int = 32_768, price_out: float = 0.0) -> None:
        self.script = list(script)
        self.asked: list[ModelRequest] = []
        self._view = ModelView(
            name="scripted", model="m", context_tokens=context_tokens, answer_tokens=1_000, price_out=price_out
        )

    def view(self, role: Role) -> ModelView:
        return self._view

    def count(self, text: str) -> int:
        return len(text)

    async def complete(self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None) -> Completion:
        self.asked.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        answer = completion(step) if isinstance(step, str) else step(request)
        if on_text is not None:
            for at in range(0, len(answer.text), PIECE_CHARS):
                on_text(answer.text[at : at + PIECE_CHARS])
                # Whoever listens may do something about each piece.
                await asyncio.sleep(0)
        return answer


def completion(text: str, *, is_cut: bool = False) -> Completion:
    """An answer that took ten tokens in and five out."""
    return Completion(
        text=text,
        value=None,
        model="scripted",
        use=ModelUse(tokens_in=10, tokens_out=5),
        finish="length" if is_cut else "stop",
        first_text_s=0.1,
        duration_s=0.2,
    )
