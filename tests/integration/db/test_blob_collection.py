"""Blobs that nothing refers to go, after their time of grace; no other ever does, whoever is at work meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis
from uuid_utils.compat import uuid7

from rayloom.actors.blob_collector import BlobCollector
from rayloom.actors.described import describe
from rayloom.dag.errors import UserError
from rayloom.db import attempts, blob_collection
from rayloom.db.blobs import Blob, BlobStore, split
from rayloom.db.catalogue import Catalogue
from rayloom.db.engine import driver
from rayloom.db.files import TaskFiles
from rayloom.db.s3 import BlobsAway, S3Place
from rayloom.db.settings import BlobSettings
from rayloom.db.submit import NewTask, submit_task
from rayloom.tools.builtin.catalogue import BUILTINS
from tests.integration.db.spine import Spine, outcome, plan_of
from tests.integration.s3 import S3Server

GRACE_S = 3600.0


@pytest.fixture(params=["postgres", "s3"])
async def spine(request: pytest.FixtureRequest, spine: Spine, redis: Redis, s3: S3Server) -> Spine:
    """One whose large contents are in PostgreSQL, and one whose are in S3."""
    settings = BlobSettings() if request.param == "postgres" else s3.settings(uuid7().hex)
    spine.blobs = BlobStore(spine.engine, redis, settings)
    # Of tests before: who keeps all in PostgreSQL does not know how S3 is reached.
    await spine.rows(f"DELETE FROM blobs b WHERE NOT {blob_collection.USED}")
    await spine.rows("DELETE FROM blob_remains")
    return spine


def content() -> bytes:
    return uuid7().hex.encode() * 4000


async def old(spine: Spine, data: bytes | None = None) -> Blob:
    """A blob that was put before the time of grace began."""
    blob = await spine.blobs.put(data or content())
    await age(spine, blob)
    return blob


async def age(spine: Spine, *blobs: Blob) -> None:
    await spine.rows(
        "UPDATE blobs SET touched_at = now() - make_interval(secs => $2) WHERE sha256 = ANY ($1)",
        [blob.sha256 for blob in blobs],
        GRACE_S + 1,
    )


async def collect(spine: Spine) -> None:
    """One whole round."""
    collector = BlobCollector(spine.engine, spine.blobs, grace_s=GRACE_S, every_s=1)
    await collector.collect()


async def remove(spine: Spine, blob: Blob) -> int:
    return await blob_collection.remove(spine.engine, [blob.sha256], grace_s=GRACE_S)


async def objects(spine: Spine, blob: Blob) -> list[str]:
    """The places of its objects that there are, of those that anything in the database knows."""
    rows = await spine.rows(
        "SELECT place FROM (SELECT place FROM blobs UNION SELECT place FROM blob_remains) p WHERE place LIKE $1",
        f"%/{blob.sha256}.%",
    )
    found = [(row["place"], *split(row["place"])) for row in rows]
    return [place for place, base, name in found if await spine.blobs.at(base).get(name) is not None]


async def is_there(spine: Spine, blob: Blob) -> bool:
    """Whether row and content are there; never one of them alone."""
    rows = await spine.rows("SELECT data, place FROM blobs WHERE sha256 = $1", blob.sha256)
    if not spine.blobs.place:
        return bool(rows)
    assert await objects(spine, blob) == [row["place"] for row in rows]
    return bool(rows)


async def complete(spine: Spine, task_id: UUID, key: str, blob: Blob) -> attempts.Committed:
    claimed = (await spine.claim(task_id, key))[key]
    how = outcome(output=None, output_blob=blob.sha256, output_size=blob.size)
    return await attempts.complete(spine.engine, [spine.ending(claimed, how)])


async def test_what_nothing_refers_to_goes_after_its_time(spine: Spine) -> None:
    unused, young = await old(spine), await spine.blobs.put(content())
    await collect(spine)
    assert [await is_there(spine, blob) for blob in (unused, young)] == [False, True]


async def test_what_a_task_needs_goes_with_the_task_unless_another_needs_it(spine: Spine) -> None:
    shared, output = await old(spine), await old(spine)
    data, file = content(), content()
    one, two = await spine.submit({"a": [], "b": []}), await spine.submit({"a": []})
    plan = plan_of({"a": []}, {"a": {"input": {"text": data.decode()}}})
    given = NewTask(user_id=spine.user_id, title="t", prompt=None, priority=5, plan=plan)
    three = await submit_task(spine.engine, spine.blobs, given)
    (row,) = await spine.rows("SELECT input_blob FROM sub_tasks WHERE parent_id = $1", three.task_id)
    input_ = Blob(sha256=row["input_blob"], size=0)
    await complete(spine, one.task_id, "a", shared)
    await complete(spine, one.task_id, "b", output)
    await complete(spine, two.task_id, "a", shared)
    await TaskFiles(spine.engine, spine.blobs, str(one.task_id)).write("x", file, "text/plain")
    (row,) = await spine.rows("SELECT sha256 FROM task_files WHERE task_id = $1", one.task_id)
    filed = Blob(sha256=row["sha256"], size=len(file))
    everything = [shared, output, input_, filed]
    await age(spine, *everything)
    await collect(spine)
    assert [await is_there(spine, blob) for blob in everything] == [True, True, True, True]
    await spine.rows("DELETE FROM tasks WHERE id = ANY ($1)", [one.task_id, three.task_id])
    await collect(spine)
    assert [await is_there(spine, blob) for blob in everything] == [True, False, False, False]
    await spine.rows("DELETE FROM tasks WHERE id = $1", two.task_id)
    await collect(spine)
    assert not await is_there(spine, shared)
    await spine.rows("DELETE FROM task_events WHERE task_id NOT IN (SELECT id FROM tasks)")


async def test_what_a_tool_keeps_goes_with_the_tool_unless_another_needs_it(spine: Spine) -> None:
    shared, own = await old(spine), await old(spine)
    catalogue = Catalogue(spine.engine)
    skill = replace(describe("skill.one", "skill:f00d", BUILTINS["core.echo"]), type="SKILL")
    await catalogue.add(skill, [shared.sha256, own.sha256, own.sha256])
    await catalogue.add(replace(skill, name="skill.two"), [shared.sha256])
    with pytest.raises(UserError) as refused:
        await catalogue.add(replace(skill, name="skill.three"), [shared.sha256, "0" * 64])
    assert refused.value.code == "TOOL_INVALID"
    await collect(spine)
    assert [await is_there(spine, blob) for blob in (shared, own)] == [True, True]
    await catalogue.remove("skill.one")
    await collect(spine)
    assert [await is_there(spine, blob) for blob in (shared, own)] == [True, False]
    assert [row.tool.name for row in (await catalogue.read()).rows if row.tool.type == "SKILL"] == ["skill.two"]
    await catalogue.remove("skill.two")
    await collect(spine)
    assert not await is_there(spine, shared)


async def test_a_round_looks_at_all_a_bounded_number_at_a_time(spine: Spine) -> None:
    unused = [await old(spine) for _ in range(5)]
    seen: list[str] = []
    after = ""
    while True:
        found = await blob_collection.look(spine.engine, after=after, grace_s=GRACE_S, limit=3)
        assert len(found.unused) <= 3
        seen += found.unused
        if not found.after:
            break
        assert found.after > after
        after = found.after
    assert {blob.sha256 for blob in unused} <= set(seen)
    assert len(seen) == len(set(seen))


@asynccontextmanager
async def transaction(spine: Spine) -> AsyncIterator[Any]:
    """Another connection, in a transaction that the block may commit."""
    async with driver(spine.engine) as connection:
        held = connection.transaction()
        await held.start()
        try:
            yield connection
        except BaseException:
            await held.rollback()
            raise
        await held.commit()


async def test_what_is_being_referred_to_is_left_alone(spine: Spine) -> None:
    blob, made = await old(spine), await spine.submit({"a": []})
    insert = "INSERT INTO task_files (task_id, path, sha256, size, media_type) VALUES ($1, 'x', $2, 1, 't')"
    async with transaction(spine) as other:
        await other.execute(insert, made.task_id, blob.sha256)
        assert await remove(spine, blob) == 0
    assert await remove(spine, blob) == 0
    assert await is_there(spine, blob)


async def test_a_reference_that_was_committed_after_the_first_look_is_seen(spine: Spine) -> None:
    blob, made = await old(spine), await spine.submit({"a": []})
    found = await blob_collection.look(spine.engine, after="", grace_s=GRACE_S)
    assert blob.sha256 in found.unused
    await complete(spine, made.task_id, "a", blob)
    assert await remove(spine, blob) == 0
    assert await is_there(spine, blob)


async def test_who_puts_while_it_is_removed_waits_and_makes_it_anew(spine: Spine) -> None:
    data = content()
    blob = await old(spine, data)
    async with transaction(spine) as other:
        await other.execute("SELECT FROM blobs WHERE sha256 = $1 FOR UPDATE", blob.sha256)
        putting = asyncio.create_task(spine.blobs.put(data))
        await _until_somebody_waits(spine)
        await other.execute("DELETE FROM blobs WHERE sha256 = $1", blob.sha256)
    assert await putting == blob
    assert await is_there(spine, blob)


async def test_who_refers_while_it_is_removed_waits_and_is_told(spine: Spine) -> None:
    blob, made = await old(spine), await spine.submit({"a": []})
    async with transaction(spine) as other:
        await other.execute("SELECT FROM blobs WHERE sha256 = $1 FOR UPDATE", blob.sha256)
        completing = asyncio.create_task(complete(spine, made.task_id, "a", blob))
        await _until_somebody_waits(spine)
        await other.execute("DELETE FROM blobs WHERE sha256 = $1", blob.sha256)
    committed = await completing
    assert (committed.accepted, len(committed.bereft)) == (frozenset(), 1)
    assert await spine.statuses(made.task_id) == {"a": "RUNNING"}


async def _until_somebody_waits(spine: Spine) -> None:
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(120):
        for _ in itertools.count():
            if await spine.rows(waiting):
                return
            await asyncio.sleep(0.01)


async def test_two_that_remove_do_not_wait_for_each_other(spine: Spine) -> None:
    blob = await old(spine)
    async with transaction(spine) as other:
        await other.execute("SELECT FROM blobs WHERE sha256 = $1 FOR UPDATE", blob.sha256)
        # Who waited would do so for ever: the lock is held until the end of this block.
        async with asyncio.timeout(60):
            assert await remove(spine, blob) == 0
    assert sorted(await asyncio.gather(remove(spine, blob), remove(spine, blob))) == [0, 1]


async def test_who_removes_an_object_too_late_harms_nobody(spine: Spine, redis: Redis) -> None:
    """Its row is gone, and somebody has put the same content again, before S3 hears of it."""
    data = content()
    blob = await old(spine, data)
    assert await remove(spine, blob) == 1
    assert await spine.blobs.put(data) == blob
    assert len(await objects(spine, blob)) == (2 if spine.blobs.place else 0)
    await blob_collection.clear(spine.engine, spine.blobs)
    await redis.flushdb()
    assert await spine.blobs.get(blob.sha256) == data
    assert await is_there(spine, blob)
    assert not await spine.rows("SELECT FROM blob_remains")


async def test_objects_are_removed_once_s3_is_back(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = await old(spine)

    async def away(*_: object) -> None:
        raise BlobsAway("s3://x", "", "gone")

    with monkeypatch.context() as patched:
        patched.setattr(S3Place, "delete", away)
        await collect(spine)
        assert len(await objects(spine, blob)) == bool(spine.blobs.place)
    await collect(spine)
    assert not await is_there(spine, blob)
    assert not await spine.rows("SELECT FROM blob_remains")


async def test_what_is_removed_is_refused_to_who_comes_later(spine: Spine) -> None:
    blob, made = await old(spine), await spine.submit({"a": []})
    assert await remove(spine, blob) == 1
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        await spine.rows("UPDATE sub_tasks SET input_blob = $2 WHERE parent_id = $1", made.task_id, blob.sha256)


async def test_a_place_that_is_away_keeps_nobody_from_the_others(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = await old(spine)
    # Before and after the place that answers, more than are removed at a time.
    nowhere = [f"s3://{bucket}/{n}" for bucket in ("a-gone", "z-gone") for n in range(3)]
    await spine.rows("INSERT INTO blob_remains SELECT unnest($1::text[])", nowhere)
    assert await remove(spine, blob) == 1
    monkeypatch.setattr(blob_collection, "LOT", 2)
    asked: list[str] = []
    delete = S3Place.delete

    async def perhaps(place: S3Place, names: Sequence[str]) -> None:
        asked.append(place.place)
        if "gone" in place.place:
            raise BlobsAway(place.place, "", "gone")
        await delete(place, names)

    monkeypatch.setattr(S3Place, "delete", perhaps)
    away = await blob_collection.clear(spine.engine, spine.blobs)
    assert [failure.message for failure in away] == [
        f"s3://{name} did not answer: gone" for name in ("a-gone", "z-gone")
    ]
    assert sorted(row["place"] for row in await spine.rows("SELECT place FROM blob_remains")) == nowhere
    assert asked.count("s3://a-gone") == asked.count("s3://z-gone") == 1
    assert await objects(spine, blob) == []
    await spine.rows("DELETE FROM blob_remains")
