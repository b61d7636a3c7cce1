"""References between subtasks: found and checked at submit, replaced by values before an attempt.

- ``{"$ref": "id.output.path"}``, alone in its object, stands for that value, whatever its type.
- ``${id.output.path}`` inside a string stands for its text: a string as it is, anything else as compact JSON.
- ``{"$literal": x}`` stands for ``x``, in which nothing is looked for; ``$${`` in a string stands for ``${``.
- ``{"$secret": "name"}`` names a secret.

What follows ``id.output`` is JMESPath. Ids may hold dots: the longest known id wins. Keys of objects hold no
references.

A reference must not be a way to fill the memory of whoever resolves it: an expression that could give far more than
the output is a fault, and all that references put into one value is limited.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import orjson

from rayloom.dag.embedded import HEAD, MAX_REFERENCE_CHARS, Embedded, pieces_of
from rayloom.dag.errors import Fault, InvalidPlan, UserError, shown
from rayloom.dag.json_text import escape
from rayloom.dag.made_texts import TooLarge
from rayloom.dag.nearest import Hints
from rayloom.dag.paths import Missing, path_fault, search
from rayloom.dag.values import Json

REF: Final = "$ref"
LITERAL: Final = "$literal"
SECRET: Final = "$secret"
_MARKERS: Final = (REF, LITERAL, SECRET)

_OUTPUT: Final = re.compile(r"\.output(?![A-Za-z0-9_\-])")
MAX_RESOLVED_CHARS: Final = 256 * 1024 * 1024
"""All that references put into one value, written as JSON: an output that is used twice counts twice."""
MAX_ID_CHARS: Final = 128
"""As ``plan`` has it: no id is looked for beyond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """One use of another subtask's output."""

    pointer: str
    """Where it stands."""
    subtask: str
    """The id that it points to."""
    path: str
    """What follows ``id.output`` as it is written, for example ``.items[0]``; empty for the whole output."""
    whole: bool
    """True for a ``$ref`` object, False inside a string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What subtasks have given, by their ids in the plan. ``nothing``: those that are missing, with null instead."""

    values: Mapping[str, Json]
    nothing: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """All that one value holds beside plain JSON."""

    references: tuple[Reference, ...]
    secrets: tuple[tuple[str, str], ...]
    """Pointer and name of each."""
    faults: tuple[Fault, ...]


def scan(
    value: Json, known: Collection[str], *, pointer: str = "", limit: float = math.inf, hints: Hints | None = None
) -> Scan:
    """Every reference, secret and fault of ``value``. ``known`` are the ids that may be referred to.

    It looks no further once it has found ``limit`` faults. ``hints`` are those of the plan.
    """
    hints = hints or Hints()
    references: list[Reference] = []
    split: dict[str, tuple[str, str]] = {}
    secrets: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for where, item in _special(value, pointer):
        try:
            if isinstance(item, str):
                for piece in pieces_of(item):
                    if isinstance(piece, Embedded):
                        # One text may use an output a hundred thousand times.
                        subtask, path = split[piece.text] = split.get(piece.text) or _split(piece.text, known, hints)
                        references.append(Reference(pointer=where, subtask=subtask, path=path, whole=False))
                continue
            marker, content = _marked(item)
            if marker == REF:
                subtask, path = _split(content, known, hints)
                references.append(Reference(pointer=where, subtask=subtask, path=path, whole=True))
            elif marker == SECRET:
                secrets.append((where, content))
        except ValueError as error:
            faults.append(Fault(where, str(error)))
            if len(faults) >= limit:
                break
    return Scan(references=tuple(references), secrets=tuple(secrets), faults=tuple(faults))


def find(value: Json, known: Collection[str], *, pointer: str = "") -> list[Reference]:
    """Every reference in ``value``, in reading order.

    Raises InvalidPlan for an unknown id, a path that is not JMESPath, or a marker that shares its object.
    """
    scanned = scan(value, known, pointer=pointer)
    if scanned.faults:
        raise InvalidPlan(scanned.faults)
    return list(scanned.references)


def secrets(value: Json, *, pointer: str = "") -> list[tuple[str, str]]:
    """Pointer and name of every ``$secret`` in ``value``."""
    return list(scan(value, (), pointer=pointer).secrets)


def resolve(value: Json, outputs: Mapping[str, Json], *, pointer: str = "", nothing: Collection[str] = ()) -> Json:
    """``value`` with every reference replaced; what holds none is given back as it is, not copied.

    ``nothing``: the ids, among those of ``outputs``, whose subtask is missing and gives null, on whatever path.

    Raises UserError ``REFERENCE_MISSING`` where a reference leads nowhere, ``REFERENCE_INVALID`` where it can't be
    read (which ``find`` would have told), and ``REFERENCE_TOO_LARGE`` where it gives too much. The values of the
    outputs are shared, not copied.
    """
    return _Resolution(outputs, nothing).resolve(value, pointer)


