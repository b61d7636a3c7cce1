"""What the kills of each kind of process make of what they see."""

from __future__ import annotations

import pytest

from tests.chaos.kills import SUPERVISOR, Blow, kind_of, longest_pause
from tests.integration.processes import Process


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("/venv/bin/python -c from rayloom.cluster.cli import main; main() up", SUPERVISOR),
        ("/venv/bin/python -P -c import sys; from rayloom.cluster.head import main 7 9 -c", "driver of Ray"),
        ("/x/bin/postgres -D /h/postgres/data", "PostgreSQL"),
        ("postgres: rayloom rayloom 127.0.0.1(40226) idle", "PostgreSQL session"),
        ("postgres: checkpointer", "PostgreSQL checkpointer"),
        ("postgres: autovacuum worker rayloom", "PostgreSQL autovacuum worker"),
        ("/x/redis-server 127.0.0.1:22688", "Redis"),
        ("ray-dashboard-JobHead-0 (python -c from multiprocessing.forkserver import main)", "dashboard module JobHead"),
        ("ray::IDLE", "idle worker"),
        (
            "/venv/bin/python /x/ray/_private/workers/default_worker.py --node-ip-address=127.0.0.1",
            "worker that starts",
        ),
        ("ray::core.sleep", "worker"),
        ("/x/raylet/raylet --raylet_socket_name=/s", "raylet"),
    ],
)
def test_kind_is_known_by_the_command_line(title: str, kind: str) -> None:
    assert kind_of(Process(1, 0, 0, title)) == kind


def test_pause_is_the_longest_that_begins_soon_after_the_blow() -> None:
    # What ran before the blow may be committed after it; a pause of the load itself comes later.
    assert longest_pause(Blow(("GCS",), at=100.0), [100.2, 101.0, 128.5, 129.0, 190.0]) == 27.5
    assert longest_pause(Blow(("GCS",), at=100.0), []) == 0.0
