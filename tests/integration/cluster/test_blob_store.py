"""Before anything starts: whether blobs can be written, read and removed, and what to do where they can't."""

from __future__ import annotations

from typing import Any

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError
from pydantic import SecretStr

from rayloom.cluster import reach
from rayloom.cluster.checks import StartRefused
from rayloom.cluster.doctor import blob_store
from rayloom.cluster.settings import load_settings
from rayloom.db.settings import BlobSettings
from tests.integration.ports import free_ports
from tests.integration.s3 import S3Server


async def test_a_place_that_is_well(s3: S3Server) -> None:
    await reach.blob_store(s3.settings("start"))
    await reach.blob_store(BlobSettings())
    assert "rayloom" in s3.objects("start")


async def test_what_is_wrong_is_one_line_that_says_what_to_do(s3: S3Server) -> None:
    well = s3.settings("start")
    [port] = free_ports(1)
    cases: dict[str, dict[str, object]] = {
        f"S3 at {s3.url} has no bucket nowhere: create it, or correct RAYLOOM_BLOB_STORE": {"place": "s3://nowhere/a"},
        f"S3 at {s3.url} refuses the keys (SignatureDoesNotMatch): correct RAYLOOM_S3_ACCESS_KEY_ID and "
        "RAYLOOM_S3_SECRET_ACCESS_KEY": {
            "s3": well.s3.model_copy(update={"secret_access_key": SecretStr("geheim")})
        },
        f"S3 at http://127.0.0.1:{port} does not answer for s3://blobs/start: start it, or correct "
        "RAYLOOM_S3_ENDPOINT": {"s3": well.s3.model_copy(update={"endpoint": f"http://127.0.0.1:{port}"})},
    }  # fmt: skip
    for said, change in cases.items():
        with pytest.raises(StartRefused) as told:
            await reach.blob_store(well.model_copy(update=change))
        assert str(told.value) == said


def test_the_doctor_looks_at_it(s3: S3Server) -> None:
    assert blob_store(load_settings(environ=s3.environ)) == "s3://blobs/all can be written and read"
    assert blob_store(load_settings(environ={})) == "in PostgreSQL"
    with pytest.raises(StartRefused, match="has no bucket elsewhere"):
        blob_store(load_settings(environ=s3.environ | {"RAYLOOM_BLOB_STORE": "s3://elsewhere"}))


async def test_a_place_that_does_not_tell_what_is_not_there(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AWS without the right to list: 403 in place of 404."""
    get = obstore.get_async

    async def forbidden(store: Any, name: str) -> Any:
        try:
            return await get(store, name)
        except FileNotFoundError:
            raise PermissionDeniedError("<Error><Code>AccessDenied</Code></Error>") from None

    given = s3.settings("listless")
    monkeypatch.setattr(obstore, "get_async", forbidden)
    with pytest.raises(StartRefused) as told:
        await reach.blob_store(given)
    assert str(told.value) == (
        f"S3 at {s3.url} does not tell in s3://blobs/listless what is not there (AccessDenied in place of NoSuchKey): "
        "allow s3:ListBucket on blobs"
    )
