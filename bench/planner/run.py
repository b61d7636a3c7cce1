"""Run the splitter over records, and sum up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from time import perf_counter

from bench.planner.recorded import RecordedModels
from bench.planner.records import Record, Recorded, answers, records
from bench.planner.score import Score, score
from rayloom.dag.errors import RayloomError
from rayloom.dag.model import ModelPort
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.repair import shown
from rayloom.dag.verify import verify
from rayloom.serve.planner import Planner


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What became of one record. ``score``: None where there was no plan, and ``problem`` says why."""

    record: str
    domain: str
    kind: str
    score: Score | None
    problem: str
    repairs: int
    tokens_in: int
    tokens_out: int
    took_s: float


async def run_recorded(chosen: Sequence[Recorded] | None = None) -> list[Result]:
    """The splitter on the recorded answers: the same each time."""
    return [
        await _run(records()[answer.record], answer.kind, RecordedModels(answer.turns))
        for answer in (answers() if chosen is None else chosen)
    ]


async def run_live(models: ModelPort, chosen: Iterable[Record], told: Callable[[Result], None]) -> list[Result]:
    """The splitter with a real model; ``told`` hears of each result."""
    found = []
    for record in chosen:
        found.append(await _run(record, "live", models))
        told(found[-1])
    return found


async def _run(record: Record, kind: str, models: ModelPort) -> Result:
    request = PlanRequest(task_id="", prompt=record.prompt, context={}, tools=record.tools)
    began_at = perf_counter()
    try:
        draft = await Planner(models).draft(request)
    except RayloomError as error:
        problem = f"{error.code}: {error.message}"
        return Result(
            record=record.id, domain=record.domain, kind=kind, score=None, problem=problem, repairs=0, tokens_in=0,
            tokens_out=0, took_s=perf_counter() - began_at,
        )  # fmt: skip
    took_s = perf_counter() - began_at
    verdict = draft.verdict
    made, problem = None, shown(verdict.faults) or " ".join(verdict.brief.questions)
    if verdict.verified is not None:
        # Once more, by itself: nothing that can't run may pass for a plan.
        again = verify(verdict.verified.plan, tools=record.tools, nodes=(), model_available=True)
        made, problem = score(again, record), ""
    return Result(
        record=record.id,
        domain=record.domain,
        kind=kind,
        score=made,
        problem=problem,
        repairs=draft.repairs,
        tokens_in=sum(call.use.tokens_in for call in draft.calls),
        tokens_out=sum(call.use.tokens_out for call in draft.calls),
        took_s=took_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of many results. Means over those that have a plan; ``by_reader``: those that no round was needed for."""

    count: int
    valid: int
    by_reader: int
    node_f1: float
    edge_f1: float
    width_ratio: float
    repairs: float
    tokens_in: float
    tokens_out: float
    median_s: float

    @property
    def valid_share(self) -> float:
        """How many came to a plan that can run."""
        return self.valid / max(1, self.count)

    def as_markdown(self, name: str) -> str:
        """One row of the table."""
        return (
            f"| {name} | {self.count} | {self.valid} ({self.valid_share:.0%}) | {self.by_reader} | "
            f"{self.node_f1:.2f} | {self.edge_f1:.2f} | {self.width_ratio:.2f} | {self.repairs:.2f} | "
            f"{self.tokens_in:.0f} / {self.tokens_out:.0f} | {self.median_s:.2f} |"
        )


HEAD = (
    "| answers | count | valid plans | of these without a round | node F1 | edge F1 | width of gold | rounds | "
    "tokens in / out | median s |\n|---|---|---|---|---|---|---|---|---|---|"
)


def summary(results: Sequence[Result]) -> Summary:
    """What results come to."""
    scores = [result.score for result in results if result.score is not None]

    def mean(values: Iterable[float]) -> float:
        known = list(values)
        return fmean(known) if known else 0.0

    return Summary(
        count=len(results),
        valid=len(scores),
        by_reader=sum(result.score is not None and result.repairs == 0 for result in results),
        node_f1=mean(each.node_f1 for each in scores),
        edge_f1=mean(each.edge_f1 for each in scores),
        width_ratio=mean(each.width_ratio for each in scores),
        repairs=mean(result.repairs for result in results),
        tokens_in=mean(result.tokens_in for result in results),
        tokens_out=mean(result.tokens_out for result in results),
        median_s=median([result.took_s for result in results] or [0.0]),
    )
