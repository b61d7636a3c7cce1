"""Contents that are too large for a row, by their SHA-256: each is kept once, whoever needs it, and checked when read.

The table `blobs` is the register of all. A row's content is in ``data``, or, where it names a ``place``, in S3; each
row says it for itself, so that what was written under other settings stays readable. Redis keeps copies for a time.

Who writes makes the row first, new or touched, and committed; then the object in S3, always; and only then may anything
refer to it. Each row has an object of its own, so that who removes that of a row that is gone (`blob_collection`) can't
harm the next row of the same content.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import asyncpg
import orjson
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from rayloom.dag.errors import Bug, RayloomError, Transient
from rayloom.dag.values import Json
from rayloom.db.blob_cache import BlobCache
from rayloom.db.engine import driver
from rayloom.db.s3 import S3Place, in_time
from rayloom.db.settings import BlobSettings

_log = logging.getLogger(__name__)

T = TypeVar("T")

LOT_BYTES: Final = 32 * 1024 * 1024
LOT: Final = 256
"""What is fetched at a time has at most so many bytes, or is one blob; and so many blobs."""
FETCHES: Final = 16
"""So many objects are fetched from S3 at once."""
_THREAD_BYTES: Final = 1024 * 1024
"""What is larger is hashed in a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """The name of a content, and its size in bytes."""

    sha256: str
    size: int


class BlobStore:
    """The blobs, as one process reaches them."""

    def __init__(self, engine: AsyncEngine, redis: Redis, settings: BlobSettings) -> None:
        self._engine, self._settings = engine, settings
        self._cache = BlobCache(redis, ttl_s=settings.cache_ttl_s) if settings.cache_ttl_s else None
        self._places: dict[str, S3Place] = {}

    @property
    def inline_max_bytes(self) -> int:
        """Inputs and outputs up to here stay in their rows."""
        return self._settings.inline_max_bytes

    async def put(self, data: bytes) -> Blob:
        """Keep a content. When this returns it is durable, and will stay for the time of grace at least.

        Raises Transient when the database or S3 is away.
        """
        blob = Blob(sha256=await _digest(data), size=len(data))
        wanted = self._settings.place
        async with driver(self._engine) as connection:
            place: str | None = await connection.fetchval(
                "INSERT INTO blobs AS b (sha256, size, data, place) VALUES ($1, $2, $3, $4) "
                "ON CONFLICT (sha256) DO UPDATE SET touched_at = now() RETURNING b.place",
                blob.sha256, blob.size, None if wanted else data,
                f"{wanted}/{blob.sha256}.{secrets.token_hex(4)}" if wanted else None,
            )  # fmt: skip
        if place is not None:
            # Also when the row was there: whoever made it may have died before this.
            base, name = split(place)
            await self.at(base).put(name, data)
        if self._cache is not None:
            await self._cache.keep(blob.sha256, data)
        return blob

    async def get(self, sha256: str) -> bytes:
        """A content. Raises Transient, and Bug (``BLOB_MISSING``, ``BLOB_CORRUPT``)."""
        found: dict[str, bytes | RayloomError] = {}
        await self._find([sha256], found)
        return _had(found[sha256])

    async def get_all(self, blobs: Iterable[Blob]) -> AsyncIterator[tuple[str, bytes]]:
        """Each of these once, in lots, so that no more than ``LOT_BYTES`` are held here. Raises as ``get``."""
        for lot in _lots(blobs):
            found: dict[str, bytes | RayloomError] = {}
            await self._find(lot, found)
            for sha256 in lot:
                yield sha256, _had(found.pop(sha256))

    async def at_hand(self, blobs: Iterable[Blob], *, within_s: float) -> dict[str, bytes]:
        """Those of these that can be had, and within so many seconds; of the others the log tells."""
        found: dict[str, bytes | RayloomError] = {}
        try:
            async with in_time(within_s):
                for lot in _lots(blobs):
                    await self._find(lot, found)
        except Transient as away:
            _log.warning("blobs.not_at_hand", extra={"error": away.message})
        missing = [each.message for each in found.values() if isinstance(each, RayloomError)]
        if missing:
            _log.warning("blobs.not_at_hand", extra={"error": missing[0], "count": len(missing)})
        return {name: each for name, each in found.items() if not isinstance(each, RayloomError)}

    async def documents(self, blobs: Iterable[Blob]) -> dict[str, Json]:
        """The JSON documents in these, by their hashes. Raises as ``get``."""
        return {sha256: orjson.loads(data) async for sha256, data in self.get_all(blobs)}

    async def probe(self) -> None:
        """Raises BlobsAway when the place of what is new is away. (That PostgreSQL is there, others look.)"""
        if self._settings.place:
            await self.at(self._settings.place).probe()

    @property
    def place(self) -> str:
        """The place of what is new; empty for PostgreSQL."""
        return self._settings.place

    def at(self, place: str) -> S3Place:
        """A place in S3, now or formerly that of what is new."""
        if place not in self._places:
            self._places[place] = S3Place(place, self._settings.s3)
        return self._places[place]

    async def _find(self, names: Sequence[str], found: dict[str, bytes | RayloomError]) -> None:
        """Add each of these to ``found``, or why it can't be had; first what Redis has."""
        found |= await self._copies(names)
        left = [name for name in names if name not in found]
        if left:
            kept = await self._kept(left)
            found |= kept
            if self._cache is not None:
                for name, data in kept.items():
                    if not isinstance(data, RayloomError):
                        await self._cache.keep(name, data)

    async def _copies(self, names: Sequence[str]) -> dict[str, bytes]:
        if self._cache is None:
            return {}
        found = await self._cache.get(names)
        for name in await _wrong(found):
            _log.warning("blobs.copy_corrupt", extra={"sha256": name})
            await self._cache.drop(name)
            del found[name]
        return found

    async def _kept(self, names: Sequence[str]) -> dict[str, bytes | RayloomError]:
        """From the durable places, each or why not."""
        async with driver(self._engine) as connection:
            rows = await connection.fetch("SELECT sha256, data, place FROM blobs WHERE sha256 = ANY ($1)", list(names))
        turns = asyncio.Semaphore(FETCHES)

        found: dict[str, bytes | RayloomError] = {
            name: Bug("BLOB_MISSING", f"there is no blob {name}") for name in names
        }

        async def content(name: str, data: bytes | None, place: str | None) -> bytes:
            # What comes from S3 may have been harmed on its way.
            for _ in range(1 if place is None else 2):
                if place is not None:
                    async with turns:
                        data = await self._object(place)
                if data is None:
                    raise Bug("BLOB_MISSING", f"the blob {name} is not in {place or 'PostgreSQL'}, where it should be")
                if await _digest(data) == name:
                    return data
            raise Bug("BLOB_CORRUPT", f"the blob {name} in {place or 'PostgreSQL'} is not what it should be")

        async def fetch(row: asyncpg.Record) -> None:
            name = row["sha256"]
            try:
                found[name] = await content(name, row["data"], row["place"])
            except RayloomError as error:
                found[name] = error

        async with asyncio.TaskGroup() as group:
            for row in rows:
                group.create_task(fetch(row))
        return found

    async def _object(self, place: str) -> bytes | None:
        base, name = split(place)
        return await self.at(base).get(name)


