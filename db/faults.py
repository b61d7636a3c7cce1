"""Seeded faults at the seams of a process: what its connections to the database, Redis and Ray do now and then anyway.

Off unless `install` was called with a text, and then a call costs nothing but a look at ``injector``. Where a fault
strikes depends on the seed, the process's role and the order of its calls alone. (What breaks is in `faulty`, so that
a worker that uses neither needs no drivers.)
"""

from __future__ import annotations

import random
from typing import Final, Literal, Protocol

When = Literal["before", "after"]
"""Before what was asked is sent; or after it was done, so that only the answer is lost."""
DATABASE: Final = "database"
REDIS: Final = "redis"
ACTOR: Final = "actor"
LANE: Final = "lane"


class Injector(Protocol):
    """Who decides about faults."""

    async def strikes(self, seam: str, when: When, what: str = "") -> bool:
        """Whether this passage of a seam fails. May also never return: as if the process had died there.

        ``what``: the beginning of what is sent, where there are words for it.
        """

    def strikes_now(self, seam: str, when: When) -> bool:
        """The same where nobody can wait."""


class SeededFaults:
    """Every passage fails with the same chance, by dice that a seed and a role load."""

    def __init__(self, seed: int, rate: float, role: str) -> None:
        self._dice, self._rate = random.Random(f"{seed}/{role}"), rate

    async def strikes(self, seam: str, when: When, what: str = "") -> bool:
        """See `Injector`."""
        return self.strikes_now(seam, when)

    def strikes_now(self, seam: str, when: When) -> bool:
        """See `Injector`."""
        return self._dice.random() < self._rate


injector: Injector | None = None
"""That of this process; None: no faults."""


def parse(text: str) -> tuple[int, float]:
    """The seed and the rate that ``seed:rate`` names. Raises ValueError, saying what it should be."""
    seed, colon, rate = text.partition(":")
    try:
        parsed = int(seed), float(rate)
    except ValueError:
        colon = ""
        parsed = 0, 0.0
    if not colon or not 0 <= parsed[1] < 1:
        raise ValueError(
            "it must be seed:rate, a whole number and a chance of at least 0 and less than 1, such as 7:0.02"
        )
    return parsed


def install(text: str, role: str) -> None:
    """Let faults strike in this process, as ``seed:rate`` says; an empty text changes nothing."""
    global injector
    if text:
        injector = SeededFaults(*parse(text), role)
