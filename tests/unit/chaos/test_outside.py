"""What stands outside a chaos run: the receiver's ledger, and what Redis may keep."""

from __future__ import annotations

import itertools

import orjson

from rayloom.dag import webhook
from tests.chaos.history import left_in_redis
from tests.chaos.receiver import ILL, SECRET, TELLS_MAX, WELL, Outside, is_signed

BODY = orjson.dumps({"id": "h", "data": {"task_id": "t", "status": "COMPLETED"}})


def signed() -> dict[str, str]:
    """The headers of a webhook as they come."""
    key = webhook.secret_bytes(SECRET)
    assert key is not None
    return webhook.headers(key, webhook_id="h", timestamp=1, body=BODY)


def test_a_webhook_that_is_refused_or_whose_answer_is_lost_is_heard_in_the_end() -> None:
    for seed in range(20):
        outside = Outside(seed)
        fates = [outside.hear(signed(), BODY) for _ in range(TELLS_MAX + 1)]
        assert "heard" in fates
        assert len(outside.heard) == sum(fate != "refused" for fate in fates)
        assert all(each.is_signed and each.task_status == "COMPLETED" for each in outside.heard)


def test_a_signature_of_anything_else_is_wrong() -> None:
    assert is_signed(signed(), BODY)
    assert not is_signed(signed(), BODY + b" ")
    assert not is_signed(signed() | {"webhook-timestamp": "2"}, BODY)
    assert not is_signed(signed() | {"webhook-timestamp": ""}, BODY)


def test_the_target_breaks_down_now_and_then_and_all_calls_are_in_the_ledger() -> None:
    outside = Outside(1)
    statuses = [outside.call(str(number)) for number in range(1_000)]
    assert [(call.sub_task_id, call.status) for call in outside.calls] == list(
        zip(map(str, range(1_000)), statuses, strict=True)
    )
    spells = [(status, len(list(spell))) for status, spell in itertools.groupby(statuses)]
    assert {status for status, _ in spells} == {200, 503}
    for status, length in spells[:-1]:
        least, most = WELL if status == 200 else ILL
        assert least <= length <= most


def test_what_waits_in_a_queue_is_left_behind_and_what_never_expires() -> None:
    keys = {"rayloom:shapes": False, "rayloom:ready:x": True, "rayloom:result:y": True, "else": False}
    assert left_in_redis(keys, lambda key: ["id"] if key == "rayloom:ready:x" else []) == [
        "rayloom:ready:x id",
        "else never expires",
    ]
