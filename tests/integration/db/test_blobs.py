"""The blob store on a real PostgreSQL, a real S3 server and a real Redis: what is put stays, and is what it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine
from uuid_utils.compat import uuid7

from rayloom.dag.errors import Bug
from rayloom.db import blob_cache, blobs
from rayloom.db import s3 as s3_module
from rayloom.db.blob_cache import BlobCache
from rayloom.db.blobs import Blob, BlobStore
from rayloom.db.engine import driver
from rayloom.db.queue import PREFIX, make_redis
from rayloom.db.s3 import MARK, BlobsAway, S3Place
from rayloom.db.settings import BlobSettings, RedisSettings
from tests.integration.ports import free_ports
from tests.integration.s3 import S3Server, s3_server
from tests.integration.silence import Way


def content(size: int = 100_000) -> bytes:
    """Something that nobody else puts."""
    return uuid7().bytes * (size // 16 + 1)


def named(data: bytes) -> Blob:
    return Blob(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


@dataclass
class Kept:
    """A store, and a look behind it. ``prefix``: where its objects are; None for PostgreSQL."""

    store: BlobStore
    engine: AsyncEngine
    redis: Redis
    s3: S3Server
    prefix: str | None

    async def row(self, blob: Blob) -> tuple[int, bytes | None, str | None] | None:
        async with driver(self.engine) as connection:
            row = await connection.fetchrow("SELECT size, data, place FROM blobs WHERE sha256 = $1", blob.sha256)
        return None if row is None else (row["size"], row["data"], row["place"])

    def object(self, blob: Blob) -> tuple[str, Path]:
        """The one object of a blob: its name and its file."""
        assert self.prefix is not None
        found = self.s3.objects(self.prefix)
        [name] = [name for name in found if name.startswith(blob.sha256)]
        return name, found[name]

    async def spoil(self, blob: Blob) -> None:
        """Change what is kept durably, behind everybody's back."""
        if self.prefix is not None:
            await self.store.at(self.store.place).put(self.object(blob)[0], b"something else")
            return
        async with driver(self.engine) as connection:
            await connection.execute("UPDATE blobs SET data = 'something else' WHERE sha256 = $1", blob.sha256)

    async def forget_copies(self) -> None:
        await self.redis.flushdb()

    async def copy(self, blob: Blob) -> int:
        """How many milliseconds the copy in Redis has left; less than 0 when there is none."""
        return int(await self.redis.pttl(PREFIX + "blob:" + blob.sha256))


@pytest.fixture(params=["postgres", "s3"])
async def kept(request: pytest.FixtureRequest, engine: AsyncEngine, redis: Redis, s3: S3Server) -> Kept:
    prefix = None if request.param == "postgres" else f"t/{uuid7().hex}"
    settings = BlobSettings() if prefix is None else s3.settings(prefix)
    return Kept(BlobStore(engine, redis, settings), engine, redis, s3, prefix)


async def test_what_was_put_is_got_whatever_redis_forgets(kept: Kept) -> None:
    data = content()
    blob = await kept.store.put(data)
    assert blob == named(data)
    assert await kept.store.get(blob.sha256) == data
    await kept.forget_copies()
    assert await kept.store.get(blob.sha256) == data
    row = await kept.row(blob)
    if kept.prefix is None:
        assert row == (len(data), data, None)
    else:
        name, file = kept.object(blob)
        assert row == (len(data), None, f"s3://blobs/{kept.prefix}/{name}")
        assert file.read_bytes() == data


async def test_equal_contents_are_kept_once(kept: Kept) -> None:
    data = content()
    first, second = await asyncio.gather(kept.store.put(data), kept.store.put(data))
    assert first == second
    assert await kept.row(first) is not None


async def test_a_large_content(kept: Kept) -> None:
    data = content(20_000_000)
    blob = await kept.store.put(data)
    assert await kept.store.get(blob.sha256) == data
    assert await kept.copy(blob) < 0