def text_of(value: Json) -> str:
    """How a value stands inside a string: text as it is, anything else as compact JSON."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def literal(text: str) -> Json:
    """``text`` so that ``resolve`` gives it back unchanged."""
    return {LITERAL: text} if "${" in text else text


def plain_text(text: str) -> str | None:
    """``text`` as ``resolve`` would give it, where no output is needed for that; None where it holds a reference."""
    if "${" not in text:
        return text
    pieces: list[str] = []
    for piece in pieces_of(text):
        if isinstance(piece, Embedded):
            return None
        pieces.append(piece)
    return "".join(pieces)


def _special(value: Json, pointer: str) -> Iterator[tuple[str, str | dict[str, Json]]]:
    """Strings with ``${`` and objects with a marker, in reading order, with their pointers."""
    stack: list[tuple[str, Json]] = [(pointer, value)]
    while stack:
        where, item = stack.pop()
        if isinstance(item, str):
            if "${" in item:
                yield where, item
        elif isinstance(item, list):
            stack.extend((f"{where}/{i}", item[i]) for i in range(len(item) - 1, -1, -1))
        elif isinstance(item, dict):
            if _is_marked(item):
                yield where, item
            else:
                stack.extend((f"{where}/{escape(key)}", item[key]) for key in reversed(item))


def _is_marked(item: Mapping[str, Json]) -> bool:
    return any(marker in item for marker in _MARKERS)


def _marked(item: Mapping[str, Json]) -> tuple[str, str]:
    """The marker of an object and its text (empty for ``$literal``). Raises ValueError where it is no good."""
    marker = next(name for name in _MARKERS if name in item)
    if len(item) > 1:
        raise ValueError(f'`{marker}` must stand alone in its object; wrap it in {{"{LITERAL}": …}} if it is data')
    content = item[marker]
    if marker == LITERAL:
        return marker, ""
    if not isinstance(content, str) or not content:
        raise ValueError(f"`{marker}` must be a text that is not empty")
    return marker, content


def _split(text: str, known: Collection[str], hints: Hints) -> tuple[str, str]:
    """Id and path of a reference. Raises ValueError where there is no such id or no such path."""
    if len(text) > MAX_REFERENCE_CHARS:
        raise ValueError(f"`{shown(text)}` is longer than {MAX_REFERENCE_CHARS:,} characters")
    head = HEAD.match(text)
    if head is None:
        raise ValueError(f"`{shown(text)}` is not a reference: write `<id>.output` and a JMESPath")
    end = min(head.end(), MAX_ID_CHARS + len(".output") + 1)
    candidates = [text[: found.start()] for found in _OUTPUT.finditer(text, 0, end)]
    subtask = next((name for name in reversed(candidates) if name in known), None)
    if subtask is None:
        name = _OUTPUT.split(text, maxsplit=1)[0]
        hint = hints(name, known)
        raise ValueError(f"`{shown(text)}` refers to `{shown(name)}`, and there is no such subtask{hint}")
    path = text[len(subtask) + len(".output") :]
    fault = path_fault(path)
    if fault is not None:
        raise ValueError(f"`{shown(text)}` has no valid JMESPath after `{shown(subtask)}.output`: {fault}")
    return subtask, path


class _Resolution:
    """One value being resolved: what its references may still put into it."""

    def __init__(self, outputs: Mapping[str, Json], nothing: Collection[str]) -> None:
        self._outputs, self._nothing = outputs, nothing
        self._chars_left = MAX_RESOLVED_CHARS
        self._hints = Hints()

    def resolve(self, value: Json, pointer: str) -> Json:
        if isinstance(value, str):
            return self._text(value, pointer) if "${" in value else value
        if isinstance(value, list):
            elements = [self.resolve(item, f"{pointer}/{i}") for i, item in enumerate(value)]
            return elements if any(new is not old for new, old in zip(elements, value, strict=True)) else value
        if not isinstance(value, dict):
            return value
        if not _is_marked(value):
            members = {key: self.resolve(item, f"{pointer}/{escape(key)}") for key, item in value.items()}
            return members if any(members[key] is not value[key] for key in value) else value
        try:
            marker, content = _marked(value)
        except ValueError as error:
            raise UserError("REFERENCE_INVALID", f"{pointer or '/'}: {error}") from None
        if marker == LITERAL:
            return value[LITERAL]
        if marker == REF:
            found = self._look_up(content, pointer)
            self._count(text_of(found), content, pointer)
            return found
        raise UserError("REFERENCE_INVALID", f"{pointer or '/'}: there is no secret `{shown(content)}`")

    def _text(self, text: str, pointer: str) -> str:
        pieces = []
        for piece in pieces_of(text):
            if isinstance(piece, Embedded):
                found = text_of(self._look_up(piece.text, pointer))
                self._count(found, piece.text, pointer)
                pieces.append(found)
            else:
                pieces.append(piece)
        return "".join(pieces)

    def _look_up(self, text: str, pointer: str) -> Json:
        try:
            subtask, path = _split(text, self._outputs, self._hints)
        except ValueError as error:
            raise UserError("REFERENCE_MISSING", f"{pointer or '/'}: {error}") from None
        if subtask in self._nothing:
            return None
        try:
            found = search(path, self._outputs[subtask])
        except TooLarge as error:
            raise UserError("REFERENCE_TOO_LARGE", f"{pointer or '/'}: `{shown(text)}`: {error}") from None
        if isinstance(found, Missing):
            message = f"{pointer or '/'}: `{shown(text)}` leads nowhere in the output of `{subtask}`"
            raise UserError("REFERENCE_MISSING", message)
        return found

    def _count(self, found: str, text: str, pointer: str) -> None:
        self._chars_left -= len(found)
        if self._chars_left < 0:
            message = f"`{shown(text)}` is one too many: an input is given at most {MAX_RESOLVED_CHARS:,} characters"
            raise UserError("REFERENCE_TOO_LARGE", f"{pointer or '/'}: {message} of outputs")
