"""A model that says what was written down for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.planner.records import Turn
from rayloom.dag.model import Completion, ModelRequest, ModelUse, ModelView, Role

_VIEW = ModelView(name="recorded", model="recorded", context_tokens=32_768, answer_tokens=4_096)


class RecordedModels:
    """Gives its turns one after the other. One that wants to be told of faults is given to those faults only."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._left = list(turns)
        self._said = ""
        self.asked: list[ModelRequest] = []

    def view(self, role: Role) -> ModelView:
        """The same for all."""
        return _VIEW

    def count(self, text: str) -> int:
        """About one for four characters."""
        return len(text) // 4 + 1

    async def complete(self, request: ModelRequest, *, on_text: Callable[[str], None] | None = None) -> Completion:
        """The next turn; what was said before, where it was not told what that turn wants to hear."""
        self.asked.append(request)
        heard = request.messages[-1].text
        if self._left and all(word in heard for word in self._left[0].wants):
            self._said = self._left.pop(0).text
        tokens_in = sum(self.count(message.text) for message in request.messages)
        return Completion(
            text=self._said,
            value=None,
            model="recorded",
            use=ModelUse(tokens_in=tokens_in, tokens_out=self.count(self._said), is_estimated=True),
            finish="stop",
            first_text_s=0.0,
            duration_s=0.0,
        )
