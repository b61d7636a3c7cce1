"""Share whole raylooms between tests, and put tests that share one into one process.

Tests run in several processes at once (`make test`). Every file is a group, and a group stays in one process; the files
that share a rayloom are one group. A shared rayloom starts with the first test of its group and ends with the last one.
Examples are drawn the same in every run, however slow the machine is. `--hypothesis-profile=search` draws others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.instance import Instance, running

# A machine that is busy is no fault of what is tested; by itself an example may take 200 ms.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("search"), derandomize=True)
settings.load_profile("steady")

SHARED: Final = ("instance", "private_instance")
"""The fixtures of this file that give a rayloom to several files."""

LONGEST_FIRST: Final = (
    "shared rayloom: instance",
    "shared rayloom: private_instance",
    "tests/integration/engine/test_budgets.py",
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

_group: Final = pytest.StashKey[str]()
_used_by_group: Final = ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its group, and sort the groups."""
    for item in items:
        item.stash[_group] = group = _group_of(item)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: _rank(item.stash[_group]))


def _group_of(item: pytest.Item) -> str:
    definitions = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    for name in SHARED:
        if name in definitions and definitions[name][-1].baseid == "tests":
            return f"shared rayloom: {name}"
    return item.nodeid.partition("::")[0]


def _rank(group: str) -> tuple[int, str]:
    ranks = (rank for rank, prefix in enumerate(LONGEST_FIRST) if group.startswith(prefix))
    return next(ranks, len(LONGEST_FIRST)), group


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Stop a shared rayloom after the last test of its group: an idle one costs the other processes time."""
    yield
    if nextitem is None or nextitem.stash[_group] != item.stash[_group]:
        _used_by_group.close()


@pytest.fixture(scope="session")
def instance() -> Instance:
    """Give a rayloom that many tests share: use it, break nothing."""
    return _used_by_group.enter_context(running())


@pytest.fixture(scope="session")
def private_instance() -> Instance:
    """Give a rayloom to kill parts of; each test leaves it ready for the next one."""
    return _used_by_group.enter_context(running())
