"""What a server says, without the secrets that it was given."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from rayloom.dag.mcp import HIDDEN, McpServer
from rayloom.dag.values import Json

MIN_CHARS: Final = 6
"""Shorter values are no secrets worth the name, and would be found in every other word."""
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
        self._in_messages = _pattern([*secret, *query, *server.env.values()])

    def message(self, text: str) -> str:
        """A message for a log or an error."""
        return text if self._in_messages is None else self._in_messages.sub(HIDDEN, text)

    def output(self, value: Json) -> Json:
        """What a tool gave."""
        return value if self._in_outputs is None else _hidden(value, self._in_outputs)


def _pattern(secrets: Iterable[str]) -> re.Pattern[str] | None:
    # "Bearer abc" may come back as "abc".
    parts = {part for secret in secrets for part in (secret, *secret.split()) if len(part) >= MIN_CHARS}
    return re.compile("|".join(map(re.escape, sorted(parts, key=len, reverse=True)))) if parts else None


def _hidden(value: Json, pattern: re.Pattern[str]) -> Json:
    if isinstance(value, str):
        return pattern.sub(HIDDEN, value)
    if isinstance(value, list):
        return [_hidden(item, pattern) for item in value]
    if isinstance(value, dict):
        return {pattern.sub(HIDDEN, name): _hidden(item, pattern) for name, item in value.items()}
    return value
