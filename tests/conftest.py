"""Share whole raylooms between tests, and keep tests that share one in one process.

Tests run in several processes at once (`make test`). Every file is a group, and a group stays in one process; the files
that share a rayloom are one group. A shared rayloom starts with the first test of its group and ends with the last one.
Examples are drawn the same in every run, however slow the machine is. `--hypothesis-profile=search` draws others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.integration.instance import Instance, running
from tests.integration.models.rig import Rig, rigged

# A machine that is busy is no fault of what is tested; by itself an example may take 200 ms.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("search"), derandomize=True)
settings.load_profile("steady")

_ENGINE: Final = "tests/integration/engine"
SHARED: Final = {
    "instance": (
        "tests/integration/cluster/test_listeners.py",
        "tests/integration/cluster/test_other_users.py",
        *(f"{_ENGINE}/test_{name}.py" for name in (
            "cached", "cancel", "dead_letters", "failures", "fairness", "graphs", "mcp", "mcp_servers", "outputs",
            "policies", "ray", "slow_clients", "webhooks",
        )),
        "tests/story/test_diamond.py",
    ),
    "model_instance": tuple(f"{_ENGINE}/test_{name}.py" for name in ("budgets", "early", "joiner", "models")),
    "private_instance": tuple(f"{_ENGINE}/test_{name}.py" for name in ("flush", "kills", "skills")),
}  # fmt: skip
"""The fixtures of this file, and the files that use each."""

LONGEST_FIRST: Final = (
    "shared rayloom: instance",
    "shared rayloom: private_instance",
    "shared rayloom: model_instance",
    "tests/integration/test_autoscaling.py",
    "tests/integration/tools/hostile",
    "tests/integration/tools",
    "tests/integration/cluster",
    "tests/integration/cli",
    "tests/integration/engine",
    "tests/integration/actors",
    "tests/integration",
    "tests/story",
    "tests/property",
    "tests/unit/actors",
)
"""Prefixes of groups. A group that takes minutes starts early, so that no process waits for another at the end."""

_groups: Final = {file: f"shared rayloom: {name}" for name, files in SHARED.items() for file in files}
_used_by_group: Final = ExitStack()


def _group(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return _groups.get(file, file)


class _Groups(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Give whole groups to processes. xdist's own `loadgroup` groups nothing under pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


@pytest.hookimpl(optionalhook=True)  # tests also run without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Replace xdist's schedulers by groups."""
    return _Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests by group. Raise UsageError for a file that shares a rayloom and is not in ``SHARED``."""
    for item in items:
        definitions = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
        for name in SHARED:
            shares = name in definitions and definitions[name][-1].baseid == "tests"
            if shares and _group(item.nodeid) != f"shared rayloom: {name}":
                raise pytest.UsageError(f"{item.nodeid} uses {name}: name its file in SHARED of tests/conftest.py")
    items.sort(key=lambda item: _rank(_group(item.nodeid)))


def _rank(group: str) -> tuple[int, str]:
    ranks = (rank for rank, prefix in enumerate(LONGEST_FIRST) if group.startswith(prefix))
    return next(ranks, len(LONGEST_FIRST)), group


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop a shared rayloom after the last test of its group: an idle one costs the other processes time."""
    yield
    if nextitem is None or _group(nextitem.nodeid) != _group(item.nodeid):
        _used_by_group.close()


@pytest.fixture(scope="session")
def instance() -> Instance:
    """Give a rayloom that many tests share: use it, break nothing."""
    return _used_by_group.enter_context(running())


@pytest.fixture(scope="session")
def private_instance() -> Instance:
    """Give a rayloom to kill parts of; each test leaves it ready for the next one."""
    return _used_by_group.enter_context(running())


@pytest.fixture(scope="session")
def model_rig() -> Rig:
    """Give the endpoint of the models of ``model_instance``."""
    return _used_by_group.enter_context(rigged())


@pytest.fixture(scope="session")
def model_instance(model_rig: Rig) -> Instance:
    """Give a rayloom whose models are scripted, and cost something."""
    url = model_rig.endpoint.url
    return _used_by_group.enter_context(
        running(RAYLOOM_LLM_BASE_URL=url, RAYLOOM_LLM_MODEL="scripted", RAYLOOM_LLM_PRICE_IN="1")
    )
