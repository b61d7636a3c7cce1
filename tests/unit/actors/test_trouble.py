"""An outage is told at once, then ever more rarely; the next one is news again."""

from __future__ import annotations

import logging

import pytest

from rayloom.actors import trouble as module
from rayloom.actors.trouble import LONGEST_S, OVER_S, Trouble
from rayloom.dag.errors import Transient

AWAY = Transient("DATABASE_UNAVAILABLE", "away")


def test_an_outage_is_told_ever_more_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now_s)
    trouble, told = Trouble(), []
    for _ in range(3600):
        if trouble.is_news(AWAY):
            told.append(now_s - 100.0)
        now_s += 1.0
    assert told[:6] == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0]
    assert told[-1] - told[-2] == LONGEST_S
    assert trouble.is_news(ValueError("another")), "whatever is different is news"
    assert not trouble.is_news(ValueError("the same kind"))
    now_s += OVER_S + 1
    assert trouble.is_news(ValueError("the next outage"))
    now_s += 1.0
    assert trouble.is_news(ValueError("the next outage"))


def test_only_what_nobody_expected_has_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log, trouble = logging.getLogger("test"), Trouble()
    trouble.tell(log, "known", AWAY, known=True, loop="x")
    trouble.tell(log, "known", AWAY, known=True)
    trouble.tell(log, "broken", ValueError("a bug"), known=False)
    told = [(line.message, line.levelname, bool(line.exc_info), vars(line)["error"]) for line in caplog.records]
    assert told == [
        ("known", "WARNING", False, "Transient: away"),
        ("broken", "ERROR", True, "ValueError: a bug"),
    ]
