"""The splitter with a model: asks for a plan, has what is wrong with it mended, and gives up after two rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

from rayloom.dag.errors import AnswerInvalid, Fault, RayloomError, UserError
from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.model import Message, ModelPort, ModelRequest
from rayloom.dag.outline_cues import language_of
from rayloom.dag.plan import subtasks_of
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.more import judge_more, more_messages
from rayloom.dag.planning.prompt import begun_message, plan_messages
from rayloom.dag.planning.repair import MAX_ROUNDS, repair_messages, shown
from rayloom.dag.planning.schema import plan_schema
from rayloom.dag.planning.select import MAX_SHOWN, fitting, select
from rayloom.dag.planning.small import small_messages, small_schema
from rayloom.dag.planning.verdict import Verdict, judge
from rayloom.dag.planning.written import ids_of
from rayloom.dag.quoted import disarmed
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.tried import PlanCall, Tried

SMALL_CONTEXT_TOKENS: Final = 8_192
SHOWN_IF_SMALL: Final = 8
"""Tools that a model is shown whose context is no larger."""
SHOWN_AT_LEAST: Final = 4
"""What is tried last where prompt and tools are too long together."""
TOO_LONG: Final = "CONTEXT_TOO_LONG"

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hearing:
    """Who hears a first answer while it is written. ``begun``: the ids of what has been let begin of it so far."""

    on_text: Callable[[str], None] | None = None
    begun: Callable[[], Sequence[str]] = tuple


DEAF: Final = Hearing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a model made of a prompt. ``repairs``: rounds after the first answer. ``notes``: what happened on the way.

    ``verdict`` is of the last answer: where that still has faults there is no plan.
    """

    verdict: Verdict
    repairs: int
    notes: tuple[str, ...]
    calls: tuple[PlanCall, ...]

    @property
    def tried(self) -> Tried:
        """The same, for whoever tells that no plan came of it."""
        return Tried(notes=self.notes, calls=self.calls)


class Planner:
    """Plans prompts with a model. ``models``: on the account of whoever wants the plan."""

    def __init__(self, models: ModelPort, *, rounds: int = MAX_ROUNDS, clock: Clock = perf_counter) -> None:
        self._models, self._rounds, self._clock = models, rounds, clock

    async def draft(self, request: PlanRequest, hearing: Hearing = DEAF) -> Draft:
        """A plan of a prompt, questions, or what is wrong with the last of several tries.

        ``hearing`` hears the first answer while it is written. Goes on from what was ``tried`` already. Raises what
        `ModelPort.complete` raises, but AnswerInvalid; such an error says what was tried.
        """
        return await self._drafted(request, None, hearing)

    async def redraft(self, request: ReplanRequest) -> Draft:
        """What to add to a plan that runs, or what is wrong with the last of several tries. Raises as ``draft``."""
        return await self._drafted(request.request, request, DEAF)

    async def _drafted(self, request: PlanRequest, more: ReplanRequest | None, hearing: Hearing) -> Draft:
        is_small = self._models.view("planner").context_tokens <= SMALL_CONTEXT_TOKENS
        most = SHOWN_IF_SMALL if is_small else MAX_SHOWN
        while True:
            try:
                drafting = _Drafting(self._models, request, more, most, self._clock, hearing, is_small=is_small)
                return await drafting.run(self._rounds)
            except UserError as error:
                if error.code != TOO_LONG or most <= SHOWN_AT_LEAST:
                    raise
                most //= 2


