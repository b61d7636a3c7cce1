"""Parse and split: from a prompt to a plan that is still to be verified. A plain class; Serve wraps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from time import perf_counter

from rayloom.dag.decision import QUOTA_EXCEEDED
from rayloom.dag.errors import InvalidPlan, NeedsClarification, Refused, Transient, UserError
from rayloom.dag.model import ModelPort, Payer
from rayloom.dag.outline import Outline, split
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.planning.beginning import EarlyReader
from rayloom.dag.planning.brief import Brief, brief_of
from rayloom.dag.planning.estimate import Estimate, Prices, estimate, lateness, over_budget
from rayloom.dag.planning.passed import patient
from rayloom.dag.planning.repair import shown
from rayloom.dag.replan import ReplanRequest
from rayloom.dag.tried import NOTHING_TRIED, PlanCall
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.serve.planner import DEAF, Draft, Hearing, Planner

ModelsFor = Callable[[Payer], ModelPort]
"""The models on somebody's account."""


class Parser:
    """Plans prompts: with a model where one is configured, else by their outline."""

    def __init__(self, models: ModelsFor | None = None) -> None:
        self._models = models

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan.

        Raises NeedsClarification; UserError (``PLAN_FAILED``) when neither a model nor the outline gives a plan; and
        Transient when no model answers and there is no outline to go by, or a task has to wait for room to have what is
        paid for mended.
        """
        return await self._plan(request, DEAF)

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        """As ``plan``, which comes last; first what may run already, each as soon as a model has written it.

        To close it stops the model.
        """
        reader = EarlyReader(request)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        hearing = Hearing(on_text=pieces.put_nowait, begun=lambda: reader.ids)
        planning = asyncio.get_running_loop().create_task(self._plan(request, hearing))
        planning.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                for written in reader.feed(piece):
                    if (subtask := await asyncio.to_thread(reader.judged, written)) is not None:
                        yield Early(subtask=subtask)
            yield planning.result()
        finally:
            planning.cancel()
            await asyncio.wait({planning})

    async def _plan(self, request: PlanRequest, hearing: Hearing) -> Planned:
        if self._models is None:
            return await asyncio.to_thread(_outlined, request)
        models = self._models(request.payer)
        began_at = perf_counter()
        try:
            draft = await Planner(models).draft(request, hearing)
        except (Transient, Refused, UserError) as error:
            tried = error.tried or NOTHING_TRIED
            if error.code == QUOTA_EXCEEDED and request.payer.task_id and tried.text:
                # It is paid for, and kept: whoever waits for room goes on from it.
                raise
            said = f"no model planned this ({error.code}: {error.message})"
            outline = await asyncio.to_thread(_outline, request)
            if not outline.is_structured:
                raise
            return await self._by_outline(request, models, outline, (*tried.notes, said), tried.calls, began_at)
        verdict = draft.verdict
        if verdict.plan is None or verdict.verified is None:
            if not verdict.faults:
                raise _ended(NeedsClarification(verdict.brief.questions), draft)
            outline = await asyncio.to_thread(_outline, request)
            if not outline.is_structured:
                raise _ended(UserError("PLAN_FAILED", _failure(draft)), draft)
            return await self._by_outline(request, models, outline, draft.notes, draft.calls, began_at)
        found, over, late = _estimated(verdict.verified, request, models, verdict.brief)
        planned = _drafted(draft, verdict.plan, models, began_at)
        return replace(planned, notes=planned.notes + late, estimate=found, over_budget=over)

    async def replan(self, request: ReplanRequest) -> Planned:
        """What to add to the plan of a running task; only what a model planned is ever added to.

        Raises UserError (``PLAN_FAILED``) when no answer of the model can be used, and what models raise.
        """
        if self._models is None:
            raise UserError("PLAN_FAILED", "no model is configured that could add to the plan")
        models, began_at = self._models(request.request.payer), perf_counter()
        draft = await Planner(models).redraft(request)
        verdict = draft.verdict
        if verdict.plan is None:
            raise _ended(UserError("PLAN_FAILED", _failure(draft)), draft)
        return _drafted(draft, verdict.plan, models, began_at)

    async def _by_outline(
        self,
        request: PlanRequest,
        models: ModelPort,
        outline: Outline,
        notes: tuple[str, ...],
        calls: tuple[PlanCall, ...],
        began_at: float,
    ) -> Planned:
        """What the author laid out, in place of a model's plan. Its texts are for a model to think about."""
        brief = brief_of({}, prompt=request.prompt, language=outline.language)
        planned = _planned(outline, 0.0, perf_counter() - began_at)
        planned = replace(
            planned,
            plan=_patient(planned.plan, models),
            notes=(*notes, "the outline of the prompt was taken instead", *outline.notes),
            repairs=max(0, len(calls) - 1),
            brief=brief.as_json(),
            calls=calls,
        )
        try:
            verified = await asyncio.to_thread(_verified, outline, request)
        except InvalidPlan:
            # Whoever stores it verifies it, and tells what is wrong.
            return planned
        found, over, late = _estimated(verified, request, models, brief)
        return replace(planned, estimate=found, over_budget=over, notes=planned.notes + late)


