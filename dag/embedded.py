"""References inside a string: where ``${`` opens one, and which brace closes it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# An id, ".output", and then nothing more that could belong to a name. The id takes as much as it can.
HEAD: Final = re.compile(r"([A-Za-z0-9_.\-]+)\.output(?![A-Za-z0-9_\-])")
MAX_REFERENCE_CHARS: Final = 2_000
"""``${`` whose brace is farther away than this is plain text; a longer ``$ref`` is a fault."""
# "$${" is an escape, whatever follows. What can't be a reference is no step of a loop: there may be millions of it.
_OPENING: Final = re.compile(rf"(?<!\$)\$\{{(?={HEAD.pattern})")


@dataclass(frozen=True, slots=True)
class Embedded:
    """What stands between ``${`` and ``}`` where it is a reference."""

    text: str


def pieces_of(text: str) -> Iterator[str | Embedded]:
    """The parts of a string: plain text, escapes already undone, and references."""
    start = 0
    for opening in _OPENING.finditer(text):
        if opening.start() < start:
            continue  # inside a reference that was already taken
        end = _closing(text, opening.end())
        if end is not None:
            yield _plain(text[start : opening.start()])
            yield Embedded(text[opening.end() : end])
            start = end + 1
    yield _plain(text[start:])


def _plain(text: str) -> str:
    return text.replace("$${", "${")


_QUOTED_OR_BRACE: Final = re.compile(r"""'(?:\\.|[^'\\])*'?|"(?:\\.|[^"\\])*"?|`(?:\\.|[^`\\])*`?|[{}]""", re.DOTALL)


def _closing(text: str, start: int) -> int | None:
    """Where the brace stands that closes a reference: JMESPath has braces and quotes of its own.

    None where there is none; it is looked for in a bounded stretch, so that many open ones don't cost their square.
    For the same reason the first brace ends what no brace closes properly: that is no JMESPath, and is told as a fault
    instead of being looked through again and again.
    """
    first = text.find("}", start, start + MAX_REFERENCE_CHARS)
    if first < 0:
        return None
    if not _QUOTED_OR_BRACE.search(text, start, first):
        return first
    depth = 1
    for token in _QUOTED_OR_BRACE.finditer(text, start, start + MAX_REFERENCE_CHARS):
        depth += {"{": 1, "}": -1}.get(token.group(), 0)
        if depth == 0:
            return token.start()
    return first
