"""Ids and names of tools as models write them, and what they must have meant, where only one thing can be meant."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.\-]+")
_SOUNDLESS: Final = re.compile(r"[^a-z0-9]+")
_MAX_ID_CHARS: Final = 128
_MIN_NEAR_CHARS: Final = 3
"""In a shorter name one character is too much of it."""


def clean_id(raw: str) -> str:
    """``raw`` with what an id can't hold made ``_``; empty where nothing is left of it."""
    return _UNFIT.sub("_", raw.strip()).strip("_")[:_MAX_ID_CHARS]


def numbered(name: str, taken: Collection[str]) -> str:
    """``name``, or the first of ``name_2``, ``name_3`` … that is free."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name[: _MAX_ID_CHARS - 6]}_{number}"
    return found


def sound_of(name: str) -> str:
    """What two ways of writing one name have in common: letters and digits, in lower case."""
    return _SOUNDLESS.sub("", name.lower())


def same_sound(name: str, known: Iterable[str]) -> str | None:
    """The only one of ``known`` that sounds like ``name``; None where there is none, or several."""
    sound = sound_of(name)
    found = [each for each in known if sound and sound_of(each) == sound]
    return found[0] if len(found) == 1 else None


def one_off(name: str, known: Iterable[str]) -> str | None:
    """The only one of ``known`` that sounds like ``name`` or differs from it by one character."""
    known = tuple(known)
    found = same_sound(name, known)
    if found is not None or len(name) < _MIN_NEAR_CHARS:
        return found
    near = [each for each in known if _differ_by_one(name, each)]
    return near[0] if len(near) == 1 else None


def meant_tool(name: str, known: Collection[str]) -> str | None:
    """The tool that is meant by ``name``: itself, without what models put before it, or the only one that sounds so."""
    plain = name.strip().strip("`").removeprefix("@").removeprefix("functions.").removesuffix("()")
    return plain if plain in known else same_sound(plain, known)


def _differ_by_one(a: str, b: str) -> bool:
    if abs(len(a) - len(b)) > 1:
        return False
    shorter, longer = sorted((a, b), key=len)
    place = next((i for i, char in enumerate(shorter) if char != longer[i]), len(shorter))
    rest = shorter[place + 1 :] if len(a) == len(b) else shorter[place:]
    # Two steps that differ by their number alone, `fetch_1` and `fetch_2`, are two steps.
    changed = longer[place : place + 1] + (shorter[place : place + 1] if len(a) == len(b) else "")
    return rest == longer[place + 1 :] and not any(char.isdigit() for char in changed)
