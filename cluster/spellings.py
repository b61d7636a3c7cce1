"""The spellings of values that users may write: URLs, comma lists and JSON objects, each made into one form."""

from __future__ import annotations

import json
from typing import Annotated, Literal
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from rayloom.dag.errors import UserError
from rayloom.db import faults
from rayloom.tools.addresses import AddressRules


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        # The standard library's message quotes the host part, with the password in it.
        raise ValueError("is not a URL") from None


def _check_port(parts: SplitResult) -> None:
    try:
        port = parts.port
    except ValueError:
        # It quotes what stands there, which is the rest of the password where that has a / in it.
        port = 0
    if port == 0:
        raise ValueError("must have a port from 1 to 65535, and / ? # of a password written as %2F %3F %23")


def _database_url(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return database_url(text) if isinstance(text, str) and text else value


def database_url(text: str) -> SecretStr:
    """Any usual spelling of a PostgreSQL URL, as SQLAlchemy's asyncpg dialect wants it.

    Raises ValueError for what is none: "must …" or "is not …", and nothing of the URL.
    """
    parts = _split(text)
    if parts.scheme not in ("postgresql+asyncpg", "postgresql", "postgres") or not parts.path.strip("/"):
        raise ValueError("must look like postgresql+asyncpg://user:password@host:5432/database")
    _check_port(parts)
    # libpq's name for TLS; asyncpg knows the same values as "ssl".
    query = [("ssl" if key == "sslmode" else key, item) for key, item in parse_qsl(parts.query)]
    # By hand: urlunsplit leaves out the // where no host follows, as with the socket of ?host=/var/run/postgresql.
    url = f"postgresql+asyncpg://{parts.netloc}{parts.path}"
    url += f"?{urlencode(query)}" if query else ""
    return SecretStr(url + (f"#{parts.fragment}" if parts.fragment else ""))


def _redis_url(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if isinstance(text, str) and text and _split(text).scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must look like redis://:password@host:6379/0, or rediss://… for TLS")
    return value


def _http_url(value: object) -> object:
    if isinstance(value, str) and value:
        parts = _split(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("must begin with http:// or https:// and name a host")
        return value.rstrip("/")
    return value


def _secret_http_url(value: object) -> object:
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    return SecretStr(str(_http_url(text))) if isinstance(text, str) else value


def _comma_list(value: object) -> object:
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


def _addresses(entries: tuple[str, ...]) -> tuple[str, ...]:
    try:
        AddressRules.parse(entries)
    except UserError as error:
        raise ValueError(error.message) from None
    return entries


def _json_object(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f'must be a JSON object such as {{"name": "url"}} ({error.msg})') from None
    if not isinstance(parsed, dict):
        raise ValueError('must be a JSON object such as {"name": "url"}')
    return parsed


def _faults(text: str) -> str:
    if text:
        faults.parse(text)
    return text


DatabaseUrl = Annotated[SecretStr, BeforeValidator(_database_url)]
RedisUrl = Annotated[SecretStr, BeforeValidator(_redis_url)]
HttpUrl = Annotated[str, BeforeValidator(_http_url)]
SecretHttpUrl = Annotated[SecretStr, BeforeValidator(_secret_http_url)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
AddressList = Annotated[CommaList, AfterValidator(_addresses)]
LevelList = Annotated[tuple[Literal["read", "write", "execute", "admin"], ...], BeforeValidator(_comma_list)]
JsonObjectOfSecrets = Annotated[dict[str, SecretStr], BeforeValidator(_json_object)]
Faults = Annotated[str, AfterValidator(_faults)]