def _had(content: bytes | RayloomError) -> bytes:
    if isinstance(content, RayloomError):
        raise content
    return content


def split(place: str) -> tuple[str, str]:
    """The place in S3 of an object, and its name there."""
    base, _, name = place.rpartition("/")
    return base, name


def lots(items: Iterable[T], size_of: Callable[[T], int], *, bytes_max: int, count_max: int) -> Iterator[list[T]]:
    """These in their order, so many at a time as are not too large together; one is never too large."""
    lot: list[T] = []
    held = 0
    for item in items:
        size = size_of(item)
        if lot and (held + size > bytes_max or len(lot) == count_max):
            yield lot
            lot, held = [], 0
        lot.append(item)
        held += size
    if lot:
        yield lot


def _lots(blobs: Iterable[Blob]) -> Iterator[list[str]]:
    """The names of these, each once."""
    sizes = {blob.sha256: blob.size for blob in blobs}
    return lots(sizes, sizes.__getitem__, bytes_max=LOT_BYTES, count_max=LOT)


async def _digest(data: bytes) -> str:
    if len(data) <= _THREAD_BYTES:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


async def _wrong(found: Mapping[str, bytes]) -> list[str]:
    """Those of these contents that are not what their names say; hashed in one go."""

    def look() -> list[str]:
        return [name for name, data in found.items() if hashlib.sha256(data).hexdigest() != name]

    return look() if sum(map(len, found.values())) <= _THREAD_BYTES else await asyncio.to_thread(look)
