"""An answer as it comes: piece by piece, within its times and its size, with what the endpoint says of its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeVar

from rayloom.dag.errors import Transient
from rayloom.tools.models.failures import BROKE_OFF, SILENT
from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.models.tokens import without_surrogates

T = TypeVar("T")

_END: Final = object()
_AFTERWARDS_S: Final = 5.0


@dataclass(slots=True)
class Heard:
    """What of an answer has come so far.

    ``finish``: the endpoint's word for why it ended; empty: none yet. ``is_cut``: we stopped listening, as it was too
    long. ``thought_bytes``: what it thought aloud, or refused, and is no part of the answer.
    """

    pieces: list[str] = field(default_factory=list)
    size_bytes: int = 0
    thoughts: list[str] = field(default_factory=list)
    thought_bytes: int = 0
    refusals: list[str] = field(default_factory=list)
    finish: str = ""
    is_cut: bool = False
    usage: Mapping[str, Any] | None = None
    first_text_at: float | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)

    @property
    def spoken(self) -> str:
        """All that was made and has to be paid for."""
        return "".join(self.thoughts) + self.refusal + self.text

    @property
    def refusal(self) -> str:
        """What it said in place of an answer."""
        return "".join(self.refusals)


async def listen(
    events: AsyncIterator[Any],
    heard: Heard,
    settings: ModelSettings,
    *,
    first_by: float,
    max_bytes: int,
    on_text: Callable[[str], None] | None,
) -> None:
    """Hear an answer to its end, or until it has ``max_bytes``.

    ``first_by``: when its first piece is due, by the monotonic clock. Raises Transient (``MODEL_SILENT``,
    ``MODEL_BROKE_OFF``), and what the SDK and ``on_text`` raise.
    """
    due = first_by
    while not heard.is_cut:
        try:
            event = await _next(events, due, settings, is_first=heard.first_text_at is None)
        except Transient:
            if heard.finish:
                return
            raise
        if event is _END:
            return
        if _take(event, heard, max_bytes, on_text):
            if heard.first_text_at is None:
                heard.first_text_at = monotonic()
            due = monotonic() + settings.silence_s
        if heard.finish:
            # The answer is whole. What it has used is still to come, or not.
            due = min(due, monotonic() + _AFTERWARDS_S)


async def _next(events: AsyncIterator[Any], due: float, settings: ModelSettings, *, is_first: bool) -> Any:
    try:
        return await within(anext(events, _END), due, settings, is_first=is_first)
    except (ValueError, RecursionError) as error:
        raise Transient(BROKE_OFF, f"{settings.shown} sent what is no event: {type(error).__name__}") from None


async def within(wanted: Awaitable[T], due: float, settings: ModelSettings, *, is_first: bool) -> T:
    """What is waited for, if it comes by then. Raises Transient (``MODEL_SILENT``)."""
    limit = asyncio.timeout_at(asyncio.get_running_loop().time() + due - monotonic())
    try:
        async with limit:
            return await wanted
    except TimeoutError:
        if not limit.expired():
            raise
        silence = f"nothing for {settings.first_text_s:g} s" if is_first else f"no more for {settings.silence_s:g} s"
        raise Transient(SILENT, f"{settings.shown} said {silence}") from None


def _take(event: object, heard: Heard, max_bytes: int, on_text: Callable[[str], None] | None) -> bool:
    """Write down what an event says. Whether it says anything: an endpoint may well send empty ones for ever."""
    if not isinstance(event, Mapping):
        return False
    usage = event.get("usage")
    if isinstance(usage, Mapping):
        heard.usage = usage
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, Mapping):
        return False
    finish, delta = choice.get("finish_reason"), choice.get("delta")
    heard.finish = finish if isinstance(finish, str) else heard.finish
    if not isinstance(delta, Mapping):
        return False
    refusal, text = delta.get("refusal"), delta.get("content")
    thought = delta.get("reasoning_content") or delta.get("reasoning")
    if isinstance(refusal, str) and refusal:
        heard.refusals.append(refusal)
        heard.thought_bytes += len(refusal.encode(errors="replace"))
    if isinstance(thought, str) and thought:
        heard.thoughts.append(thought)
        heard.thought_bytes += len(thought.encode(errors="replace"))
    # What is no part of the answer was not held to its limit either.
    heard.is_cut = heard.thought_bytes > max_bytes
    if isinstance(text, str) and text:
        _hear(text, heard, max_bytes, on_text)
    return bool(text or thought or refusal)


def _hear(text: str, heard: Heard, max_bytes: int, on_text: Callable[[str], None] | None) -> None:
    text = without_surrogates(text)
    data = text.encode()
    room = max_bytes - heard.size_bytes
    if len(data) > room:
        heard.is_cut = True
        text = data[:room].decode(errors="ignore")
    heard.pieces.append(text)
    heard.size_bytes += min(len(data), room)
    if on_text is not None and text:
        on_text(text)
