"""A token controller that holds whom the test names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rayloom.dag.errors import Transient
from rayloom.dag.ports import Ask, Finished, Held


class ScriptedTokens:
    """``AdmissionPort``. ``holds``: subtasks that must wait, ``wait_s`` each. ``away``: no answer. ``breaks``: what it
    raises. ``on_ask``: done before it answers. ``finished``: what it was told."""

    def __init__(self) -> None:
        self.holds: set[str] = set()
        self.wait_s = 0.0
        self.alone = False
        self.away = False
        self.breaks: BaseException | None = None
        self.on_ask: Callable[[], None] = lambda: None
        self.calls = 0
        self.finished: list[Finished] = []

    async def admit(self, asked: Sequence[Ask], finished: Sequence[Finished]) -> Sequence[Held]:
        """See `AdmissionPort`."""
        if self.away:
            raise Transient("ACTOR_UNAVAILABLE", "the token controller does not answer")
        if self.breaks is not None:
            raise self.breaks
        self.on_ask()
        self.calls += 1
        self.finished += finished
        held = [ask.sub_task_id for ask in asked if ask.sub_task_id in self.holds]
        return [
            Held(
                sub_task_id=id_,
                limit="max_concurrent",
                ask_again_in_s=self.wait_s,
                free_in_s=self.wait_s,
                alone=self.alone,
            )
            for id_ in held
        ]
