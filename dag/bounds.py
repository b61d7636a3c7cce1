"""Upper bounds of what an expression makes and of the steps that it takes, and how they combine.

``growth`` says what is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

_Path = tuple[str, ...]
_Uses = Mapping[_Path, int]
_MAX_NAMES: Final = 8
"""Of a path. What lies deeper counts like what it is in, which is as large at least: each step of a measure takes a
time in proportion to the lengths of paths.
"""


class Growth(NamedTuple):
    """A size, or a number of steps, is at most so many times the size of the data, and so much besides."""

    times: int
    besides: int


@dataclass(frozen=True)
class Bound:
    """The size of a result: so many times each part of the data, and so much besides.

    ``uses`` holds parts by their path of names, the empty path for all of it.
    """

    uses: _Uses
    besides: int
    peak: Growth
    """The largest that exists at any time, the result included."""
    work: Growth
    """The steps that it takes."""
    at: _Path | None = None
    """Where in the data the result stands, if it is a part of it."""

    @cached_property
    def own(self) -> Growth:
        """Of the result."""
        return Growth(_most(self.uses), self.besides)


STEP: Final = Growth(0, 1)
DATA: Final = Bound({(): 1}, 0, Growth(1, 0), STEP, at=())


def _most(uses: _Uses) -> int:
    """How often a value is used at most: the largest sum along the way to it."""
    most = 0
    for path, times in uses.items():
        along = times
        while path:
            path = path[:-1]
            along += uses.get(path, 0)
        most = max(most, along)
    return most


def _largest(sizes: Iterable[Growth]) -> Growth:
    times, besides = zip(*sizes, strict=True)
    return Growth(max(times), max(besides))


def total(parts: Iterable[Growth]) -> Growth:
    """One after another."""
    times, besides = zip(*parts, strict=True)
    return Growth(sum(times), sum(besides))


def _of(inner: Growth, outer: Growth) -> Growth:
    """``outer`` of something that is as large as ``inner``."""
    return Growth(outer.times * inner.times, outer.times * inner.besides + outer.besides)


def _each(element: Growth) -> Growth:
    """Of a whole list, where each element becomes as large, or takes as long, as this: it has no more elements than
    values.
    """
    return Growth(max(sum(element), 1), 0)


def made_of(uses: _Uses, besides: int, parts: Sequence[Bound], *, steps: Growth = STEP) -> Bound:
    """What is made of ``parts``, which are all evaluated, in so many steps more."""
    peak = _largest((Growth(_most(uses), besides), *(part.peak for part in parts)))
    return Bound(uses, besides, peak, total((steps, *(part.work for part in parts))))


def together(bounds: Sequence[Bound], *, besides: int = 0, steps: Growth = STEP) -> Bound:
    """All of them, kept at the same time."""
    uses: dict[_Path, int] = {}
    for bound in bounds:
        for path, times in bound.uses.items():
            uses[path] = uses.get(path, 0) + times
    return made_of(uses, besides + sum(bound.besides for bound in bounds), bounds, steps=steps)


def one_of(bounds: Sequence[Bound], *, steps: Growth = STEP) -> Bound:
    """One of them, though all may have been evaluated."""
    uses: dict[_Path, int] = {}
    for bound in bounds:
        for path, times in bound.uses.items():
            uses[path] = max(uses.get(path, 0), times)
    return made_of(uses, max([1, *(bound.besides for bound in bounds)]), bounds, steps=steps)


def _on(data: Growth, bound: Bound) -> Bound:
    """What it takes to evaluate something once on what is so large; the result is not counted."""
    return Bound({}, 0, _of(data, bound.peak), _of(data, bound.work))


def on_each(data: Growth, bound: Bound) -> Bound:
    """The same for each element of it. What is made on the way is let go of each time."""
    return Bound({}, 0, _of(data, bound.peak), _of(data, _each(bound.work)))


def then(first: Bound, second: Bound) -> Bound:
    """``second`` of what ``first`` gives."""
    if first.at is not None:
        uses: dict[_Path, int] = {}
        for path, times in second.uses.items():
            longer = (*first.at, *path)[:_MAX_NAMES]
            uses[longer] = uses.get(longer, 0) + times
        # From here on nothing is told apart below so many names, so what follows a shorter path falls on it again.
        at = None if second.at is None else (*first.at, *second.at)[:_MAX_NAMES]
        work = total((first.work, second.work))
        return Bound(uses, second.besides, _largest((first.peak, second.peak)), work, at)
    return _scaled(first, second.own, [first, _on(first.own, second)])


def for_each(base: Bound, element: Bound) -> Bound:
    """``element`` of each element of ``base``, in a list."""
    return _scaled(base, _each(element.own), [base, on_each(base.own, element)])


def _scaled(bound: Bound, by: Growth, parts: Sequence[Bound]) -> Bound:
    uses = {path: by.times * times for path, times in bound.uses.items()}
    return made_of(uses, by.times * bound.besides + by.besides, parts)


def part(bound: Bound, *, steps: Growth) -> Bound:
    """A part of it, or its parts in another order."""
    return Bound(bound.uses, bound.besides, bound.peak, total((bound.work, steps)))
