"""Dead letters in time: mirrored to a stream in Redis, whatever Redis does, and forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from rayloom.actors.letters import LetterKeeper
from rayloom.db.letter_stream import STREAM
from rayloom.db.queue import make_redis
from rayloom.db.settings import RedisSettings
from tests.integration.db.spine import Spine
from tests.integration.ports import free_ports


@pytest.fixture
async def redis(servers: tuple[str, str]) -> AsyncIterator[Redis]:
    client = make_redis(RedisSettings(url=SecretStr(servers[1])), name="test")
    await client.delete(STREAM)
    yield client
    await client.delete(STREAM)
    await client.aclose()


async def told(redis: Redis, spine: Spine) -> list[Any]:
    entries: Any = await redis.xrange(STREAM)
    return [fields for _, fields in entries if fields["user_id"] == str(spine.user_id)]


async def blocked(spine: Spine, *keys: str) -> Any:
    made = await spine.submit({key: [] for key in keys})
    await spine.fail(*(await spine.claim(made.task_id)).values())
    return made


async def test_every_letter_is_told_once_and_again_when_it_is_opened_again(spine: Spine, redis: Redis) -> None:
    keeper = LetterKeeper(spine.engine, redis, retention_s=3600)
    await keeper.mirror()
    made = await blocked(spine, "a", "b")
    assert await keeper.mirror() == 2
    assert await keeper.mirror() == 0
    first, second = await told(redis, spine)
    assert {first["subtask"], second["subtask"]} == {"a", "b"}
    assert first == {
        "id": (await spine.ids(made.task_id))[first["subtask"]], "task_id": str(made.task_id),
        "user_id": str(spine.user_id), "subtask": first["subtask"], "tool": "t", "code": "BROKEN",
        "message": "it broke", "fingerprint": second["fingerprint"], "attempts": "1", "at": first["at"],
    }  # fmt: skip
    await spine.retry(made.task_id, "a")
    await spine.fail(*(await spine.claim(made.task_id, "a")).values())
    assert await keeper.mirror() == 1
    assert [entry["attempts"] for entry in await told(redis, spine)] == ["1", "1", "2"]
    assert await redis.ttl(STREAM) > 0


async def test_without_redis_letters_wait_and_nothing_else_is_lost(spine: Spine, redis: Redis) -> None:
    (nowhere,) = free_ports(1)
    away = make_redis(RedisSettings(url=SecretStr(f"redis://127.0.0.1:{nowhere}/0")), name="test")
    await LetterKeeper(spine.engine, redis, retention_s=3600).mirror()
    await blocked(spine, "a")
    assert await LetterKeeper(spine.engine, away, retention_s=3600).mirror() == 0
    assert await LetterKeeper(spine.engine, redis, retention_s=3600).mirror() == 1
    assert [entry["subtask"] for entry in await told(redis, spine)] == ["a"]
    await away.aclose()


async def test_settled_letters_are_forgotten_after_their_time(spine: Spine, redis: Redis) -> None:
    made = await blocked(spine, "a", "b")
    await spine.retry(made.task_id, "a")
    assert await LetterKeeper(spine.engine, redis, retention_s=3600).forget() == 0
    await spine.rows(
        "UPDATE dead_letters SET settled_at = settled_at - interval '1 h' WHERE user_id = $1", spine.user_id
    )
    assert await LetterKeeper(spine.engine, redis, retention_s=3600).forget() == 1
    rows = await spine.rows("SELECT subtask FROM dead_letters WHERE user_id = $1", spine.user_id)
    assert [row["subtask"] for row in rows] == ["b"]