def _outlined(request: PlanRequest) -> Planned:
    started_at = perf_counter()
    prompt = request.prompt.strip()
    parsed_at = perf_counter()
    outline = split(prompt, tuple(request.tools), views=request.tools)
    return _planned(outline, parsed_at - started_at, perf_counter() - parsed_at)


def _outline(request: PlanRequest) -> Outline:
    return split(request.prompt.strip(), tuple(request.tools), views=request.tools, with_model=True)


def _planned(outline: Outline, parsed_s: float, split_s: float) -> Planned:
    return Planned(
        plan=outline.plan.model_dump(mode="json", exclude_unset=True),
        source="outline",
        notes=tuple(outline.notes),
        language=outline.language,
        parsed_s=parsed_s,
        split_s=split_s,
    )


def _verified(outline: Outline, request: PlanRequest) -> VerifiedPlan:
    return verify(outline.plan, tools=request.tools, nodes=request.nodes, model_available=True)


def _estimated(
    verified: VerifiedPlan, request: PlanRequest, models: ModelPort, brief: Brief
) -> tuple[Estimate, tuple[str, ...], tuple[str, ...]]:
    """The estimate, where it is over the budget, and that it will be late where it will."""
    found = estimate(verified, p50_s=request.p50_s, prices=_prices(models))
    late = lateness(found, budget=request.budget, brief=brief)
    return found, over_budget(found, budget=request.budget, brief=brief), (late,) if late else ()


def _prices(models: ModelPort) -> Prices:
    return Prices(reasoner=models.view("reasoner"), coder=models.view("coder"))


def _drafted(draft: Draft, plan: JsonObject, models: ModelPort, began_at: float) -> Planned:
    # What a request wants and how it is split is one answer: one call costs a small model half of two.
    brief, split_s = draft.verdict.brief, perf_counter() - began_at
    return Planned(
        plan=_patient(plan, models),
        source="model",
        notes=draft.notes,
        language=brief.language,
        parsed_s=0.0,
        split_s=split_s,
        repairs=draft.repairs,
        brief=brief.as_json(),
        calls=draft.calls,
        joiner=draft.verdict.joiner,
    )


def _patient(plan: JsonObject, models: ModelPort) -> JsonObject:
    return patient(plan, think_s=models.view("reasoner").call_s, code_s=models.view("coder").call_s)


def _ended(error: UserError, draft: Draft) -> UserError:
    error.tried = draft.tried
    return error


def _failure(draft: Draft) -> str:
    count = len(draft.calls)
    return (
        f"no plan that can run came of {count} answers of the model; of the last: {shown(draft.verdict.faults)}. Say "
        "it in other words, write it as a list, or give a plan"
    )
