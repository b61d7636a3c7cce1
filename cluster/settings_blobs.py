"""The settings of the blob store, a part of `Settings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from rayloom.cluster.spellings import HttpUrl
from rayloom.db.s3 import PLACE
from rayloom.db.settings import BlobSettings, S3Settings

POSTGRES: Final = "postgres"
AWS_REGION: Final = "us-east-1"
_KEYS: Final = ("s3_access_key_id", "s3_secret_access_key", "s3_session_token")
_AWS_NAMES: Final = {
    "s3_endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "s3_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3_access_key_id": ("AWS_ACCESS_KEY_ID",),
    "s3_secret_access_key": ("AWS_SECRET_ACCESS_KEY",),
    "s3_session_token": ("AWS_SESSION_TOKEN",),
}


class BlobFields(BaseSettings):
    """Where large contents are kept: ``RAYLOOM_BLOB_<…>``, and how S3 is reached: ``RAYLOOM_S3_<…>``."""

    blob_store: str = Field(default=POSTGRES, description="postgres or s3://bucket/prefix")
    blob_inline_max_bytes: int = Field(
        default=64 * 1024, ge=1024, le=16 * 1024 * 1024, description="larger inputs and outputs are kept there"
    )
    blob_cache_ttl_s: float = Field(default=600.0, ge=0, description="how long Redis keeps a copy; 0: not at all")
    blob_grace_s: float = Field(
        default=86_400.0, ge=60, le=3_650 * 86_400, description="what nothing refers to is kept for so long"
    )
    s3_endpoint: HttpUrl = Field(default="", description="of a server that speaks S3; empty: that of AWS")
    s3_region: str = Field(default="", description=f"empty: {AWS_REGION}")
    s3_access_key_id: str = Field(default="", description="empty: the role of the machine")
    s3_secret_access_key: SecretStr = Field(default=SecretStr(""), validate_default=True)
    s3_session_token: SecretStr = Field(default=SecretStr(""), description="of temporary keys")

    @field_validator("blob_store")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value != POSTGRES and not PLACE.fullmatch(value):
            raise ValueError("must be postgres, or look like s3://bucket/prefix")
        return value.rstrip("/")

    @field_validator("s3_secret_access_key")
    @classmethod
    def _goes_with_its_id(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        if bool(value.get_secret_value()) != bool(info.data.get("s3_access_key_id")):
            raise ValueError("must be set together with RAYLOOM_S3_ACCESS_KEY_ID, or neither of them")
        return value

    @property
    def blobs(self) -> BlobSettings:
        """What the blob store is told."""
        return BlobSettings(
            place="" if self.blob_store == POSTGRES else self.blob_store,
            s3=S3Settings(
                endpoint=self.s3_endpoint,
                region=self.s3_region or AWS_REGION,
                access_key_id=self.s3_access_key_id,
                secret_access_key=self.s3_secret_access_key,
                session_token=self.s3_session_token,
            ),
            inline_max_bytes=self.blob_inline_max_bytes,
            cache_ttl_s=self.blob_cache_ttl_s,
            grace_s=self.blob_grace_s,
        )


def from_aws(environ: Mapping[str, str], given: Mapping[str, object]) -> dict[str, str]:
    """What AWS's own variables say where our settings (``given``, by field) say nothing; keys only all together.

    Nothing while what is new is kept in PostgreSQL: they are there for something else.
    """
    if str(given.get("blob_store", POSTGRES)) == POSTGRES:
        return {}
    has_keys = any(given.get(name) for name in _KEYS)
    found: dict[str, str] = {}
    for field, names in _AWS_NAMES.items():
        value = next((environ[name] for name in names if environ.get(name)), "")
        if value and not given.get(field) and not (has_keys and field in _KEYS):
            found[field] = value
    return found
