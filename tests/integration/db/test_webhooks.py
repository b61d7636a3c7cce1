"""The outbox of webhooks on a real record, delivered to a real server: once if all goes well, else until heard."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.actors import webhooks as teller_module
from rayloom.actors.settings import WebhookSettings
from rayloom.actors.webhooks import LOT, Webhooks
from rayloom.dag import webhook
from rayloom.db import webhooks
from rayloom.db.attempts import complete
from rayloom.db.blobs import BlobStore
from rayloom.db.cipher import Cipher
from rayloom.db.engine import driver
from rayloom.db.results import put_together
from rayloom.db.s3 import BlobsAway
from rayloom.db.settings import BlobSettings
from rayloom.db.submit import Callback
from rayloom.tools.addresses import AddressRules
from tests.integration.db.spine import Spine, outcome
from tests.unit.tools.web import Web
from tests.unit.tools.web import web as serving

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
MASTER = SecretStr("master")
WELL_IN_TIME_S = 3.0
"""A time-out that only what never answers runs into, however busy the machine is."""
LOOPBACK = AddressRules.parse(["127.0.0.1/32"])


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    async with serving() as site:
        yield site


@asynccontextmanager
async def telling(
    engine: AsyncEngine, *, rules: AddressRules = LOOPBACK, master: SecretStr = MASTER, **fields: Any
) -> AsyncIterator[Webhooks]:
    """Somebody who delivers, for the length of the block."""
    settings = WebhookSettings(secret_key=master, source="http://here", **{"retry_initial_s": 0.01, **fields})
    blobs = BlobStore(engine, Redis(), BlobSettings(cache_ttl_s=0))
    teller = Webhooks(engine, blobs, settings, rules, jitter=lambda: 0.0)
    loop = asyncio.create_task(teller.run())
    try:
        yield teller
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await teller.close()


async def until(look: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(120):
        for _ in itertools.count():
            if found := await look():
                return found
            await asyncio.sleep(0.02)
    raise AssertionError


def callback(url: str) -> Callback:
    return Callback(url=url, secret=Cipher(MASTER).encrypt(SECRET))


async def ended(spine: Spine, url: str, *, output: Any = 1) -> UUID:
    """A task that is COMPLETED and whose end is to be told."""
    made = await spine.submit({"a": []}, callback=callback(url), labels={"team": "x"})
    await spine.succeed((await spine.claim(made.task_id))["a"], output=output)
    return made.task_id


async def outbox(spine: Spine, task_id: UUID) -> list[Any]:
    return await spine.rows("SELECT * FROM webhooks WHERE task_id = $1 ORDER BY id", task_id)


async def settled(spine: Spine, task_id: UUID) -> Any:
    """The task's only webhook, as soon as nothing more is to be done about it."""

    async def look() -> Any:
        (row,) = await outbox(spine, task_id)
        return row if row["status"] != "pending" else None

    return await until(look)


