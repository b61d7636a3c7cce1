"""Webhooks as values: what is sent (a CloudEvent), how it is signed (Standard Webhooks), and when it is sent again.

The signature and its headers are those of the Standard Webhooks specification 1.0.0, symmetric scheme ``v1``
(github.com/standard-webhooks/standard-webhooks, ``spec/standard-webhooks.md``); the body is CloudEvents 1.0 in the
structured mode of its HTTP binding.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from rayloom.dag.decision import MAX_RETRY_AFTER_S
from rayloom.dag.values import Json, JsonObject

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
PREFIX: Final = "whsec_"
MIN_SECRET_BYTES: Final = 24
MAX_SECRET_BYTES: Final = 64
MIN_TEXT_CHARS: Final = 8
MAX_TEXT_CHARS: Final = 256

ATTEMPTS: Final = 10
GROWTH: Final = 5.0
LONGEST_WAIT_S: Final = MAX_RETRY_AFTER_S
_GONE: Final = 410


def secret_bytes(secret: str) -> bytes | None:
    """The key that a secret stands for: the bytes after ``whsec_``, or any other text as UTF-8; None where it is none.

    What begins like the form of Standard Webhooks must be of that form: libraries would read another key from it.
    """
    if not secret.startswith(PREFIX):
        return secret.encode() if MIN_TEXT_CHARS <= len(secret) <= MAX_TEXT_CHARS else None
    text = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    # Only in the one spelling that every library reads alike.
    is_plain = base64.b64encode(key).decode() == text
    return key if is_plain and MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES else None


def derived_secret(master: str, user_id: str) -> str:
    """The secret of a user who gives none: always the same as long as ``master`` is, and nobody else's."""
    key = hmac.digest(master.encode(), b"rayloom webhook secret of " + user_id.encode(), "sha256")
    return PREFIX + base64.b64encode(key).decode()


def headers(key: bytes, *, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What goes with a body. ``webhook_id`` holds no full stop; ``timestamp``: seconds since the epoch, of this try."""
    signed = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def event(
    *, webhook_id: str, source: str, task_id: str, at: datetime, status: str, about: Mapping[str, Json]
) -> JsonObject:
    """The CloudEvent of a task that came to a terminal status. ``about``: what its data say beside id and status."""
    return {
        "specversion": "1.0",
        "id": webhook_id,
        "source": source,
        "type": f"rayloom.task.{status.lower()}",
        "subject": task_id,
        "time": at.isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": {"task_id": task_id, "status": status, **about},
    }


def wait_s(tries: int, *, initial_s: float, asked_s: float | None, jitter: float) -> float | None:
    """Seconds until a webhook that failed so many times is sent again; None when it is given up.

    With ``initial_s`` of one second about those that Standard Webhooks suggests: 5 s, 25 s, 2 min, 10 min, 52 min, 4 h,
    22 h, then a day each, so that a receiver that is away for a weekend hears of it. Never shorter than what the
    receiver asked for (``Retry-After``). ``jitter``, from 0 to 1, is a chance number handed in, and adds up to a tenth.
    """
    if tries >= ATTEMPTS:
        return None
    wait = initial_s * GROWTH ** max(tries, 1) * (1 + jitter / 10)
    return min(max(wait, asked_s or 0.0), LONGEST_WAIT_S)


def is_delivered(status: int) -> bool:
    """Whether an HTTP status says that the receiver has it. A redirect does not: none is followed."""
    return 200 <= status < 300


def is_unwanted(status: int) -> bool:
    """Whether the receiver wants no more of them."""
    return status == _GONE
