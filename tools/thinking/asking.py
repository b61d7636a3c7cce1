"""One question to a model: told in the log, and asked again where the answer is not what was wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from rayloom.dag.errors import AnswerInvalid, UserError
from rayloom.dag.model import Completion, Message, ModelPort, ModelRequest
from rayloom.tools.ports import LogPort

T = TypeVar("T")

REPAIRS: Final = 2
"""So many times an answer that does not fit is sent back with what is wrong with it."""
LOG_CHARS: Final = 4_000
"""Of what is asked and answered the log gets so many characters."""
SHOWN_CHARS: Final = 8_000
"""Of an answer that does not fit the model is shown so many again."""
LARGE_CHARS: Final = 200_000
"""A longer text is counted in a thread: the loop has other things to hear meanwhile."""

Check = Callable[[Completion], Sequence[str]]


def nothing_wrong(_completion: Completion) -> Sequence[str]:
    """Takes every answer."""
    return ()


async def asked(
    models: ModelPort,
    request: ModelRequest,
    log: LogPort,
    *,
    check: Check = nothing_wrong,
    explain: Callable[[str], Sequence[str]] | None = None,
) -> Completion:
    """An answer that fits the request's schema and that ``check`` finds nothing wrong with.

    ``explain``: what is wrong with a text that does not fit, where that can be told better than by the whole schema.

    Raises what ``ModelPort.complete`` raises, and UserError (``ANSWER_UNFIT``) where no repair helped: another attempt
    would ask the same again, and cost as much.
    """
    told = request
    faults: Sequence[str] = ()
    for repairs in range(REPAIRS + 1):
        tell(log, f"{told.purpose}: asked", told.messages[-1].text)
        try:
            completion = await models.complete(told)
        except AnswerInvalid as invalid:
            text = invalid.text
            faults = (explain(text) if explain else ()) or invalid.faults or (invalid.message,)
        else:
            text, faults = completion.text, check(completion)
            if not faults:
                tell(log, f"{told.purpose}: answered", text)
                return completion
        tell(log, f"{told.purpose}: answered what does not fit ({'; '.join(faults)})", text, level="WARNING")
        if repairs < REPAIRS:
            told = _with_faults(request, text, faults)
    said = "; ".join(faults)[:1_000]
    raise UserError("ANSWER_UNFIT", f"the model's answer does not fit, after {REPAIRS} repairs: {said}")


def words_of(completion: Completion) -> str:
    """What an answer says, without what its model has thought aloud first."""
    return completion.text.rpartition("</think>")[2].strip()


def _with_faults(request: ModelRequest, text: str, faults: Sequence[str]) -> ModelRequest:
    # Only the last answer: what was wrong before it would take the room of the question.
    shown = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " …"
    listed = "\n".join(f"- {fault}" for fault in faults)
    ask = f"That answer can't be used:\n{listed}\nGive the whole answer again, with this mended, and nothing else."
    said = (Message(speaker="assistant", text=shown or "(nothing)"), Message(speaker="user", text=ask))
    return replace(request, messages=(*request.messages, *said), purpose="repair")


def tell(log: LogPort, what: str, text: str, *, level: Any = "INFO") -> None:
    """A line in the stream ``model``, and under it what was said, cut to a size that a log can bear."""
    shown = text if len(text) <= LOG_CHARS else text[:LOG_CHARS] + f" … {len(text) - LOG_CHARS} more characters"
    log.line(f"{what}\n{shown}", stream="model", level=level)


async def counted(models: ModelPort, text: str) -> int:
    """How many tokens a text has."""
    if len(text) <= LARGE_CHARS:
        return models.count(text)
    return await asyncio.to_thread(models.count, text)


async def together(works: Sequence[Callable[[], Awaitable[T]]], *, at_once: int) -> list[T]:
    """What all of them give, in their order, so many at once. Where one raises, so does this, and the others stop."""
    turns = asyncio.Semaphore(at_once)

    async def in_turn(work: Callable[[], Awaitable[T]]) -> T:
        async with turns:
            return await work()

    tasks = [asyncio.ensure_future(in_turn(work)) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
