"""A submission: what its body may say, and how it becomes a task that can be written down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Annotated, Any, Final

import orjson
from pydantic import Field, StringConstraints

from rayloom.dag.errors import Fault, InvalidPlan, Transient
from rayloom.dag.plan import MAX_FAULTS, Budget, Plan, parse_plan
from rayloom.dag.tool_scope import ALL_TOOLS
from rayloom.dag.values import Json, JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify
from rayloom.db.keys import Principal
from rayloom.db.submit import Callback, NewTask
from rayloom.serve.bodies import PLAN_THREAD_BYTES, Body, off_loop, validated
from rayloom.serve.callbacks import Callbacks
from rayloom.serve.deps import Deps
from rayloom.serve.offered import may_use
from rayloom.serve.problems import Problem, invalid
from rayloom.serve.sound_part import sound_part

MAX_PROMPT_CHARS: Final = 100_000
MAX_TITLE_CHARS: Final = 300
DEFAULT_TITLE_CHARS: Final = 80
MAX_LABELS: Final = 64
MAX_DEADLINE_S: Final = 10 * 365 * 86_400
MAX_KEY_CHARS: Final = 255

_Glob = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_LabelName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_LabelText = Annotated[str, StringConstraints(max_length=1024)]


class ToolRules(Body):
    """Which tools a task may use: globs of names; deny wins."""

    allow: list[_Glob] = Field(default=["*"], max_length=1000)
    deny: list[_Glob] = Field(default=[], max_length=1000)


class Submission(Body):
    """The body of ``POST /api/v1/tasks``. A prompt is needed unless a plan is given."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT_CHARS)] | None = None
    priority: Annotated[int, Field(ge=1, le=10)] = 5
    title: Annotated[str, StringConstraints(min_length=1, max_length=MAX_TITLE_CHARS)] | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    plan: dict[str, Any] | None = None
    budget: Budget = Field(default_factory=Budget)
    require_approval: bool = False
    callback_url: str | None = None
    callback_secret: str | None = None
    tools: ToolRules = Field(default_factory=ToolRules)
    labels: Annotated[dict[_LabelName, _LabelText], Field(max_length=MAX_LABELS)] = Field(default_factory=dict)


def read_submission(document: JsonObject, callbacks: Callbacks) -> tuple[Submission, list[Fault]]:
    """The submission that a body describes, and what is wrong with the body but for its plan.

    Where there are faults the submission is what else it says, so that nobody mends them only to hear of more.
    """
    # The plan, which may be large, is judged by its own reader.
    given = {**document, "plan": None if document.get("plan") is None else {}}
    faults: list[Fault] = []
    told: set[str] = set()
    try:
        submission = validated(given, Submission)
    except Problem as problem:
        faults += problem.errors
        if len(faults) >= MAX_FAULTS:
            return Submission(), faults
        told = {fault.pointer.split("/")[1] for fault in faults}
        sound = {name: given[name] for name in Submission.model_fields if name in given and name not in told}
        submission = validated(sound, Submission)
    more = _faults_of(submission, document)
    if "callback_url" not in told:
        more += callbacks.faults(submission.callback_url, submission.callback_secret)
    faults += [fault for fault in more if fault.pointer.split("/")[1] not in told]
    return submission, faults


def _faults_of(submission: Submission, document: JsonObject) -> list[Fault]:
    faults: list[Fault] = []
    if document.get("plan") is None and submission.prompt is None:
        faults.append(Fault("/prompt", "is missing: give a prompt, or a plan"))
    if submission.prompt is not None and not submission.prompt.strip():
        faults.append(Fault("/prompt", "is blank"))
    if (submission.budget.deadline_s or 0) > MAX_DEADLINE_S:
        faults.append(Fault("/budget/deadline_s", f"must be at most {MAX_DEADLINE_S:,} seconds"))
    return faults


def fingerprint_of(document: JsonObject) -> bytes:
    """What tells a repeated submission from another one under the same Idempotency-Key."""
    return hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()


def idempotency_key(header: str | None) -> str | None:
    """The Idempotency-Key of a request. Raises Problem (422)."""
    if header is None:
        return None
    if not 1 <= len(header) <= MAX_KEY_CHARS or not (header.isascii() and header.isprintable()):
        message = f"must be 1 to {MAX_KEY_CHARS} printable ASCII characters"
        raise invalid([Fault("/headers/Idempotency-Key", message)])
    return header


