"""Calls by name survive a restart of the actor, and are repeated only if they may be."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

from rayloom.actors.named import NamedActor
from rayloom.dag.answer import Answer
from rayloom.dag.errors import Bug, ErrorInfo, Transient, UserError


class Actor:
    """Answers a call with the next of its script: a value, or an error that Ray would raise."""

    def __init__(self, *script: Answer[Any] | BaseException) -> None:
        self.script = list(script)
        self.calls: list[tuple[object, ...]] = []

    @property
    def ask(self) -> Actor:
        return self

    def remote(self, *arguments: object) -> Actor:
        self.calls.append(arguments)
        return self

    def future(self) -> Future[Any]:
        future: Future[Any] = Future()
        if not self.script:
            return future
        match self.script.pop(0):
            case BaseException() as error:
                future.set_exception(error)
            case answer:
                future.set_result(answer)
        return future


Named = Callable[..., NamedActor]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """A named actor whose name leads to each of these in turn; the last one stays."""

    def make(*actors: Actor | ValueError, retry_for_s: float = 5.0) -> NamedActor:
        found = list(actors)

        def get_actor(name: str, namespace: str) -> Actor:
            assert (name, namespace) == ("x-v1", "n")
            actor = found.pop(0) if len(found) > 1 else found[0]
            if isinstance(actor, ValueError):
                raise actor
            return actor

        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "get_actor", get_actor)
        return NamedActor("x-v1", "n", retry_for_s=retry_for_s)

    return make


async def test_a_call_gives_the_value_or_raises_the_error_that_is_meant(named: Named) -> None:
    error = ErrorInfo.from_exception(UserError("TOOL_UNKNOWN", "no"))
    actor = Actor(("ok", 5), ("error", error))
    one = named(actor)
    assert await one.call("ask", "a", 1, idempotent=False) == 5
    with pytest.raises(UserError, match="no"):
        await one.call("ask", idempotent=False)
    assert actor.calls == [("a", 1), ()]


@pytest.mark.parametrize("gone", [ActorUnavailableError("restarting", b"1" * 16), ActorDiedError()])
async def test_a_call_that_may_be_repeated_finds_the_restarted_actor(named: Named, gone: Exception) -> None:
    first, second = Actor(gone), Actor(("ok", "back"))
    one = named(first, ValueError("no such name"), second)
    assert await one.call("ask", 1, idempotent=True) == "back"
    assert (len(first.calls), len(second.calls)) == (1, 1)


async def test_a_call_that_may_not_be_repeated_is_sent_once(named: Named) -> None:
    first, second = Actor(ActorUnavailableError("restarting", b"1" * 16)), Actor(("ok", "again"))
    one = named(first, second)
    with pytest.raises(Transient) as told:
        await one.call("ask", idempotent=False)
    assert told.value.code == "ACTOR_UNAVAILABLE"
    assert second.calls == []
    assert await one.call("ask", idempotent=False) == "again"


async def test_looking_for_the_name_may_be_repeated_always(named: Named) -> None:
    assert await named(ValueError("not yet"), Actor(("ok", 1))).call("ask", idempotent=False) == 1


async def test_an_actor_that_stays_away_is_given_up(named: Named) -> None:
    one = named(ValueError("never"), retry_for_s=0.2)
    with pytest.raises(Transient, match="x-v1 does not answer"):
        await one.call("ask", idempotent=True)


async def test_an_actor_that_hangs_is_given_up(named: Named) -> None:
    with pytest.raises(Transient, match="does not answer"):
        await named(Actor()).call("ask", idempotent=True, timeout_s=0.01)


async def test_other_troubles_of_ray_are_transient(named: Named) -> None:
    out_of_memory: Any = OutOfMemoryError  # untyped
    with pytest.raises(Transient, match="does not answer"):
        await named(Actor(out_of_memory("no memory"))).call("ask", idempotent=True)


async def test_a_foreign_error_in_the_actor_is_a_bug_whatever_its_type(named: Named) -> None:
    for cause in (KeyError("x"), TimeoutError("y"), ActorDiedError()):
        task_error: Any = RayTaskError  # untyped
        actor = Actor(task_error("ask", "Traceback …", cause).as_instanceof_cause(), ("ok", "repeated"))
        with pytest.raises(Bug, match=rf"x-v1\.ask: {type(cause).__name__}"):
            await named(actor).call("ask", idempotent=True)


async def test_without_ray_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "get_actor", pytest.fail)
    with pytest.raises(Transient, match="not connected"):
        await NamedActor("x-v1", "n").call("ask", idempotent=True)