async def test_copies_are_made_by_who_puts_and_who_reads_and_have_their_time(kept: Kept) -> None:
    blob = await kept.store.put(content())
    assert 0 < await kept.copy(blob) <= 600_000
    await kept.forget_copies()
    await kept.store.get(blob.sha256)
    assert 0 < await kept.copy(blob) <= 600_000


async def test_a_copy_spares_the_durable_place(kept: Kept) -> None:
    data = content()
    blob = await kept.store.put(data)
    await kept.spoil(blob)
    assert await kept.store.get(blob.sha256) == data


async def test_a_corrupt_copy_is_dropped_and_the_durable_place_read(kept: Kept) -> None:
    data = content()
    blob = await kept.store.put(data)
    await kept.redis.set(PREFIX + "blob:" + blob.sha256, b"\xff something else", ex=100)
    assert await kept.store.get(blob.sha256) == data
    assert await kept.redis.strlen(PREFIX + "blob:" + blob.sha256) == len(data)


async def test_what_is_not_what_its_name_says_is_told_and_not_given(kept: Kept) -> None:
    blob = await kept.store.put(content())
    await kept.spoil(blob)
    await kept.forget_copies()
    with pytest.raises(Bug, match=blob.sha256) as told:
        await kept.store.get(blob.sha256)
    assert told.value.code == "BLOB_CORRUPT"
    assert await kept.copy(blob) < 0


async def test_what_is_not_to_be_had_is_left_out_of_what_is_at_hand(kept: Kept) -> None:
    contents = [content() for _ in range(3)]
    put = [await kept.store.put(data) for data in contents]
    await kept.forget_copies()
    await kept.spoil(put[1])
    nowhere = Blob(sha256="0" * 64, size=1)
    found = await kept.store.at_hand([*put, nowhere], within_s=20)
    assert found == {put[n].sha256: contents[n] for n in (0, 2)}


async def test_what_is_not_there_is_told(kept: Kept) -> None:
    with pytest.raises(Bug) as told:
        await kept.store.get("0" * 64)
    assert told.value.code == "BLOB_MISSING"


async def test_many_are_got_in_lots_each_once(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs, "LOT_BYTES", 250_000)
    contents = [content(100_000 + i) for i in range(7)] + [content(300_000)]
    put = [await kept.store.put(data) for data in contents]
    await kept.forget_copies()
    await kept.store.get(put[3].sha256)
    found = [each async for each in kept.store.get_all([*put, *put])]
    assert found == [(blob.sha256, data) for blob, data in zip(put, contents, strict=True)]


async def test_documents(kept: Kept) -> None:
    put = [await kept.store.put(b'{"a": %d}' % i) for i in range(3)]
    assert await kept.store.documents(put) == {blob.sha256: {"a": i} for i, blob in enumerate(put)}
    assert await kept.store.documents([]) == {}


async def test_without_copies(engine: AsyncEngine, redis: Redis) -> None:
    store = BlobStore(engine, redis, BlobSettings(cache_ttl_s=0))
    data = content()
    blob = await store.put(data)
    assert await store.get(blob.sha256) == data
    assert not await redis.exists(PREFIX + "blob:" + blob.sha256)


async def test_redis_that_is_away_fails_and_delays_nothing(engine: AsyncEngine) -> None:
    [nowhere] = free_ports(1)
    away = make_redis(RedisSettings(url=SecretStr(f"redis://127.0.0.1:{nowhere}/0")), name="test")
    store, data = BlobStore(engine, away, BlobSettings()), content()
    blob = await store.put(data)
    assert await store.get(blob.sha256) == data
    await away.aclose()


async def test_redis_that_is_silent_delays_once(
    engine: AsyncEngine, servers: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_cache, "REDIS_S", 0.5)
    # Time stands still, so that the pause after the first wait does not end.
    now = monotonic()
    monkeypatch.setattr(blob_cache, "monotonic", lambda: now)
    parts = urlsplit(servers[1])
    assert parts.hostname
    async with Way(parts.hostname, parts.port or 6379).open() as way:
        way.silent = True
        url = servers[1].replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:{way.port}")
        silent = make_redis(RedisSettings(url=SecretStr(url)), name="test")
        ask: Any = silent.execute_command
        asked: list[Any] = []

        async def counted(*command: Any, **options: Any) -> Any:
            asked.append(command[0])
            return await ask(*command, **options)

        monkeypatch.setattr(silent, "execute_command", counted)
        store = BlobStore(engine, silent, BlobSettings())
        put = [await store.put(content(1000)) for _ in range(10)]
        found = [each async for each in store.get_all(put)]
        assert len(found) == 10
        assert len(asked) == 1, asked
        await silent.aclose()


