"""The watch of a chaos run tells of an outage that lasts to the end, and of what ended it before its time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import pytest

from tests.chaos.faults import ServerFaults
from tests.chaos.watch import LOOK_S, Watch

PATIENCE_S = 30


class Watched:
    """An instance with these rows in its table of breakers, or where that is an error."""

    url = "http://rayloom"

    def __init__(self, answer: Sequence[Mapping[str, Any]] | Exception = ()) -> None:
        self._answer = answer
        self.asked = threading.Event()

    def sql(self, _statement: str, *_values: object) -> Sequence[Mapping[str, Any]]:
        self.asked.set()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class Api(httpx2.BaseTransport):
    """It answers as it is told (None: nobody does), and then as it was told last."""

    def __init__(self, *statuses: int | None) -> None:
        self._left = list(statuses)
        self.is_at_last = threading.Event()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        status = self._left.pop(0) if len(self._left) > 1 else self._left[0]
        if len(self._left) == 1:
            self.is_at_last.set()
        if status is None:
            raise httpx2.ConnectError("nobody is there", request=request)
        return httpx2.Response(status)


def watch_of(instance: Watched, api: Api) -> tuple[Watch, list[str]]:
    """A watch, and what it tells."""
    told: list[str] = []
    return Watch(instance, tell=told.append, away=(OSError,), faults=ServerFaults(), transport=api), told


def test_an_outage_that_lasts_to_the_end_is_counted() -> None:
    api = Api(200, None, None)
    watch, _ = watch_of(Watched(), api)
    watch.start()
    assert api.is_at_last.wait(PATIENCE_S)
    watch.stop()
    assert watch.away_s >= 0.9 * LOOK_S
    assert watch.away_in_all_s == watch.away_s


def test_each_outage_is_counted_and_the_longest_is_known() -> None:
    api = Api(200, 503, 200, None, None, 200, 200)
    watch, _ = watch_of(Watched(), api)
    watch.start()
    assert api.is_at_last.wait(PATIENCE_S)
    watch.stop()
    assert watch.away_s >= 2.9 * LOOK_S
    assert watch.away_in_all_s >= watch.away_s + 1.9 * LOOK_S


def test_an_api_that_always_answers_was_never_away() -> None:
    api = Api(200, 200, 200)
    watch, _ = watch_of(Watched(), api)
    watch.start()
    assert api.is_at_last.wait(PATIENCE_S)
    watch.stop()
    assert watch.away_s == watch.away_in_all_s == 0


def test_a_breaker_that_opens_is_told_and_known() -> None:
    watched = Watched([{"key": "http.request"}])
    watch, told = watch_of(watched, Api(200))
    watch.start()
    assert watched.asked.wait(PATIENCE_S)
    watch.stop()
    assert (watch.openings, watch.opened) == (1, {"http.request"})
    assert told == ["the breaker of http.request is open"]


def test_a_database_that_is_away_is_looked_at_again_and_any_other_error_is_raised_at_the_end() -> None:
    for error, raised in ((OSError("away"), None), (KeyError("key"), KeyError)):
        watched = Watched(error)
        watch, _ = watch_of(watched, Api(200))
        watch.start()
        assert watched.asked.wait(PATIENCE_S)
        if raised is None:
            watch.stop()
        else:
            with pytest.raises(raised):
                watch.stop()