class Judge:
    """Judges plans as of now: against the registered tools, the cluster's nodes, and who asks."""

    def __init__(self, deps: Deps, who: Principal) -> None:
        self._deps = deps
        self._who = who

    async def prepare(self) -> None:
        """Learn what a plan is judged by. Raises Transient when the registry has never answered."""
        tools = await self._deps.offered.all()
        self._forbidden = [name for name, tool in tools.items() if not may_use(self._who, tool)]
        self._views = await self._deps.offered.views()
        self._nodes = await self._deps.nodes()

    def denied(self, rules: ToolRules) -> list[str]:
        """What a task may not use: what it says itself, and what its user may not."""
        return [*rules.deny, *self._forbidden]

    def bounds(self) -> JsonObject:
        """The same for tools that are registered only after the task was submitted, as part of its rules."""
        scope = self._who.scope
        return {} if scope == ALL_TOOLS else {"within": scope.as_json()}

    def narrowed(self, rules: Json) -> JsonObject:
        """The rules of a task that is made for whoever asks.

        ``rules``: those of the task that it is taken from, whose author may be allowed more; None where there is none.
        """
        known = rules if isinstance(rules, dict) else {}
        deny = known.get("deny")
        denied = deny if isinstance(deny, list) else []
        new = [name for name in self._forbidden if name not in denied]
        # What its author was bounded to stays.
        return {"allow": ["*"], **self.bounds(), **known, "deny": [*denied, *new]}

    def plan(
        self, raw: object, rules: ToolRules, *, pointer: str = "/plan", done: Collection[str] = ()
    ) -> VerifiedPlan:
        """The plan that ``raw`` describes. Takes its time: call it in a thread. Raises InvalidPlan.

        ``done``: ids whose outputs are there already.
        """
        try:
            plan = parse_plan(raw, pointer=pointer)
        except InvalidPlan as error:
            raise InvalidPlan(self._with_more(error.faults, raw, rules, pointer, done)) from None
        return self._verified(plan, rules, pointer, done)

    async def faults(self, raw: object, rules: ToolRules, *, size: int) -> list[Fault]:
        """What is wrong with the plan in a body of ``size`` bytes that is refused anyway.

        While nobody says which tools there are: what is wrong with it by itself.
        """
        judged: Callable[[], object] = partial(self.plan, raw, rules)
        try:
            await self.prepare()
        except Transient:
            judged = partial(parse_plan, raw)
        try:
            await off_loop(size, judged, at_most=PLAN_THREAD_BYTES)
        except InvalidPlan as error:
            return list(error.faults)
        return []

    def _with_more(
        self, faults: Sequence[Fault], raw: object, rules: ToolRules, pointer: str, done: Collection[str]
    ) -> list[Fault]:
        """These faults of a plan's shape, and what is wrong with the rest of it."""
        part = sound_part(raw, faults, pointer=pointer)
        if part is None:
            return list(faults)
        try:
            self._verified(parse_plan(part.plan, pointer=pointer), rules, pointer, part.aside.union(done))
        except InvalidPlan as error:
            return [*faults, *part.told(error.faults)][:MAX_FAULTS]
        return list(faults)

    def _verified(self, plan: Plan, rules: ToolRules, pointer: str, done: Collection[str]) -> VerifiedPlan:
        return verify(
            plan,
            tools=self._views,
            nodes=self._nodes,
            allow=rules.allow,
            deny=rules.deny,
            beyond=self._forbidden,
            model_available=self._deps.settings.with_models,
            approval_levels=self._deps.settings.approval_levels,
            pointer=pointer,
            done=done,
        )


def new_task(
    submission: Submission,
    *,
    who: Principal,
    plan: VerifiedPlan | None,
    denied: list[str],
    bounds: JsonObject,
    key: str | None,
    print_: bytes,
    callback: Callback | None = None,
) -> NewTask:
    """What is written down of a submission."""
    return NewTask(
        user_id=who.user_id,
        key_id=who.key_id,
        title=submission.title or _title(submission.prompt, plan),
        prompt=submission.prompt,
        priority=submission.priority,
        context=submission.context,
        options={
            "tools": {"allow": list(submission.tools.allow), "deny": list(denied), **bounds},
            "budget": submission.budget.model_dump(exclude_none=True),
            **({"require_approval": True} if submission.require_approval else {}),
        },
        labels=dict(submission.labels),
        plan=plan,
        require_approval=submission.require_approval,
        deadline_s=submission.budget.deadline_s,
        idempotency_key=key,
        fingerprint=print_,
        callback=callback,
    )


def _title(prompt: str | None, plan: VerifiedPlan | None) -> str:
    if prompt is None:
        count = len(plan.subtasks) if plan is not None else 0
        first = plan.subtasks[0].spec.name if plan is not None else ""
        prompt = first if count == 1 else f"{first} and {count - 1:,} more"
    line = next((line.strip() for line in prompt.splitlines() if line.strip()), "untitled").lstrip("#*- ") or "untitled"
    return line if len(line) <= DEFAULT_TITLE_CHARS else line[: DEFAULT_TITLE_CHARS - 1].rstrip() + "…"


def conflict(status: str, verb: str) -> Problem:
    """The 409 of a task that has ended otherwise."""
    return Problem(409, f"the task is {status} and can't be {verb}", code="WRONG_STATE")
