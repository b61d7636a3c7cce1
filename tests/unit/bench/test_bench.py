"""The benchmark itself: its DAGs are what they are called, and a repetition that is wrong is never counted."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import pytest

from bench import run
from bench.over_rest import OverRest
from bench.report import Report
from bench.shapes import BrokenRun, NodeRun, Run, Shape, chain, diamond, fan, layered, verify, workloads

PLAIN = {workload.name: workload for workload in workloads(seed=7)}


def _orderly(shape: Shape) -> tuple[NodeRun, ...]:
    return tuple(NodeRun(started_at=node, finished_at=node + 0.5) for node in range(len(shape.dependencies)))


def test_shapes_are_what_they_are_called() -> None:
    assert diamond().dependencies == ((), (0,), (0,), (0,), (1, 2, 3))
    assert chain(3).dependencies == ((), (0,), (1,))
    assert len(fan(1_000).dependencies) == 1_002
    assert fan(1_000).sinks == (1_001,)


def test_the_random_dag_is_the_same_each_time_and_has_three_dependencies_a_node() -> None:
    shape = layered(layers=20, width=50, seed=7)
    assert shape == layered(layers=20, width=50, seed=7)
    assert shape != layered(layers=20, width=50, seed=8)
    assert len(shape.dependencies) == 1_000
    assert 2.5 < sum(map(len, shape.dependencies)) / 1_000 < 3.5
    assert all(each < node for node, dependencies in enumerate(shape.dependencies) for each in dependencies)


def test_a_run_in_order_is_right() -> None:
    shape = layered(layers=4, width=5, seed=1)
    verify([shape], Run(seconds=1, nodes=(_orderly(shape),)))


def test_a_node_before_its_dependency_had_ended_is_wrong() -> None:
    nodes = list(_orderly(diamond()))
    nodes[4] = NodeRun(started_at=3.4, finished_at=9)
    with pytest.raises(BrokenRun, match="node 4 began before its dependency 3"):
        verify([diamond()], Run(seconds=1, nodes=(tuple(nodes),)))


def test_a_second_attempt_is_wrong() -> None:
    nodes = list(_orderly(diamond()))
    nodes[1] = NodeRun(started_at=1, finished_at=1.5, attempts=2)
    with pytest.raises(BrokenRun, match="2 attempts"):
        verify([diamond()], Run(seconds=1, nodes=(tuple(nodes),)))


class _Steady:
    """A side on which everything takes two seconds."""

    def run(self, shapes: Sequence[Shape]) -> Run:
        return Run(seconds=2, nodes=tuple(_orderly(shape) for shape in shapes))


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("W1", {"": 501}),
        ("W2", {"": 20}),
        ("W3t", {"": 500}),
        ("W3l", {"p50": 2_000, "p95": 2_000}),
        ("W5", {"": 500}),
    ],
)
def test_figures(name: str, figures: dict[str, float]) -> None:
    assert PLAIN[name].measure(_Steady()) == pytest.approx(figures)


def test_the_ratio_is_of_speeds_whatever_the_unit() -> None:
    report = Report(settings={})
    for side, rate, latency in (("rayloom", 100, 10), ("plain Ray", 200, 5)):
        report.add(side, "W1", rate)
        report.add(side, "W2", latency)
    table = report.as_markdown([PLAIN["W1"], PLAIN["W2"]])
    assert [row.split("|")[-2].strip() for row in table.splitlines()[2:]] == ["0.50", "0.50"]
    assert report.as_json([PLAIN["W1"], PLAIN["W2"]])["figures"]["W2"]["ratio"] == 0.5


class FakeApi:
    """One task that went through as it should; a test changes what it answers."""

    def __init__(self, shape: Shape) -> None:
        self.plan: dict[str, Any] = {}
        self.ends: tuple[str, ...] = ("PROCESSING", "COMPLETED")
        self.items = [
            {
                "id": f"n{node}",
                "status": "COMPLETED",
                "output": None,
                "attempts": 1,
                "started_at": f"2026-01-01T00:00:{node:02d}.000000Z",
                "finished_at": f"2026-01-01T00:00:{node:02d}.500000Z",
            }
            for node in range(len(shape.dependencies))
        ]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path.removeprefix("/api/v1")
        if request.headers["Authorization"] != "Bearer key":
            return httpx2.Response(401)
        if (request.method, path) == ("POST", "/tasks"):
            self.plan = json.loads(request.content)["plan"]
            return httpx2.Response(202, json={"task_id": "t"})
        if path == "/tasks":
            return httpx2.Response(
                200, json={"items": [{"task_id": "t", "status": self.ends[-1]}], "next_cursor": None}
            )
        if path == "/tasks/t/events":
            blocks = [f'id: {i}\nevent: task\ndata: {{"to": "{to}"}}\n\n' for i, to in enumerate(self.ends)]
            noise = 'id: 9\nevent: subtask\ndata: {"to": "FAILED"}\n\n: quiet\n\n'
            return httpx2.Response(200, text=noise + "".join(blocks))
        if path == "/tasks/t/subtasks":
            cursor = request.url.params.get("cursor")
            half = self.items[2:] if cursor else self.items[:2]
            return httpx2.Response(200, json={"items": half, "next_cursor": None if cursor else "more"})
        if path == "/tasks/t":
            return httpx2.Response(200, json={"error": {"code": "X"}})
        return httpx2.Response(200, json=self.items[-1])


@pytest.fixture
def api() -> FakeApi:
    return FakeApi(diamond())


@pytest.fixture
def connect(api: FakeApi) -> Callable[[float | None], OverRest]:
    return lambda cpus: OverRest("http://api.test", "key", cpus=cpus, transport=httpx2.MockTransport(api))


def test_over_rest_submits_follows_and_reads_every_node(
    api: FakeApi, connect: Callable[[float | None], OverRest]
) -> None:
    run = connect(0.5).run([diamond()])
    verify([diamond()], run)
    assert [len(nodes) for nodes in run.nodes] == [5]
    assert run.nodes[0][4].started_at - run.nodes[0][0].started_at == 4
    assert api.plan["subtasks"][4]["depends_on"] == ["n1", "n2", "n3"]
    assert all(each["resources"] == {"num_cpus": 0.5} for each in api.plan["subtasks"])


def test_without_cpus_the_tool_decides(api: FakeApi, connect: Callable[[float | None], OverRest]) -> None:
    connect(None).run([diamond(), diamond()])
    assert all("resources" not in each for each in api.plan["subtasks"])


def test_a_task_that_failed_is_wrong(api: FakeApi, connect: Callable[[float | None], OverRest]) -> None:
    api.ends = ("PROCESSING", "FAILED")
    with pytest.raises(BrokenRun, match="FAILED"):
        connect(None).run([diamond()])
    with pytest.raises(BrokenRun, match="FAILED"):
        connect(None).run([diamond(), diamond()])


def test_a_stream_that_ends_too_early_is_wrong(api: FakeApi, connect: Callable[[float | None], OverRest]) -> None:
    api.ends = ("PROCESSING",)
    with pytest.raises(BrokenRun, match="ended before"):
        connect(None).run([diamond()])


@pytest.mark.parametrize("change", [{"status": "SKIPPED"}, {"output": 1}, {"id": "other"}, {"id": "n0"}])
def test_a_subtask_that_is_not_as_it_should_be_is_wrong(
    api: FakeApi, connect: Callable[[float | None], OverRest], change: dict[str, Any]
) -> None:
    api.items[3].update(change)
    with pytest.raises(BrokenRun):
        connect(None).run([diamond()])


def test_who_ends_it_ends_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr("signal.signal", lambda number, handler: handlers.update({number: handler}))
    assert run.main(["no-such-workload"]) == 2
    with pytest.raises(SystemExit) as ended:
        handlers[signal.SIGTERM](signal.SIGTERM, None)
    assert ended.value.code == 128 + signal.SIGTERM