class _Drafting:
    """One prompt: what was asked and answered so far. ``more``: more of a plan is wanted, and not a whole one.

    ``most``: so many tools are shown. ``is_small``: the model is told little, and held to much.
    """

    def __init__(
        self,
        models: ModelPort,
        request: PlanRequest,
        more: ReplanRequest | None,
        most: int,
        clock: Clock,
        hearing: Hearing,
        *,
        is_small: bool,
    ) -> None:
        self._models, self._request, self._more, self._clock, self._hearing = models, request, more, clock, hearing
        self._language = language_of(request.prompt)
        self._began_at = clock()
        with_code = CODE_TOOL in request.tools
        # It would call it with code that it has no room to write, or with none. That it may say `code` is enough.
        # A tool that only a quoted text mentions is not asked for.
        own_text = disarmed(request.prompt).text
        is_named = f"@{CODE_TOOL}" in own_text
        offered = {name: tool for name, tool in request.tools.items() if name != CODE_TOOL or is_named}
        names = (fitting if is_small else select)(own_text, offered, most=most)
        shown_tools = [request.tools[name] for name in names]
        if is_small:
            reached = more.reached if more is not None else ()
            # What was left aside is in the plan still, and its ids are not given twice.
            before = ids_of(subtasks_of(more.plan)) if more is not None else None
            self._schema = small_schema(
                shown_tools, with_code=with_code, before=before, done=[each.key for each in reached if each.is_done]
            )
        else:
            self._schema = plan_schema(shown_tools, with_code=with_code)
        self._asked = (small_messages if is_small else plan_messages)(
            request.prompt, shown_tools, context=request.context, language=self._language, with_code=with_code
        )
        if more is not None:
            self._asked = more_messages(self._asked, more)
        if request.begun:
            self._asked = (*self._asked, begun_message(request.begun))
        self._notes = list(request.tried.notes)
        if len(names) < len(offered) and not self._notes:
            self._notes.append(f"{len(names)} of {len(offered):,} tools were offered to the model")
        self._calls = list(request.tried.calls)
        self._text = request.tried.text

    async def run(self, rounds: int) -> Draft:
        try:
            return await self._run(rounds)
        except RayloomError as error:
            # What is paid for is not lost: the next try goes on from the answer that was to be mended.
            error.tried = Tried(notes=tuple(self._notes), calls=tuple(self._calls), text=self._text)
            raise

    async def _run(self, rounds: int) -> Draft:
        if self._text:
            verdict = await asyncio.to_thread(self._judged, self._text)
            # The tools may have changed since.
            self._notes.extend(() if verdict.faults else verdict.notes)
        else:
            on_text = self._hearing.on_text
            verdict = await self._turn("replan" if self._more else "split", self._asked, on_text=on_text)
        repairs = sum(call.purpose == "repair" for call in self._calls)
        while verdict.faults and repairs < rounds:
            begun = (*ids_of(self._request.begun), *self._hearing.begun())
            try:
                verdict = await self._turn(
                    "repair", repair_messages(self._asked, self._text, verdict.faults, begun=begun)
                )
            except UserError as error:
                if error.code != TOO_LONG:
                    raise
                self._notes.append("there is no room to have the plan mended")
                break
            repairs += 1
        return Draft(verdict=verdict, repairs=repairs, notes=tuple(self._notes), calls=tuple(self._calls))

    async def _turn(
        self, purpose: str, messages: Sequence[Message], *, on_text: Callable[[str], None] | None = None
    ) -> Verdict:
        began_at = self._clock()
        request = ModelRequest(role="planner", messages=tuple(messages), purpose=purpose, schema=self._schema)
        try:
            completion = await self._models.complete(request, on_text=on_text)
            text, use = completion.text, completion.use
            is_cut = completion.finish == "length"
        except AnswerInvalid as error:
            # Not what was asked for, but it may still say a plan: that is read with more patience here.
            text, use, is_cut = error.text, error.use, False
        duration_s = self._clock() - began_at
        verdict = await asyncio.to_thread(self._judged, text)
        if verdict.faults and is_cut:
            said = "the answer was cut off at the most tokens that it may have: give fewer subtasks and shorter texts"
            verdict = Verdict(brief=verdict.brief, notes=verdict.notes, faults=(Fault("", said),))
        self._calls.append(
            PlanCall(
                purpose=purpose,
                model=self._models.view("planner").name,
                use=use,
                began_s=began_at - self._began_at,
                duration_s=duration_s,
                fault_count=len(verdict.faults),
            )
        )
        if verdict.faults:
            self._notes.append(f"the model's {_nth(len(self._calls))} plan can't run: {shown(verdict.faults)}")
        else:
            self._notes.extend(verdict.notes)
        self._text = text
        return verdict

    def _judged(self, text: str) -> Verdict:
        request = self._request
        if self._more is not None:
            return judge_more(text, self._more, language=self._language)
        return judge(
            text, prompt=request.prompt, language=self._language, tools=request.tools, nodes=request.nodes,
            context=request.context,
        )  # fmt: skip


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
