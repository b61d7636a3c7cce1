"""Where large contents are kept: what may be set, and what AWS's own variables add to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from rayloom.cluster.settings import Settings, SettingsError, load_settings
from rayloom.db.settings import BlobSettings, S3Settings


def load(tmp_path: Path, **environ: str) -> Settings:
    return load_settings(environ={"RAYLOOM_HOME": str(tmp_path), **environ})


def test_by_default_they_are_in_postgresql(tmp_path: Path) -> None:
    assert load(tmp_path).blobs == BlobSettings()
    assert load(tmp_path, RAYLOOM_BLOB_STORE="postgres").blobs.place == ""


def test_all_can_be_set(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        RAYLOOM_BLOB_STORE="s3://bucket/a/b/",
        RAYLOOM_BLOB_INLINE_MAX_BYTES="100000",
        RAYLOOM_BLOB_CACHE_TTL_S="5",
        RAYLOOM_BLOB_GRACE_S="3600",
        RAYLOOM_S3_ENDPOINT="http://s3.example:9000/",
        RAYLOOM_S3_REGION="eu-west-1",
        RAYLOOM_S3_ACCESS_KEY_ID="id",
        RAYLOOM_S3_SECRET_ACCESS_KEY="geheim",
        RAYLOOM_S3_SESSION_TOKEN="geheim",
    )
    assert settings.blobs == BlobSettings(
        place="s3://bucket/a/b", inline_max_bytes=100_000, cache_ttl_s=5, grace_s=3600,
        s3=S3Settings(
            endpoint="http://s3.example:9000", region="eu-west-1", access_key_id="id",
            secret_access_key=SecretStr("geheim"), session_token=SecretStr("geheim"),
        ),
    )  # fmt: skip
    assert "geheim" not in f"{settings!r}{settings.blobs!r}{settings.blobs.model_dump_json()}"


@pytest.mark.parametrize("value", ["s3://", "s3://A/b", "s3:/bucket", "gs://bucket", "s3://bucket/a b", "redis"])
def test_what_is_no_place_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsError, match=r"RAYLOOM_BLOB_STORE.*must be postgres, or look like s3://bucket/prefix"):
        load(tmp_path, RAYLOOM_BLOB_STORE=value)


def test_a_message_holds_no_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as told:
        load(tmp_path, RAYLOOM_S3_ACCESS_KEY="geheim")
    assert "geheim" not in str(told.value)
    assert "RAYLOOM_S3_ACCESS_KEY_ID" in str(told.value)


IN_S3 = {"RAYLOOM_BLOB_STORE": "s3://bucket"}
AWS = IN_S3 | {
    "AWS_ENDPOINT_URL": "http://all.example",
    "AWS_DEFAULT_REGION": "eu-north-1",
    "AWS_ACCESS_KEY_ID": "theirs",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
}


def test_what_is_not_set_is_as_aws_has_it(tmp_path: Path) -> None:
    s3 = load(tmp_path, **AWS).blobs.s3
    assert (s3.endpoint, s3.region, s3.access_key_id) == ("http://all.example", "eu-north-1", "theirs")
    assert (s3.secret_access_key, s3.session_token) == (SecretStr("secret"), SecretStr("token"))
    more = load(tmp_path, **AWS, AWS_ENDPOINT_URL_S3="http://s3.example", AWS_REGION="eu-west-1").blobs.s3
    assert (more.endpoint, more.region) == ("http://s3.example", "eu-west-1")


def test_keys_of_two_places_never_mix(tmp_path: Path) -> None:
    s3 = load(tmp_path, **AWS, RAYLOOM_S3_ACCESS_KEY_ID="ours", RAYLOOM_S3_SECRET_ACCESS_KEY="s").blobs.s3
    assert (s3.access_key_id, s3.secret_access_key, s3.session_token) == ("ours", SecretStr("s"), SecretStr(""))
    assert s3.region == "eu-north-1"


def test_what_aws_says_wrongly_is_told_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"RAYLOOM_S3_ENDPOINT.* in the environment of AWS: must begin with http"):
        load(tmp_path, **IN_S3, AWS_ENDPOINT_URL="s3.example")


@pytest.mark.parametrize("store", ["postgres", None])
def test_what_aws_says_is_of_no_interest_while_nothing_is_kept_there(tmp_path: Path, store: str | None) -> None:
    theirs = {**AWS, "AWS_ENDPOINT_URL": "localhost:4566"}
    del theirs["RAYLOOM_BLOB_STORE"]
    settings = load(tmp_path, **theirs, **({} if store is None else {"RAYLOOM_BLOB_STORE": store}))
    assert settings.blobs == BlobSettings()
    ours = load(tmp_path, **theirs, RAYLOOM_S3_ACCESS_KEY_ID="ours", RAYLOOM_S3_SECRET_ACCESS_KEY="s").blobs.s3
    assert ours == S3Settings(access_key_id="ours", secret_access_key=SecretStr("s")), "what is there is still read"


@pytest.mark.parametrize(
    "given",
    [{"RAYLOOM_S3_ACCESS_KEY_ID": "id"}, {"RAYLOOM_S3_SECRET_ACCESS_KEY": "geheim"}, {"AWS_ACCESS_KEY_ID": "id"}],
)
def test_a_key_goes_with_its_id(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"RAYLOOM_S3_SECRET_ACCESS_KEY.*must be set together with") as told:
        load(tmp_path, **IN_S3, **given)
    assert "geheim" not in str(told.value)
