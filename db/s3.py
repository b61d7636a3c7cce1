"""One place in S3, or in whatever speaks its protocol: ``s3://bucket/prefix``, with one object for each blob.

The library is imported by the first use: most processes never need it.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from rayloom.dag.decision import BLOBS_AWAY, BLOBS_SLOW
from rayloom.dag.errors import Transient
from rayloom.db.settings import S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Config, S3Credential, S3Store

PLACE: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(?P<prefix>[\w!.*'()/-]*))?")
CONNECT_S: Final = 3.0
REQUEST_S: Final = 30.0
CALL_S: Final = 60.0
"""Nothing takes longer, with all that the library tries by itself."""
RETRIES: Final = 2
RETRY_AFTER_S: Final = 2.0
DELETES: Final = 8
"""So many objects are deleted at once."""
NO_LIST: Final = "AccessDenied in place of NoSuchKey"
MARK: Final = "rayloom"
"""An object that is always there: by it one sees whether the place can be read and written."""
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")


class BlobsAway(Transient):
    """Large contents can't be read or written now. ``reason``: S3's own word for it, if it gave one, or ``NO_LIST``."""

    says = BLOBS_AWAY

    def __init__(self, where: str, reason: str, kind: str) -> None:
        super().__init__(self.says, f"{where} did not answer: {reason or kind}", retry_after_s=RETRY_AFTER_S)
        self.reason = reason


class BlobsSlow(BlobsAway):
    """They did not come within the time that whoever asks has."""

    says = BLOBS_SLOW


@asynccontextmanager
async def in_time(limit_s: float) -> AsyncIterator[None]:
    """What the block asks of the blobs has to come within so many seconds: else raises BlobsSlow."""
    limit = asyncio.timeout(limit_s)
    try:
        async with limit:
            yield
    except TimeoutError as late:
        if not limit.expired():
            raise
        raise BlobsSlow("the blob store", "", f"not within {limit_s:.3g} s") from late


class S3Place:
    """The objects below ``place``. Every method raises BlobsAway when S3 does not do what it is asked."""

    def __init__(self, place: str, settings: S3Settings) -> None:
        self.place, self._settings = place, settings
        self._opened: S3Store | None = None

    async def put(self, name: str, data: bytes) -> None:
        """Write an object, whole, in place of an earlier one."""
        import obstore

        async with self._asked():
            await obstore.put_async(self._store(), name, data, use_multipart=False)

    async def get(self, name: str) -> bytes | None:
        """The content of an object; None when there is none."""
        import obstore

        try:
            async with self._asked():
                answer = await obstore.get_async(self._store(), name)
                return bytes(await answer.bytes_async())
        except BlobsAway as away:
            # A bucket that is not there is no place where a blob is missing.
            if isinstance(away.__cause__, FileNotFoundError) and away.reason != "NoSuchBucket":
                return None
            raise

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there are no fault."""
        import obstore

        turns = asyncio.Semaphore(DELETES)
        away: list[BlobsAway] = []

        async def remove(name: str) -> None:
            async with turns:
                if away:
                    # A place that is silent shall not be asked for each.
                    return
                try:
                    async with self._asked():
                        await obstore.delete_async(self._store(), name)
                except BlobsAway as failure:
                    away.append(failure)

        # Waits for all, whatever comes of one: nothing goes on after this.
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(remove(name))
        if away:
            raise away[0]

    async def prepare(self) -> None:
        """Find out whether objects can be written, read and removed here, and leave the mark behind."""
        await self.put(MARK, b"rayloom keeps blobs here, named by their SHA-256\n")
        await self.probe()
        name = f"{MARK}-{secrets.token_hex(8)}"
        await self.delete([name])
        # Without a right more, some answer "no" in place of "not found": then a blob that is gone would be waited for.
        try:
            found = await self.get(name)
        except BlobsAway as away:
            if away.reason != "AccessDenied":
                raise
            raise BlobsAway(self.place, NO_LIST, "") from away
        if found is not None:
            raise BlobsAway(self.place, "", "it has what nobody put there")

    async def probe(self) -> None:
        """Whether the mark can be read."""
        if await self.get(MARK) is None:
            raise BlobsAway(self.place, "", "its mark is gone")

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        from obstore.exceptions import BaseError

        try:
            async with asyncio.timeout(CALL_S):
                yield
        except (BaseError, OSError, TimeoutError, ValueError) as error:
            # What it says may be long, and names our own request; its code says enough.
            code = _CODE.search(str(error))
            raise BlobsAway(self.place, code[1] if code else "", type(error).__name__) from error

    def _store(self) -> S3Store:
        if self._opened is None:
            self._opened = _open(self.place, self._settings)
        return self._opened


def _open(place: str, settings: S3Settings) -> S3Store:
    from obstore.store import S3Store

    found = PLACE.fullmatch(place)
    if found is None:
        raise ValueError(f"{place} is not s3://bucket/prefix")
    key_id, endpoint = settings.access_key_id, settings.endpoint

    def credentials() -> S3Credential:
        return {
            "access_key_id": key_id,
            "secret_access_key": settings.secret_access_key.get_secret_value(),
            "token": settings.session_token.get_secret_value() or None,
            "expires_at": None,
        }

    # Said in both ways, and with the keys as a function: else what a node has in its own environment would mix in.
    where: S3Config = {"endpoint": endpoint, "aws_endpoint_url_s3": endpoint} if endpoint else {}
    return S3Store(
        found["bucket"],
        prefix=(found["prefix"] or "").strip("/") or None,
        config={"region": settings.region, "virtual_hosted_style_request": False, **where},
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "timeout": timedelta(seconds=REQUEST_S),
        },
        retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_S)},
        credential_provider=credentials if key_id else None,
    )