async def test_many_copies_are_asked_for_in_parts(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = [content(50_000) for _ in range(2 * blob_cache.MGET + 3)]
    put = [await kept.store.put(data) for data in contents]
    for blob in put:
        await kept.spoil(blob)
    await kept.redis.set(PREFIX + "blob:" + put[0].sha256, b"wrong", ex=100)
    execute, asked = kept.redis.execute_command, []

    def listening(*words: Any, **options: Any) -> Any:
        if words[0] == "MGET":
            asked.append(len(words) - 1)
        return execute(*words, **options)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(kept.redis, "execute_command", listening)
    found = await kept.store.at_hand(put, within_s=20)
    assert found == {blob.sha256: data for blob, data in zip(put[1:], contents[1:], strict=True)}
    assert asked == [blob_cache.MGET, blob_cache.MGET, 3]


async def test_copies_take_no_more_room_than_they_may(redis: Redis) -> None:
    await redis.delete(blob_cache.BYTES)
    cache = BlobCache(redis, ttl_s=60, window_bytes=2500)
    names = [uuid7().hex for _ in range(4)]
    for name in names:
        await cache.keep(name, b"x" * 1000)
    assert list(await cache.get(names)) == names[:2]
    assert 0 < await redis.pttl(blob_cache.BYTES) <= 60_000
    # Equal contents count once.
    await redis.delete(blob_cache.BYTES)
    for _ in range(5):
        await cache.keep(names[0], b"x" * 1000)
    await cache.keep(names[2], b"x" * 1000)
    assert list(await cache.get(names)) == names[:3]
    await redis.delete(PREFIX + "blob:" + names[2])
    await redis.delete(blob_cache.BYTES)
    await cache.keep(names[3], b"x" * 1000)
    assert list(await cache.get(names)) == [*names[:2], names[3]]
    await redis.delete(blob_cache.BYTES)


# -- S3 alone ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    """A server of the test's own, to be stopped."""
    with s3_server() as server:
        yield server


async def test_each_row_says_where_its_content_is(engine: AsyncEngine, redis: Redis, s3: S3Server) -> None:
    """So what was written under other settings stays readable, and is put where it is."""
    stores = {
        "postgres": BlobStore(engine, redis, BlobSettings(s3=s3.settings().s3)),
        "one": BlobStore(engine, redis, s3.settings(uuid7().hex)),
        "two": BlobStore(engine, redis, s3.settings(uuid7().hex)),
    }
    contents = {name: content() for name in stores}
    put = {name: await store.put(contents[name]) for name, store in stores.items()}
    await redis.flushdb()
    for store in stores.values():
        found = {sha256: data async for sha256, data in store.get_all(put.values())}
        assert found == {put[name].sha256: data for name, data in contents.items()}
        await redis.flushdb()
    for store in stores.values():
        for data in contents.values():
            await store.put(data)
    assert len(s3.objects(stores["one"].place.removeprefix("s3://blobs/"))) == 1


async def test_who_died_between_row_and_object_is_made_up_for(
    engine: AsyncEngine, redis: Redis, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = BlobStore(engine, redis, s3.settings(uuid7().hex)), content()

    async def dies(*_: object) -> None:
        raise KeyError

    with monkeypatch.context() as patched:
        patched.setattr(S3Place, "put", dies)
        with pytest.raises(KeyError):
            await store.put(data)
    blob = await store.put(data)
    await redis.flushdb()
    assert await store.get(blob.sha256) == data


async def test_what_was_harmed_on_its_way_is_read_again(
    engine: AsyncEngine, redis: Redis, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = BlobStore(engine, redis, s3.settings(uuid7().hex)), content()
    blob = await store.put(data)
    await redis.flushdb()
    answers = [data[1:], data]

    async def get(*_: object) -> bytes:
        return answers.pop(0)

    monkeypatch.setattr(S3Place, "get", get)
    assert await store.get(blob.sha256) == data


async def test_what_is_away_leaves_copies_at_hand(
    engine: AsyncEngine, redis: Redis, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(engine, redis, s3.settings(uuid7().hex))
    gone = await store.put(content())
    await redis.flushdb()
    data = content()
    copied = await store.put(data)

    async def silent(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(S3Place, "get", silent)
    assert await store.at_hand([gone, copied], within_s=3) == {copied.sha256: data}


async def test_s3_that_is_gone_is_away_and_comes_back(engine: AsyncEngine, redis: Redis, server: S3Server) -> None:
    store, data = BlobStore(engine, redis, server.settings("p")), content()
    blob = await store.put(data)
    await store.at(store.place).prepare()
    await store.probe()
    server.stop()
    assert await store.get(blob.sha256) == data, "there is a copy"
    await redis.flushdb()
    for ask in (store.get(blob.sha256), store.put(content()), store.probe()):
        with pytest.raises(BlobsAway, match="s3://blobs/p did not answer") as told:
            await ask
        assert (told.value.code, told.value.retryable) == ("BLOB_STORE_UNAVAILABLE", True)
        assert server.secret not in str(told.value)
    server.start()
    assert await store.get(blob.sha256) == data
    await store.probe()


async def test_s3_that_is_silent_is_away(
    engine: AsyncEngine, redis: Redis, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(engine, redis, server.settings())
    blob = await store.put(content())
    await redis.flushdb()
    server.silence()
    monkeypatch.setattr(s3_module, "CALL_S", 0.5)
    for ask in (store.get(blob.sha256), store.put(content())):
        with pytest.raises(BlobsAway):
            await ask


async def test_a_place_that_is_away_is_not_asked_for_each_and_nothing_goes_on(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import obstore

    begun, ended = 0, 0

    async def refuses(*_: object) -> None:
        nonlocal begun, ended
        begun += 1
        try:
            await asyncio.sleep(0.01 * begun)
            raise OSError
        finally:
            ended += 1

    monkeypatch.setattr(obstore, "delete_async", refuses)
    given = s3.settings()
    with pytest.raises(BlobsAway):
        await S3Place(given.place, given.s3).delete([f"{n}" for n in range(100)])
    assert begun == ended == s3_module.DELETES


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"place": "s3://nowhere/p"}, "NoSuchBucket"),
        ({"secret": "wrong"}, "SignatureDoesNotMatch"),
        ({"key": "nobody"}, "InvalidAccessKeyId"),
    ],
)
async def test_why_a_place_is_refused(s3: S3Server, change: dict[str, str], reason: str) -> None:
    given = s3.settings("p")
    keys = {"access_key_id": change.get("key", given.s3.access_key_id)}
    secret = {"secret_access_key": SecretStr(change["secret"])} if "secret" in change else {}
    place = S3Place(change.get("place", given.place), given.s3.model_copy(update=keys | secret))
    for ask in (place.prepare(), place.get("x"), place.probe()):
        with pytest.raises(BlobsAway) as told:
            await ask
        assert told.value.reason == reason


async def test_a_place_without_a_prefix_and_its_mark(s3: S3Server) -> None:
    given = s3.settings()
    place = S3Place(given.place, given.s3)
    await place.prepare()
    assert MARK in s3.objects()
    await place.put("a", b"1")
    await place.delete(["a", "not there"])
    assert await place.get("a") is None
    await place.delete([MARK])
    with pytest.raises(BlobsAway, match="its mark is gone"):
        await place.probe()


async def test_what_a_node_has_in_its_own_environment_does_not_mix_in(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs", "AWS_SESSION_TOKEN": "theirs",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1", "AWS_REGION": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    given = s3.settings("env")
    await S3Place(given.place, given.s3).prepare()
