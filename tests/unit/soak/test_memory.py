"""Roles of processes, and how far each has grown."""

from __future__ import annotations

import mmap
import os

import pytest

from tests.integration.processes import Process
from tests.soak.memory import MB, Sample, Use, base_of, bound_mb, growths, measure, role_of, table


@pytest.mark.parametrize(
    ("title", "role"),
    [
        ("ray::_SchedulerActor", "actor SchedulerActor"),
        ("ray::_SchedulerActor.health", "actor SchedulerActor"),
        ("ray::ServeController.listen_for_change", "actor ServeController"),
        ("ray::ServeReplica:rayloom:Api", "Serve replica Api"),
        ("ray::ServeReplica:rayloom:Api.handle_request", "Serve replica Api"),
        ("ray::IDLE", "Ray worker"),
        ("ray::core.noop", "Ray worker"),
        ("ray::rayloom:warm-up", "Ray worker"),
        ("ray::DashboardAgent", "Ray dashboard agent"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "Ray GCS"),
        ("/x/bin/python -c from rayloom.cluster.cli import main; main() up", "rayloom up"),
        ("postgres: rayloom rayloom 127.0.0.1(55006) idle", "PostgreSQL connection"),
        ("postgres: checkpointer ", "PostgreSQL checkpointer"),
        ("/x/bin/redis-server 127.0.0.1:6379", "redis-server"),
    ],
)
def test_role_of_a_process_is_that_of_its_successor(title: str, role: str) -> None:
    assert role_of(title) == role


def _sample(*sizes: tuple[int, str, int]) -> Sample:
    uses = tuple(
        Use(process=Process(pid=pid, parent=1, born=pid, title=role), role=role, size=size * MB)
        for pid, role, size in sizes
    )
    return Sample(at_s=0.0, done=0, uses=uses)


def test_growth_is_that_of_the_largest_process_of_each_role() -> None:
    base = _sample((1, "up", 100), (2, "worker", 50), (3, "worker", 80))
    end = _sample((1, "up", 130), (2, "worker", 79), (4, "worker", 120), (5, "new", 7))
    found = growths(base, end)
    assert [(each.role, each.grown_mb) for each in found] == [("worker", 40), ("up", 30), ("new", 7)]
    assert table(found).splitlines()[2:] == [
        "| worker | 80 | 120 | +40 |", "| up | 100 | 130 | +30 |", "| new | 0 | 7 | +7 |",
    ]  # fmt: skip


def test_bound_scales_with_the_subtasks_after_the_base() -> None:
    assert (base_of(200_000), bound_mb(200_000)) == (20_000, 100)
    assert (base_of(110_000), bound_mb(110_000)) == (20_000, 50)
    assert (base_of(40_000), bound_mb(40_000)) == (20_000, 50)
    assert base_of(1_000) == 500


def test_memory_of_this_process_is_measured_without_what_it_shares() -> None:
    me = Process(pid=os.getpid(), parent=1, born=1, title="python")
    (before,) = measure([me])
    # Much more than its share of libraries changes by, as other processes that use the same ones come and go.
    with mmap.mmap(-1, 400 * MB) as shared:
        for _ in range(400):
            shared.write(b"x" * MB)
        (with_shared,) = measure([me])
    own = b"x" * 400 * MB
    (with_own,) = measure([me])
    assert len(own) == 400 * MB
    assert with_shared.size - before.size < 200 * MB
    assert with_own.size - before.size > 200 * MB