async def test_an_end_is_told_signed_and_once(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook?token=1", status=204), output={"said": "größe"})

    async def said() -> Any:
        return await spine.rows("SELECT level, message FROM log_lines WHERE task_id = $1", task_id)

    async with telling(engine):
        row = await settled(spine, task_id)
        (line,) = await until(said)
    assert tuple(line) == ("INFO", "webhook of COMPLETED, attempt 1: delivered")
    assert (row["status"], row["attempts"], row["last_error"], row["result"]) == ("delivered", 1, None, None)
    (asked,) = web.asked
    assert (asked.method, asked.path) == ("POST", "/hook?token=1")
    head = asked.headers
    assert head["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert head["webhook-id"] == str(row["id"])
    signed = f"{head['webhook-id']}.{head['webhook-timestamp']}.".encode() + asked.body
    assert head["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
    event = json.loads(asked.body)
    at = row["at"].isoformat().replace("+00:00", "Z")
    assert event == {
        "specversion": "1.0", "id": str(row["id"]), "source": "http://here", "type": "rayloom.task.completed",
        "subject": str(task_id), "time": at, "datacontenttype": "application/json",
        "data": {
            "task_id": str(task_id), "status": "COMPLETED", "title": "a task", "labels": {"team": "x"},
            "result": {"said": "größe"}, "error": None,
        },
    }  # fmt: skip
    assert row["id"].version == 7


@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_result_that_is_kept_apart_is_told_as_details_show_it(
    spine: Spine, engine: AsyncEngine, web: Web, asked_before: bool
) -> None:
    made = await spine.submit({"a": []}, callback=callback(web.answer("/hook")))
    value = "x" * 100_000
    blob = await spine.blobs.put(orjson.dumps(value))
    how = outcome(output=None, output_blob=blob.sha256, output_size=blob.size)
    await complete(engine, [spine.ending((await spine.claim(made.task_id))["a"], how)])
    if asked_before:
        await put_together(engine, spine.blobs, made.task_id)
    async with telling(engine):
        await settled(spine, made.task_id)
    (asked,) = web.asked
    assert json.loads(asked.body)["data"]["result"] == value


async def test_who_puts_a_result_together_tells_it_as_who_tells_it_again(
    spine: Spine, engine: AsyncEngine, web: Web
) -> None:
    """Under one id there is one body, byte for byte: numbers and the order of keys are the database's."""
    made = await spine.submit({"a": []}, callback=callback(web.answer("/hook", status=500)))
    blob = await spine.blobs.put(orjson.dumps({"long": "x" * 100_000, "b": 1e5, "a": [2.50]}))
    how = outcome(output=None, output_blob=blob.sha256, output_size=blob.size)
    await complete(engine, [spine.ending((await spine.claim(made.task_id))["a"], how)])

    async def tried_again() -> bool:
        return len(web.asked) >= 2

    async with telling(engine):
        await until(tried_again)
        web.answer("/hook")
        await settled(spine, made.task_id)
    assert len({asked.body for asked in web.asked}) == 1


async def test_only_some_results_are_put_together_at_once(
    spine: Spine, engine: AsyncEngine, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = [0, 0]
    full = asyncio.Event()

    async def slowly(*_: object) -> Any:
        at_once[0] += 1
        at_once[1] = max(at_once)
        if at_once[0] == teller_module.TOGETHER:
            full.set()
        await full.wait()
        # Whoever might come too many has the time to.
        await asyncio.sleep(0.05)
        at_once[0] -= 1
        return "done"

    monkeypatch.setattr(teller_module, "put_together", slowly)
    made = [(await _kept_apart(spine, web.answer("/hook")))[0] for _ in range(teller_module.TOGETHER + 3)]
    async with telling(engine):
        for task_id in made:
            await settled(spine, task_id)
    assert (len(web.asked), at_once[1]) == (len(made), teller_module.TOGETHER)


async def test_every_end_of_a_task_is_written_down_with_it(engine: AsyncEngine) -> None:
    # Not audited: what a retry does is played here.
    spine = await Spine.of_new_user(engine)
    made = await spine.submit({"a": []}, callback=callback("http://x"))
    await spine.fail((await spine.claim(made.task_id))["a"])
    # What a retry does to it.
    await spine.rows(
        "UPDATE tasks SET status = 'PROCESSING', error = NULL, finished_at = NULL, open_count = 1, blocked_count = 0 "
        "WHERE id = $1",
        made.task_id,
    )
    await spine.rows(
        "UPDATE sub_tasks SET status = 'QUEUED', error = NULL, finished_at = NULL, queued_at = now() "
        "WHERE parent_id = $1",
        made.task_id,
    )
    await spine.succeed((await spine.claim(made.task_id))["a"], output=2)
    first, second = await outbox(spine, made.task_id)
    assert (first["task_status"], first["error"]["code"], first["result"]) == ("FAILED", "SUBTASKS_BLOCKED", None)
    assert (second["task_status"], second["error"], second["result"]) == ("COMPLETED", None, 2)
    other = await spine.submit({"a": []}, callback=callback("http://x"))
    await spine.rows("SELECT end_task($1, 'CANCELLED', NULL, 'no more')", other.task_id)
    assert [row["task_status"] for row in await outbox(spine, other.task_id)] == ["CANCELLED"]
    await spine.rows("UPDATE webhooks SET status = 'failed' WHERE user_id = $1", spine.user_id)


async def test_a_task_that_asked_for_nothing_tells_nothing(spine: Spine) -> None:
    made = await spine.submit({"a": []})
    await spine.succeed((await spine.claim(made.task_id))["a"])
    assert await outbox(spine, made.task_id) == []


@pytest.mark.parametrize("status", [302, 400, 404, 408, 429, 500, 503])
async def test_what_is_not_heard_is_told_again_under_the_same_id(
    spine: Spine, engine: AsyncEngine, web: Web, status: int
) -> None:
    url = web.answer("/hook", status=status, location="/elsewhere")
    task_id = await ended(spine, url)

    async def tried() -> Any:
        (row,) = await outbox(spine, task_id)
        return row if row["last_error"] else None

    async with telling(engine):
        row = await until(tried)
        assert (row["status"], row["last_error"]) == ("pending", f"the receiver answered {status}")
        web.answer("/hook", status=200)
        row = await settled(spine, task_id)
    assert (row["status"], row["last_error"]) == ("delivered", None)
    assert {asked.path for asked in web.asked} == {"/hook"}
    assert {asked.headers["webhook-id"] for asked in web.asked} == {str(row["id"])}
    assert row["attempts"] == len(web.asked) >= 2
    assert len({asked.body for asked in web.asked}) == 1


async def test_a_receiver_says_when_it_wants_to_hear_it_again(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook", status=429, retry_after="3600"))

    async def tried() -> Any:
        rows = await spine.rows(
            "SELECT next_at - now() AS wait FROM webhooks WHERE task_id = $1 AND last_error IS NOT NULL", task_id
        )
        return rows[0] if rows else None

    async with telling(engine):
        assert 3_500 < (await until(tried))["wait"].total_seconds() <= 3_600
    assert len(web.asked) == 1
    await spine.rows("UPDATE webhooks SET status = 'failed' WHERE task_id = $1", task_id)


async def test_a_receiver_that_wants_no_more_is_left_alone(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook", status=410))
    async with telling(engine):
        row = await settled(spine, task_id)
    assert (row["status"], row["attempts"], row["last_error"]) == ("failed", 1, "the receiver answered 410")


async def test_one_that_is_never_heard_is_given_up_and_kept(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook", status=500))
    await spine.rows("UPDATE webhooks SET attempts = $2 WHERE task_id = $1", task_id, webhook.ATTEMPTS - 1)
    dead = await ended(spine, web.answer("/dead", status=200))
    await spine.rows("UPDATE webhooks SET attempts = $2 WHERE task_id = $1", dead, webhook.ATTEMPTS)
    async with telling(engine):
        row = await settled(spine, task_id)
        assert (await settled(spine, dead))["status"] == "failed"
    assert (row["status"], row["attempts"], row["result"]) == ("failed", webhook.ATTEMPTS, 1)
    assert [asked.path for asked in web.asked] == ["/hook"]


async def test_an_address_that_is_not_public_is_not_called(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook?token=geheim"))
    named = await ended(spine, f"http://localhost:{web.port}/hook")
    async with telling(engine, rules=AddressRules.parse([])):
        rows = [await settled(spine, task_id), await settled(spine, named)]
    for row in rows:
        assert (row["status"], row["attempts"]) == ("failed", 1)
        assert row["last_error"].startswith("ADDRESS_REFUSED")
        assert "geheim" not in row["last_error"]
    assert web.asked == []


async def test_a_receiver_that_says_nothing_has_not_heard(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, f"{web.url}/hang")
    gone = await ended(spine, "http://127.0.0.1:1/")

    async def tried() -> Any:
        (row,), (other,) = await outbox(spine, task_id), await outbox(spine, gone)
        return (row, other) if row["last_error"] and other["last_error"] else None

    async with telling(engine, timeout_s=WELL_IN_TIME_S, retry_initial_s=100):
        row, other = await until(tried)
    assert row["last_error"].startswith("HTTP_TIMEOUT")
    assert other["last_error"].startswith("HTTP_FAILED")
    await spine.rows("UPDATE webhooks SET status = 'failed' WHERE user_id = $1", spine.user_id)


async def test_a_secret_of_another_key_is_said_to_be_so(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook"))
    async with telling(engine, master=SecretStr("another")):
        row = await settled(spine, task_id)
    assert (row["status"], "RAYLOOM_SECRET_KEY" in row["last_error"]) == ("failed", True)
    assert web.asked == []


async def test_several_that_deliver_at_once_tell_each_once(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    url = web.answer("/hook")
    tasks = [await ended(spine, url) for _ in range(4 * LOT)]
    async with telling(engine), telling(engine), telling(engine):
        for task_id in tasks:
            assert (await settled(spine, task_id))["attempts"] == 1
    told = [asked.headers["webhook-id"] for asked in web.asked]
    assert (len(told), len(set(told))) == (len(tasks), len(tasks))


async def test_what_somebody_took_who_then_died_is_told_by_another(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    task_id = await ended(spine, web.answer("/hook"))
    (taken,) = await webhooks.take(engine, limit=1, lease_s=3600)
    assert await webhooks.take(engine, limit=1, lease_s=3600) == []
    await spine.rows("UPDATE webhooks SET next_at = now() WHERE id = $1", taken.id)
    async with telling(engine):
        row = await settled(spine, task_id)
    assert (row["status"], row["attempts"], row["id"]) == ("delivered", 2, taken.id)
    # It was not dead after all: what it has to say comes too late.
    await webhooks.give_up(engine, taken, "too late")
    await webhooks.put_off(engine, taken, "too late", again_in_s=0)
    assert (await outbox(spine, task_id))[0]["status"] == "delivered"


async def test_a_slow_receiver_holds_up_its_own_only(spine: Spine, engine: AsyncEngine, web: Web) -> None:
    slow = [await ended(spine, f"{web.url}/hang") for _ in range(6 * LOT)]
    other = await Spine.of_new_user(engine)
    task_id = await ended(other, web.answer("/hook"))
    async with telling(engine):
        assert (await settled(other, task_id))["status"] == "delivered"
        assert (await outbox(spine, slow[-1]))[0]["attempts"] == 0
    await spine.rows("UPDATE webhooks SET status = 'failed' WHERE user_id = $1", spine.user_id)


async def test_a_task_takes_its_webhooks_with_it(spine: Spine) -> None:
    task_id = await ended(spine, "http://x")
    await spine.rows("DELETE FROM tasks WHERE id = $1", task_id)
    assert await outbox(spine, task_id) == []


async def _kept_apart(spine: Spine, url: str) -> tuple[UUID, str]:
    """A task whose result has still to be put together, and the blob that it is made of."""
    made = await spine.submit({"a": []}, callback=callback(url))
    blob = await spine.blobs.put(orjson.dumps(made.task_id.hex * 3_000))
    how = outcome(output=None, output_blob=blob.sha256, output_size=blob.size)
    await complete(spine.engine, [spine.ending((await spine.claim(made.task_id))["a"], how)])
    return made.task_id, blob.sha256


@pytest.mark.parametrize("is_silent", [False, True])
async def test_while_the_blob_store_is_away_a_result_is_waited_for_as_for_a_receiver(
    spine: Spine, engine: AsyncEngine, web: Web, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    task_id, _ = await _kept_apart(spine, web.answer("/hook"))

    async def away(*_: object) -> Any:
        if is_silent:
            await asyncio.Event().wait()
        raise BlobsAway("s3://b", "", "gone")

    async def tried() -> Any:
        (row,) = await outbox(spine, task_id)
        return row if row["last_error"] else None

    with monkeypatch.context() as patched:
        patched.setattr(teller_module, "put_together", away)
        async with telling(engine, timeout_s=0.2):
            row = await until(tried)
    said = (
        "BLOB_STORE_SLOW: the blob store did not answer: not within 0.2 s"
        if is_silent
        else "BLOB_STORE_UNAVAILABLE: s3://b did not answer: gone"
    )
    assert (row["status"], row["last_error"]) == ("pending", said)
    assert web.asked == []
    async with telling(engine):
        assert (await settled(spine, task_id))["status"] == "delivered"
    assert json.loads(web.asked[0].body)["data"]["result"] == task_id.hex * 3_000


async def test_a_result_that_is_gone_for_good_is_given_up_with_its_reason(
    spine: Spine, engine: AsyncEngine, web: Web
) -> None:
    task_id, sha256 = await _kept_apart(spine, web.answer("/hook"))
    await spine.rows("UPDATE blobs SET data = 'x' WHERE sha256 = $1", sha256)
    async with telling(engine):
        row = await settled(spine, task_id)
    assert (row["status"], row["attempts"], web.asked) == ("failed", 1, [])
    assert row["last_error"].startswith("BLOB_CORRUPT: ")
    assert sha256 in row["last_error"]


async def test_an_end_that_was_no_success_has_no_result_though_the_task_has_one_by_now(
    engine: AsyncEngine, web: Web
) -> None:
    # Not audited: the failure is played here.
    spine = await Spine.of_new_user(engine)
    task_id, _ = await _kept_apart(spine, web.answer("/hook"))
    await spine.rows(
        "UPDATE webhooks SET task_status = 'FAILED', error = '{\"code\": \"SUBTASKS_BLOCKED\"}' WHERE task_id = $1",
        task_id,
    )
    async with telling(engine):
        assert (await settled(spine, task_id))["status"] == "delivered"
    data = json.loads(web.asked[0].body)["data"]
    assert (data["status"], data["result"], data["error"]) == ("FAILED", None, {"code": "SUBTASKS_BLOCKED"})
    assert (await spine.task(task_id))["result_apart"]


async def test_host_that_does_not_resolve_is_given_up_after_an_hour(spine: Spine, engine: AsyncEngine) -> None:
    task_id = await ended(spine, "https://nowhere.invalid/hook")

    async def tried_again() -> Any:
        (row,) = await outbox(spine, task_id)
        return row if row["attempts"] >= 2 and row["last_error"] else None

    async with telling(engine):
        row = await until(tried_again)
    assert row["status"] == "pending"
    assert row["last_error"].startswith("DNS_FAILED")
    async with driver(engine) as connection:
        await connection.execute(
            "UPDATE webhooks SET unresolved_since = now() - interval '59 minutes', next_at = now() WHERE task_id = $1",
            task_id,
        )
    async with telling(engine, retry_initial_s=3600):

        async def put_off() -> Any:
            (now,) = await outbox(spine, task_id)
            return now if now["attempts"] > row["attempts"] and now["next_at"] > row["next_at"] else None

        late = await until(put_off)
    # The last attempt comes when the hour is over, however long the pause would be.
    (wait_s,) = [each[0] for each in await spine.rows(
        "SELECT extract(epoch FROM next_at - now()) FROM webhooks WHERE task_id = $1", task_id
    )]  # fmt: skip
    assert (late["status"], wait_s < 120) == ("pending", True)
    async with driver(engine) as connection:
        await connection.execute(
            "UPDATE webhooks SET unresolved_since = now() - interval '61 minutes', next_at = now() WHERE task_id = $1",
            task_id,
        )
    async with telling(engine):
        row = await settled(spine, task_id)
    assert row["status"] == "failed"
    assert row["last_error"].endswith("for 60 minutes")


async def test_hour_of_an_unresolved_host_begins_anew_with_another_failure(spine: Spine, engine: AsyncEngine) -> None:
    task_id = await ended(spine, "https://nowhere.invalid/hook")
    for unresolved in (True, False, True):
        (due,) = [each for each in await webhooks.take(engine, limit=100, lease_s=60) if each.task_id == str(task_id)]
        await webhooks.put_off(engine, due, "no", again_in_s=0, unresolved=unresolved)
        (row,) = await outbox(spine, task_id)
        assert (row["unresolved_since"] is not None) is unresolved
