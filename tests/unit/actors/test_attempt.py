"""One attempt: whatever a tool does, an outcome says what happened."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from rayloom.actors import attempt
from rayloom.actors.attempt import LEASE_CHECK_S, run_attempt
from rayloom.actors.attempt_record import ModelCallTold
from rayloom.actors.order import AttemptOrder
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.actors.shared_calls import SharedCalls
from rayloom.dag.breaker import BreakerView, Call
from rayloom.dag.decision import RetryPolicy, decide
from rayloom.dag.errors import Bug, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import ModelPort
from rayloom.dag.outcome import Outcome
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.references import Outputs
from rayloom.dag.states import Phase
from rayloom.dag.values import Json, JsonObject
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.builtin.catalogue import BUILTINS
from rayloom.tools.ports import ContentsPort, FilesPort
from rayloom.tools.settings import ToolSettings
from rayloom.tools.tool import Tool, ToolContext, ToolResult, ToolSpec
from tests.fakes.scripted_models import ScriptedModels
from tests.unit.actors.test_shared_calls import Memory
from tests.unit.tools.context import KeptContents, KeptFiles, KeptLog

Run = Callable[[dict[str, Json], ToolContext], Awaitable[ToolResult]]


SPEC = ToolSpec(
    name="t", type="NATIVE", description="", version="1", input_schema={"type": "object"}, output_schema=None,
    permission_level="read", resources={}, lane="own",
)  # fmt: skip


@dataclass
class ScriptedTool:
    """Does what the test says."""

    do: Run
    spec: ToolSpec = SPEC

    async def run(self, input: dict[str, Json], context: ToolContext) -> ToolResult:
        return await self.do(input, context)


@dataclass
class Reporter(KeptLog):
    phases: list[Phase] = field(default_factory=list)
    closed: int = 0
    breaks: bool = False

    def phase(self, phase: Phase) -> None:
        self.phases.append(phase)

    async def close(self) -> None:
        self.closed += 1
        if self.breaks:
            raise Transient("DATABASE_UNAVAILABLE", "away")

    def text(self, limit: int) -> str:
        return "\n".join(message for _, message in self.lines)[:limit]


@dataclass
class Place:
    """``Surroundings`` in memory."""

    do: Run
    engine: EngineSettings = field(default_factory=EngineSettings)
    known: dict[str, Json] = field(default_factory=dict)
    nothing: frozenset[str] = frozenset()
    log: Reporter = field(default_factory=Reporter)
    refuses: Exception | None = None
    has_lease: bool = True
    worker_id: str = "w"
    node_id: str = "n"
    schema: JsonObject = field(default_factory=lambda: {"type": "object"})
    begun: list[int] = field(default_factory=list)
    calls: SharedCalls | None = None
    spec: ToolSpec = SPEC
    blobs: dict[str, bytes | Exception] = field(default_factory=dict)
    keeps: Callable[[], Awaitable[None]] | None = None
    thinks: ScriptedModels | None = None
    registry: dict[str, tuple[RegisteredTool, Tool]] = field(default_factory=dict)
    breakers: dict[str, BreakerView] = field(default_factory=dict)
    reported: list[Call] = field(default_factory=list)
    kept_contents: dict[str, bytes] = field(default_factory=dict)
    within: list[float] = field(default_factory=list)

    settings: WorkerSettings = field(init=False)

    def __post_init__(self) -> None:
        self.settings = WorkerSettings(
            engine=self.engine, database=DatabaseSettings(url=SecretStr("")), redis=RedisSettings(url=SecretStr("")),
            tools=ToolSettings(),
        )  # fmt: skip

    async def tool(self, name: str, registry_version: int) -> Tool:
        if self.refuses:
            raise self.refuses
        if name in self.registry:
            return self.registry[name][1]
        return ScriptedTool(self.do, replace(self.spec, input_schema=self.schema))

    async def tools(self, registry_version: int) -> ToolSnapshot:
        tools = {name: registered for name, (registered, _) in self.registry.items()}
        return ToolSnapshot(version=1, tools=tools, breakers=self.breakers)

    def models(self, order: AttemptOrder, on_call: Callable[[ModelCallTold], None]) -> ModelPort:
        if self.thinks is None:
            raise Refused("MODEL_MISSING", "no model is configured")
        self.thinks.on_call = on_call
        return self.thinks

    async def report(self, call: Call) -> None:
        self.reported.append(call)

    async def outputs(self, task_id: str, keys: Sequence[str], *, within_s: float) -> Outputs:
        self.within.append(within_s)
        return Outputs(values={key: self.known[key] for key in keys}, nothing=self.nothing)

    async def content(self, sha256: str, *, within_s: float) -> bytes:
        self.within.append(within_s)
        if isinstance(kept := self.blobs[sha256], Exception):
            raise kept
        return kept

    async def keep(self, data: bytes) -> str:
        if self.keeps is not None:
            await self.keeps()
        self.blobs["kept"] = data
        return "kept"

    async def begin(self, order: AttemptOrder) -> bool:
        self.begun.append(order.attempt)
        return self.has_lease

    def reporter(self, order: AttemptOrder) -> Reporter:
        return self.log

    def files(self, task_id: str) -> FilesPort:
        return KeptFiles()

    def contents(self) -> ContentsPort:
        return KeptContents(self.kept_contents)

    def shared_calls(self) -> SharedCalls | None:
        return self.calls


def order(input_: Json = None, **more: Any) -> AttemptOrder:
    fields: dict[str, Any] = {
        "sub_task_id": "s", "task_id": "task", "user_id": "ann", "key": "k", "tool": "t", "registry_version": 1,
        "attempt": 2, "timeout_s": 5.0, "input": orjson.dumps(input_ or {}).decode(), "referred": (), "running": True,
        "handed_at": 0.0,
    }  # fmt: skip
    return AttemptOrder(**fields | more)


def gives(value: Any, **more: Any) -> Run:
    async def run(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        return ToolResult(output=value, **more)

    return run


def raises(error: BaseException) -> Run:
    async def run(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        raise error

    return run


async def waits(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    await asyncio.Event().wait()
    raise AssertionError


def spans_of(outcome: Outcome) -> dict[str, bool]:
    return {span["name"]: span["ok"] for span in orjson.loads(outcome.spans)}


async def test_a_success_carries_what_the_database_needs() -> None:
    place = Place(gives({"晴": [1, (2,), float("nan"), "a\0b"]}, stdout="a\0b", stderr="no\udc80", tokens_used=7))
    times = iter(range(100, 200))
    outcome = await run_attempt(order(), place, clock=lambda: float(next(times)))
    text = '{"晴":[1,[2],null,"a\ufffdb"]}'
    assert (outcome.verdict, outcome.output, outcome.error) == ("succeeded", text, None)
    assert outcome.output_size == len(text.encode())
    assert (outcome.stdout, outcome.stderr, outcome.tokens_used) == ("a\ufffdb", "no\ufffd", 7)
    assert outcome.started_at == 100
    assert outcome.finished_at > outcome.started_at
    assert spans_of(outcome) == {"PREPARE_ENV": True, "t": True, "EXECUTING": True, "POST_PROCESS": True}
    assert place.log.phases == [Phase.PREPARE_ENV, Phase.EXECUTING, Phase.POST_PROCESS]
    assert place.log.closed == 1


async def test_a_tool_gets_its_input_with_references_resolved() -> None:
    seen: list[tuple[Json, ToolContext]] = []

    async def look(input_: dict[str, Json], context: ToolContext) -> ToolResult:
        seen.append((input_, context))
        return ToolResult(output=None)

    given: Json = {"a": {"$ref": "up.output.n"}, "b": "n is ${up.output.n}, ${HOME}", "c": {"$literal": {"$ref": "x"}}}
    outcome = await run_attempt(order(given, referred=("up",)), Place(look, known={"up": {"n": [3]}}))
    assert outcome.verdict == "succeeded"
    ((input_, context),) = seen
    assert input_ == {"a": [3], "b": "n is [3], ${HOME}", "c": {"$ref": "x"}}
    assert (context.task_id, context.user_id, context.subtask, context.attempt) == ("task", "ann", "k", 2)
    assert context.idempotency_key == "s"


@pytest.mark.parametrize(
    ("do", "code", "retryable", "class_"),
    [
        (raises(UserError("BAD", "bad")), "BAD", False, "user"),
        (raises(Refused("NO", "no")), "NO", False, "refused"),
        (raises(Transient("AWAY", "away", retry_after_s=9)), "AWAY", True, "transient"),
        (raises(ZeroDivisionError("x / 0")), "TOOL_CRASHED", False, "bug"),
        (raises(RecursionError()), "TOOL_CRASHED", False, "bug"),
        (raises(TimeoutError("the socket")), "TOOL_CRASHED", False, "bug"),
        (raises(asyncio.CancelledError("a child of the tool")), "INTERNAL", False, "bug"),
        (gives({1, 2}), "OUTPUT_INVALID", False, "user"),
        (gives(b"bytes"), "OUTPUT_INVALID", False, "user"),
        (gives("x" * 2000), "OUTPUT_TOO_LARGE", False, "user"),
    ],
)
async def test_every_failure_becomes_a_value(do: Run, code: str, retryable: bool, class_: str) -> None:
    place = Place(do, engine=EngineSettings(output_max_bytes=1000))
    outcome = await run_attempt(order(), place)
    assert outcome.verdict == "failed"
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable, outcome.error.error_class) == (code, retryable, class_)
    assert (outcome.output, outcome.output_size) == (None, 0)
    assert place.log.closed == 1


async def test_the_wait_that_the_other_side_asks_for_is_kept() -> None:
    outcome = await run_attempt(order(), Place(raises(Transient("AWAY", "away", retry_after_s=9))))
    assert outcome.error is not None
    assert outcome.error.retry_after_s == 9


async def test_what_a_tool_holds_nested_in_itself_fails_and_does_not_hang() -> None:
    circle: list[Any] = []
    circle.append(circle)
    outcome = await run_attempt(order(), Place(gives(circle)))
    assert outcome.error is not None
    assert outcome.error.code == "OUTPUT_TOO_DEEP"
    assert spans_of(outcome)["POST_PROCESS"] is False


async def test_a_tool_that_is_not_there_fails_before_it_runs() -> None:
    outcome = await run_attempt(order(), Place(waits, refuses=UserError("TOOL_UNKNOWN", "gone")))
    assert outcome.error is not None
    assert outcome.error.code == "TOOL_UNKNOWN"
    assert spans_of(outcome) == {"PREPARE_ENV": False}


async def test_a_place_that_is_slow_to_answer_is_not_the_end_of_the_time() -> None:
    outcome = await run_attempt(order(), Place(waits, refuses=TimeoutError("the registry")))
    assert outcome.verdict == "lost"
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("TIMED_OUT", True)
    assert "the registry" in outcome.error.message


@pytest.mark.parametrize("late", [False, True])
async def test_what_is_away_before_the_tool_is_called_spends_no_retry(late: bool) -> None:
    away = Transient("ACTOR_UNAVAILABLE", "the registry is away")
    outcome = await run_attempt(order(), Place(raises(away)) if late else Place(waits, refuses=away))
    assert outcome.error is not None
    assert (outcome.verdict, outcome.error.code) == ("failed" if late else "lost", "ACTOR_UNAVAILABLE")
    policy = RetryPolicy(initial_s=1, max_s=60)
    decision = decide(outcome, retry_count=0, max_retries=0, policy=policy, jitter=0)
    assert (decision.retry_in_s, decision.spends) == ((None, True) if late else (1, False))


async def test_a_reference_to_nothing_fails_before_it_runs() -> None:
    given: Json = {"a": {"$ref": "up.output.missing"}}
    outcome = await run_attempt(order(given, referred=("up",)), Place(waits, known={"up": {"n": 1}}))
    assert outcome.error is not None
    assert outcome.error.code == "REFERENCE_MISSING"


async def test_what_is_missing_is_null_on_any_path() -> None:
    given: Json = {"x": {"$ref": "up.output.deep[0]"}, "y": "<${up.output}>"}

    async def give_back(input_: dict[str, Json], context: ToolContext) -> ToolResult:
        return ToolResult(output=dict(input_))

    place = Place(give_back, known={"up": None}, nothing=frozenset({"up"}))
    outcome = await run_attempt(order(given, referred=("up",)), place)
    assert outcome.output == '{"x":null,"y":"<null>"}'


async def test_an_attempt_ends_with_its_time_and_the_tool_cleans_up() -> None:
    cleaned: list[bool] = []

    async def messy(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)
        raise AssertionError

    outcome = await run_attempt(order(timeout_s=0.01), Place(messy))
    assert (outcome.verdict, cleaned) == ("timed_out", [True])
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("TIMED_OUT", True)
    assert "within 0.01 s" in outcome.error.message


async def test_a_stopped_attempt_says_so() -> None:
    task = asyncio.ensure_future(run_attempt(order(), Place(waits)))
    await asyncio.sleep(0)
    task.cancel()
    outcome = await task
    assert outcome.verdict == "cancelled"
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable) == ("CANCELLED", False)


async def test_a_log_that_can_not_be_written_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    place = Place(gives(1), log=Reporter(breaks=True))
    outcome = await run_attempt(order(), place)
    assert (outcome.verdict, outcome.output, place.log.closed) == ("succeeded", "1", 1)
    assert [(line.message, bool(line.exc_info)) for line in caplog.records] == [("attempt.log_lost: away", False)]


async def test_what_a_tool_logs_comes_with_its_outcome_however_it_ends() -> None:
    async def speaks(_input: dict[str, Json], context: ToolContext) -> ToolResult:
        context.log.line("one")
        context.log.line("two")
        raise UserError("NO", "no")

    outcome = await run_attempt(order(), Place(speaks))
    assert (outcome.verdict, outcome.log) == ("failed", "one\ntwo")
    short = await run_attempt(order(), Place(speaks, engine=EngineSettings(output_text_chars=5)))
    assert short.log == "one\nt"


async def test_the_head_of_long_output_is_kept() -> None:
    place = Place(gives(1, stdout="x" * 30, stderr="y" * 10), engine=EngineSettings(output_text_chars=10))
    outcome = await run_attempt(order(), place)
    assert outcome.stdout == "x" * 10 + "\n… 20 more characters"
    assert outcome.stderr == "y" * 10


async def test_an_input_that_does_not_fit_ends_the_attempt_before_its_tool_is_called() -> None:
    place = Place(raises(AssertionError("it must not be called")))
    place.schema, place.known = {"properties": {"n": {"type": "integer"}}}, {"up": "one"}
    outcome = await run_attempt(order({"n": {"$ref": "up.output"}}, referred=("up",)), place)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.message) == (
        "INPUT_INVALID", "the input of t is invalid: /n: 'one' is not of type 'integer'",
    )  # fmt: skip
    assert spans_of(outcome) == {"PREPARE_ENV": False}


@pytest.mark.parametrize(
    ("running", "waited_s", "asks"), [(True, 60.0, False), (False, LEASE_CHECK_S - 0.1, False), (False, 60.0, True)]
)
async def test_an_attempt_that_waited_long_in_ray_asks_for_its_lease(
    running: bool, waited_s: float, asks: bool
) -> None:
    called: list[int] = []

    async def run(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        called.append(1)
        return ToolResult(output=None)

    place = Place(run, has_lease=False)
    late = order(running=running, handed_at=100.0 - waited_s)
    outcome = await run_attempt(late, place, clock=lambda: 100.0)
    assert bool(place.begun) is asks
    assert bool(called) is not asks
    assert (outcome.error.code if outcome.error else None) == ("LEASE_LOST" if asks else None)
    place.has_lease = True
    assert (await run_attempt(late, place, clock=lambda: 100.0)).verdict == "succeeded"


def tool_span(outcome: Outcome) -> JsonObject:
    (span,) = [span for span in orjson.loads(outcome.spans) if span["kind"] == "tool"]
    return dict(span)


def source_of(outcome: Outcome) -> JsonObject:
    """What the span of the call says beside what it says of every call."""
    told: dict[str, Any] = tool_span(outcome)["attributes"]  # type: ignore[assignment]
    assert told.pop("version") == SPEC.version
    assert len(told.pop("input_sha256")) == 64
    # Who is given what is kept has not called the tool.
    assert told.pop("called", True) is (told.get("cache") != "hit")
    return told


async def test_a_call_says_which_version_was_called_with_what() -> None:
    inputs: tuple[JsonObject, ...] = ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {})
    outcomes = [await run_attempt(order(input_), Place(gives(1))) for input_ in inputs]
    told: list[Any] = [tool_span(outcome)["attributes"] for outcome in outcomes]
    assert told[0] == {"version": "1", "input_sha256": hashlib.sha256(b'{"a":1,"b":2}').hexdigest()}
    assert told[1] == told[0]
    assert told[2] == {"version": "1", "input_sha256": hashlib.sha256(b"{}").hexdigest()}


@pytest.mark.parametrize(
    ("fields", "spec", "sources"),
    [
        ({"cacheable": True}, SPEC, ["made", "hit"]),
        ({}, replace(SPEC, deterministic=True), ["made", "hit"]),
        ({}, replace(SPEC, deterministic=True, instant=True), [None, None]),
        ({"cacheable": True}, replace(SPEC, uses_workspace=True), [None, None]),
        ({}, SPEC, [None, None]),
    ],
)
async def test_equal_calls_share_a_result_where_they_may(
    fields: dict[str, Any], spec: ToolSpec, sources: list[str | None]
) -> None:
    place = Place(gives({"a": 1}), calls=SharedCalls(Memory(), ttl_s=60), spec=spec)
    outcomes = [await run_attempt(order({"x": 1}, **fields), place) for _ in sources]
    assert [outcome.output for outcome in outcomes] == ['{"a":1}'] * 2
    assert [source_of(outcome) for outcome in outcomes] == [
        {} if source is None else {"cache": source} for source in sources
    ]


@pytest.mark.parametrize(
    ("spec", "fields", "source"),
    [
        (replace(SPEC, deterministic=True), {}, "made"),
        (replace(SPEC, deterministic=True, shared_cache=True), {}, "hit"),
        # What a plan says of its own subtask is no promise of the tool.
        (replace(SPEC, shared_cache=True), {"cacheable": True}, "made"),
        (replace(SPEC, deterministic=True, shared_cache=True), {"referred": ("a",)}, "made"),
    ],
)
async def test_kept_result_serves_other_users_only_with_shared_cache(
    spec: ToolSpec, fields: dict[str, Any], source: str
) -> None:
    place = Place(gives(1), calls=SharedCalls(Memory(), ttl_s=60), spec=spec, known={"a": 1})
    await run_attempt(order(**fields), place)
    outcome = await run_attempt(order(user_id="bob", **fields), place)
    assert source_of(outcome) == {"cache": source}


@pytest.mark.parametrize("tool", BUILTINS.values(), ids=BUILTINS)
async def test_built_in_tool_never_shares_a_result_between_users(tool: Tool) -> None:
    place = Place(gives(1), calls=SharedCalls(Memory(), ttl_s=60), spec=replace(tool.spec, output_schema=None))
    outcomes = [await run_attempt(order(user_id=user, cacheable=True), place) for user in ("ann", "bob")]
    assert "hit" not in [source_of(outcome).get("cache") for outcome in outcomes]


async def test_calls_of_two_users_in_flight_are_made_once_each() -> None:
    both, made = asyncio.Event(), 0

    async def tool(_input: dict[str, Json], context: ToolContext) -> ToolResult:
        nonlocal made
        made += 1
        if made == 2:
            both.set()
        # Ends only when the call of the other user is made, too.
        await both.wait()
        return ToolResult(output=context.user_id)

    place = Place(tool, calls=SharedCalls(Memory(), ttl_s=60), spec=replace(SPEC, deterministic=True))
    async with asyncio.timeout(5):
        outcomes = await asyncio.gather(*(run_attempt(order(user_id=user), place) for user in ("alice", "bob")))
    assert [outcome.output for outcome in outcomes] == ['"alice"', '"bob"']


async def test_with_the_cache_switched_off_a_cacheable_call_is_made() -> None:
    outcome = await run_attempt(order(cacheable=True), Place(gives(1)))
    assert (outcome.output, source_of(outcome)) == ("1", {})


async def test_an_alternative_is_called_in_its_place_and_shown() -> None:
    place = Place(lambda input_, _context: _give(input_))
    outcome = await run_attempt(order({"a": 1}, alternative="mirror", breaker_wait_s=7.0), place)
    assert (outcome.verdict, outcome.called) == ("succeeded", True)
    (call,) = (span for span in orjson.loads(outcome.spans) if span["kind"] == "tool")
    assert (call["name"], call["attributes"]["instead_of"]) == ("mirror", "t")
    assert any("mirror is called in its place" in message for _, message in place.log.lines)


async def test_an_alternative_that_can_not_take_the_input_is_not_called() -> None:
    place = Place(_never, schema={"type": "object", "required": ["b"]})
    outcome = await run_attempt(order({"a": 1}, alternative="mirror", breaker_wait_s=7.0), place)
    assert (outcome.verdict, outcome.called) == ("failed", False)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.retryable, outcome.error.retry_after_s) == ("BREAKER_OPEN", True, 7.0)


async def test_an_outcome_says_whether_its_tool_was_called() -> None:
    assert not (await run_attempt(order({}), Place(_never, refuses=Transient("AWAY", "x")))).called

    async def fail(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
        raise Transient("HTTP_503", "x")

    assert (await run_attempt(order({}), Place(fail))).called


async def _give(input_: dict[str, Json]) -> ToolResult:
    return ToolResult(output=input_)


async def _never(_input: dict[str, Json], _context: ToolContext) -> ToolResult:
    raise AssertionError("it must not be called")


# -- what is too large for a row ---------------------------------------------------------------------------------------

LARGE = "x" * 70_000


async def test_a_large_output_is_kept_before_anybody_hears_of_it() -> None:
    place = Place(gives({"text": LARGE}))
    outcome = await run_attempt(order(), place)
    raw = orjson.dumps({"text": LARGE})
    assert (outcome.verdict, outcome.output, outcome.output_blob, outcome.output_size) == (
        "succeeded", None, "kept", len(raw),
    )  # fmt: skip
    assert place.blobs == {"kept": raw}


@pytest.mark.parametrize("over", [0, 1])
async def test_an_output_up_to_the_limit_stays_with_its_outcome(over: int) -> None:
    place = Place(gives("x" * (64 * 1024 - 2 + over)))
    outcome = await run_attempt(order(), place)
    assert (outcome.output is None) == bool(outcome.output_blob) == bool(over)
    assert outcome.output_size == 64 * 1024 + over


async def test_while_the_store_is_away_an_output_goes_with_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "KEEP_S", 0.01)

    async def away() -> None:
        raise Transient("BLOB_STORE_UNAVAILABLE", "s3://b did not answer: gone")

    for keeps, said in ((away, "s3://b did not answer: gone"), (asyncio.Event().wait, "it did not answer within")):
        place = Place(gives(LARGE), keeps=keeps)  # type: ignore[arg-type]  # what it gives is of no interest
        outcome = await run_attempt(order(), place)
        assert (outcome.verdict, outcome.output_blob, outcome.output) == ("succeeded", "", f'"{LARGE}"')
        [(_, message)] = place.log.lines
        assert said in message


async def test_what_a_tool_has_done_in_time_is_kept_in_a_time_of_its_own() -> None:
    async def slow() -> None:
        await asyncio.sleep(1.2)

    outcome = await run_attempt(order(timeout_s=1.0), Place(gives(LARGE), keeps=slow))
    assert (outcome.verdict, outcome.output_blob, outcome.error) == ("succeeded", "kept", None)


async def test_an_output_that_is_being_kept_can_be_stopped() -> None:
    keeping = asyncio.Event()

    async def silent() -> None:
        keeping.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(run_attempt(order(), Place(gives(LARGE), keeps=silent)))
    await keeping.wait()
    task.cancel()
    assert (await task).verdict == "cancelled"


async def test_blobs_are_waited_for_for_less_than_the_time_that_is_left() -> None:
    place = Place(gives(1), blobs={"abc": b'{"n": {"$ref": "a.output"}}'}, known={"a": 7})
    await run_attempt(order(input_blob="abc", referred=("a",), timeout_s=1000.0), place)
    assert len(place.within) == 2
    assert all(800 < within_s < 950 for within_s in place.within)


async def test_a_large_input_is_fetched() -> None:
    async def run(given: dict[str, Json], _context: ToolContext) -> ToolResult:
        return ToolResult(output=given)

    place = Place(run, blobs={"abc": b'{"n": {"$ref": "a.output"}}'}, known={"a": 7})
    outcome = await run_attempt(order(input_blob="abc", referred=("a",)), place)
    assert outcome.output == '{"n":7}'


@pytest.mark.parametrize(
    ("failure", "verdict"),
    [
        (Transient("BLOB_STORE_UNAVAILABLE", "away"), "lost"),
        (Bug("BLOB_CORRUPT", "it is not what it should be"), "failed"),
    ],
)
async def test_a_large_input_that_can_not_be_had(failure: RayloomError, verdict: str) -> None:
    outcome = await run_attempt(order(input_blob="abc"), Place(gives(1), blobs={"abc": failure}))
    assert outcome.verdict == verdict
    assert outcome.error is not None
    assert (outcome.error.code, outcome.called) == (failure.code, False)
