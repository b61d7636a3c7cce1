"""The text of an answer, in the charset that its server names where that is one of texts."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Final

# Python's own escapes, and host names: no charset of the web, and some take hours for what takes others no time.
_NO_CHARSETS: Final = frozenset({"idna", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"})


def decoded(body: bytes, charsets: Iterable[str | None]) -> str:
    """``body`` in the first of ``charsets`` that there is, else in UTF-8; what doesn't fit becomes U+FFFD."""
    for charset in charsets:
        if charset and _is_charset(charset):
            try:
                return body.decode(charset, "replace")
            except (LookupError, ValueError):
                continue
    return body.decode("utf-8", "replace")


def _is_charset(name: str) -> bool:
    try:
        return codecs.lookup(name).name.replace("-", "_") not in _NO_CHARSETS
    except (LookupError, ValueError):
        return False
