"""Every end is told to whoever asked for it, nobody is answered 500, and at last nobody holds anything any more."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final

from tests.chaos.case import TERMINAL, Case, Violation
from tests.chaos.record import Heard
from tests.chaos.rules import Rules


def _posted(case: Case) -> Iterator[Violation]:
    """Each end of a task with a callback stands in the outbox once."""
    posted: dict[str, Counter[str]] = defaultdict(Counter)
    for webhook in case.history.webhooks:
        posted[webhook.task_id][webhook.task_status] += 1
    for task in case.history.tasks:
        events = case.events.get((task.id, "task", None), []) if task.has_callback else []
        ends = Counter(each.target or "" for each in events if each.target in TERMINAL)
        if posted[task.id] != ends:
            said = f"it ended as {dict(ends)}, and the outbox had {dict(posted[task.id])}"
            yield Violation(rule="webhooks", task_id=task.id, what=said)


def _told(case: Case) -> Iterator[Violation]:
    """Each of them was heard, once or more, always under the same id with the same words and a right signature."""
    heard: dict[str, list[Heard]] = defaultdict(list)
    for each in case.history.heard:
        heard[each.id].append(each)
    known = {webhook.id: webhook for webhook in case.history.webhooks}
    for id_ in heard.keys() - known.keys():
        yield Violation(rule="webhooks", task_id=heard[id_][0].task_id, what=f"{id_} was heard, and nobody knows it")
    for id_, webhook in known.items():
        if webhook.status != "delivered":
            said = f"{id_}, of {webhook.task_status}, is {webhook.status}"
            yield Violation(rule="webhooks", task_id=webhook.task_id, what=said)
        elif not heard[id_]:
            yield Violation(rule="webhooks", task_id=webhook.task_id, what=f"{id_} is delivered, and nobody heard it")
        said_so = {(each.task_id, each.task_status) for each in heard[id_]}
        if said_so - {(webhook.task_id, webhook.task_status)} or len({each.body for each in heard[id_]}) > 1:
            yield Violation(rule="webhooks", task_id=webhook.task_id, what=f"{id_} told several things: {said_so}")
        if not all(each.is_signed for each in heard[id_]):
            yield Violation(rule="webhooks", task_id=webhook.task_id, what=f"{id_} was signed wrongly")


def _server_faults(case: Case) -> Iterator[Violation]:
    """Whatever is killed, who asks is answered 503, or by nobody: a 500 of ours is a fault of ours."""
    for fault in case.history.circumstances.faults:
        yield Violation(rule="server fault", what=f"500 to {fault.method} {fault.path}: {fault.detail}")


def _left_behind(case: Case) -> Iterator[Violation]:
    left = case.history.leftovers
    for name, what in (
        ("attempts in flight", left.in_flight),
        ("outcomes not committed", left.uncommitted),
        ("reservations", left.reservations),
        ("blobs that nobody owns", left.orphan_blobs),
        ("webhooks that nobody told", left.untold_webhooks),
        ("ids in Redis", left.redis_ids),
        ("sandboxes", left.sandboxes),
    ):
        if what:
            yield Violation(rule="left behind", what=f"{name}: {what}")


RULES: Final[Rules] = (_posted, _told, _server_faults, _left_behind)
