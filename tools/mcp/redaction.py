"""What a server says, without the secrets that it was given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import orjson

from rayloom.dag.mcp import HIDDEN, McpServer
from rayloom.dag.values import Json

MIN_CHARS: Final = 6
"""Shorter values are no secrets worth the name, and would be found in every other word."""
MESSAGE_CHARS: Final = 2_000
_TELLING: Final = re.compile(r"key|token|secret|passw|credential|auth|cookie|private", re.IGNORECASE)


class Redaction:
    """Hides the secrets of one server.

    In messages all that it was given is hidden. In outputs only what is a secret by its place or its name: the value
    of ``LOG_LEVEL`` may well be a word of an answer.
    """

    def __init__(self, server: McpServer) -> None:
        auth = {name: value for name, value in (server.auth or {}).items() if isinstance(value, str)}
        secret = [value for name, value in auth.items() if name in ("token", "client_secret")]
        # Of a key in PEM its lines, and not the words around them.
        secret += [line for line in auth.get("private_key", "").splitlines() if not line.startswith("-----")]
        secret += server.headers.values()
        secret += [value for name, value in server.env.items() if _TELLING.search(name)]
        self._in_outputs = _pattern(secret)
        query = [value for _, value in parse_qsl(urlsplit(server.url or "").query)]
        hidden = [*secret, *query, *server.env.values()]
        self._in_messages = _pattern(hidden)
        self._longest = max(map(len, hidden), default=0)

    def message(self, text: str, limit: int = MESSAGE_CHARS) -> str:
        """A message for a log or an error, with no more than its first characters up to a limit."""
        if self._in_messages is None:
            return text[:limit]
        # What is cut first might end with the first part of a secret. What lies far behind nobody has to look through.
        made, at = [], 0
        for found in self._in_messages.finditer(text[: limit + self._longest]):
            if found.start() >= limit:
                break
            made += [text[at : found.start()], HIDDEN]
            at = found.end()
        return "".join(made) + text[at:limit]

    def line(self, data: Json) -> str:
        """A message that may be any JSON."""
        if self._in_messages is None or isinstance(data, str):
            return self.message(data if isinstance(data, str) else _json(data))
        # In JSON some characters are written otherwise. A secret that is a number is found in the text.
        return self.message(_json(_hidden(data, self._in_messages)))

    def output(self, value: Json) -> Json:
        """What a tool gave."""
        return value if self._in_outputs is None else _hidden(value, self._in_outputs)


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    # "Bearer abc" may come back as "abc".
    parts = {part for secret in secrets for part in (secret, *secret.split()) if len(part) >= MIN_CHARS}
    return re.compile("|".join(map(re.escape, sorted(parts, key=len, reverse=True)))) if parts else None


def _json(data: Json) -> str:
    try:
        return orjson.dumps(data).decode()
    except orjson.JSONEncodeError:
        # A number that is too large for it, say.
        return str(data)


def _hidden(value: Json, pattern: re.Pattern[str]) -> Json:
    if isinstance(value, str):
        return pattern.sub(HIDDEN, value)
    if isinstance(value, list):
        return [_hidden(item, pattern) for item in value]
    if isinstance(value, dict):
        return {pattern.sub(HIDDEN, name): _hidden(item, pattern) for name, item in value.items()}
    return value
