"""Who comes first when there is not room for all, and how many of one user's may run at once."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

from uuid_utils.compat import uuid7

from tests.integration.instance import Instance
from tests.integration.runs import Run, sleep
from tests.integration.waiting import wait_until


def test_a_late_task_of_high_priority_passes_what_is_queued(instance: Instance) -> None:
    with instance.client() as client:
        low = Run.submit(instance, client, [sleep(f"low{i}", 0.5) for i in range(200)], priority=1)
        wait_until(lambda: low.progress()["completed"] >= 1, what=low.progress)
        high = Run.submit(instance, client, [sleep("high", 0.01)], priority=10)
        finished_at = datetime.fromisoformat(high.completed()["finished_at"])
        low.completed()
        begun = [datetime.fromisoformat(subtask["started_at"]) for subtask in low.subtasks().values()]
        assert min(begun) < finished_at
        assert sum(at > finished_at for at in begun) > 100, "most of the queue was still waiting"


def test_a_user_who_may_run_one_at_a_time_does(instance: Instance) -> None:
    with instance.http() as admin:
        made = admin.post("/keys", json={"user": f"frugal-{uuid7()}"}).json()
        limits = {"max_concurrent": 1}
        put = admin.put(f"/quotas/{made['user_id']}", json=limits)
        assert put.status_code == 200
        assert admin.get(f"/quotas/{made['user_id']}").json()["max_concurrent"] == 1
    with instance.client(made["key"]) as client, instance.client() as others:
        limited = [Run.submit(instance, client, [sleep(f"s{i}", 0.05) for i in range(8)]) for _ in range(2)]
        free = Run.submit(instance, others, [sleep(f"s{i}", 0.05) for i in range(8)])
        free.completed()
        for run in limited:
            run.completed()
            run.expect_sound()
        subtasks = [subtask for run in limited for subtask in run.subtasks().values()]
        times = ("started_at", "finished_at")
        spans = [tuple(datetime.fromisoformat(subtask[name]) for name in times) for subtask in subtasks]
        assert len(spans) == 16
        overlapping = [(a, b) for a, b in pairwise(sorted(spans)) if b[0] < a[1]]
        assert not overlapping, overlapping[:3]
