"""The own lane, as far as it goes without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr
from ray import exceptions as ray_errors

from rayloom.actors import lanes
from rayloom.actors.lanes import KNOWN_SHAPES, OwnLane
from rayloom.actors.settings import EngineSettings, WorkerSettings
from rayloom.dag.resources import ResourceShape
from rayloom.db.settings import DatabaseSettings, RedisSettings
from rayloom.tools.settings import ToolSettings

ANY_SETTINGS: Any = None


async def test_the_options_of_shapes_that_nobody_asks_for_any_more_are_forgotten(monkeypatch: Any) -> None:
    monkeypatch.setattr(lanes, "_Ends", lambda _loop: None)
    made: list[float] = []

    class Function:
        def options(self, *, num_cpus: float, num_gpus: float, max_retries: int) -> None:
            made.append(num_cpus)

    monkeypatch.setattr("ray.remote", lambda **_options: lambda _function: Function())
    lane = OwnLane(ANY_SETTINGS)
    for cpus in (1, 1, *range(2, KNOWN_SHAPES + 2), 1):
        assert lane._options(ResourceShape(cpus=cpus)) == {"num_cpus": cpus, "num_gpus": 0, "max_retries": 0}
    assert made == [1, *range(2, KNOWN_SHAPES + 2), 1], "each is checked by Ray once while it is known"


ERRORS: Any = ray_errors  # some of them are untyped


@pytest.mark.parametrize(
    ("error", "verdict", "code", "retryable"),
    [
        (ERRORS.TaskCancelledError(), "cancelled", "CANCELLED", False),
        (ERRORS.OutOfMemoryError("no memory"), "failed", "OUT_OF_MEMORY", True),
        (ERRORS.NodeDiedError("gone"), "lost", "NODE_LOST", True),
        (ERRORS.LocalRayletDiedError(), "lost", "NODE_LOST", True),
        (ERRORS.WorkerCrashedError(), "failed", "WORKER_DIED", True),
        (ERRORS.TaskUnschedulableError("no node"), "failed", "UNSCHEDULABLE", False),
        (ERRORS.RpcError("no answer"), "lost", "RAY_FAILED", True),
        (ERRORS.ObjectStoreFullError("full"), "failed", "NO_SPACE", True),
        (ERRORS.OutOfDiskError("full"), "failed", "NO_SPACE", True),
        (ERRORS.PendingCallsLimitExceeded("too many"), "failed", "RAY_FAILED", True),
        (ERRORS.RayTaskError("attempt", "…", ValueError("a bug")).as_instanceof_cause(), "failed", "INTERNAL", False),
        (ValueError("an outcome that can't be read"), "failed", "INTERNAL", False),
    ],
)
def test_what_ray_says_of_an_attempt_that_gave_nothing_becomes_a_value(
    error: Exception, verdict: str, code: str, retryable: bool
) -> None:
    said, info = lanes._death(error)
    assert (said, info.code, info.retryable) == (verdict, code, retryable)


def _settings(retry_max_s: float) -> WorkerSettings:
    return WorkerSettings(
        engine=EngineSettings(retry_max_s=retry_max_s),
        database=DatabaseSettings(url=SecretStr("postgresql+asyncpg://nobody@127.0.0.1:1/none")),
        redis=RedisSettings(url=SecretStr("")),
        tools=ToolSettings(),
    )


def test_the_next_life_of_the_scheduler_finds_its_workers_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    lived: list[str] = []

    class Worker:
        def __init__(self, settings: WorkerSettings, **_by: str) -> None:
            self.settings = settings
            lived.append(f"made for {settings.engine.retry_max_s:g}")

        def warm(self) -> None:
            lived.append("warmed")

        def close(self) -> None:
            lived.append("closed")

    context = SimpleNamespace(get_worker_id=lambda: "w", get_node_id=lambda: "n")
    monkeypatch.setattr("ray.get_runtime_context", lambda: context)
    monkeypatch.setattr(lanes, "Worker", Worker)
    monkeypatch.setattr(lanes, "_worker", None)
    for settings in (_settings(60), _settings(60), _settings(61)):
        for _ in range(2):
            lanes._run_in_worker(settings, b"")
    assert lived == ["made for 60", *["warmed"] * 4, "closed", "made for 61", *["warmed"] * 2]
