"""Calling an actor by its name, so that the caller survives the actor's restart, and errors cross as values.

An actor's method wraps what it does in ``as_value``; the caller's ``NamedActor`` opens it again. No exception of
ours is ever pickled.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from rayloom.dag.answer import as_error
from rayloom.dag.errors import Bug, Transient
from rayloom.db import faults

CALL_TIMEOUT_S: Final = 30.0
RETRY_FOR_S: Final = 30.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


class _NotThere(Exception):
    """The name is not taken, or not yet again."""


class NamedActor:
    """An actor that is known by its name in a namespace. Belongs to one event loop.

    ``retry_for_s``: how long calls that may be repeated wait for an actor that is restarting.
    """

    def __init__(self, name: str, namespace: str, *, retry_for_s: float = RETRY_FOR_S) -> None:
        self.name = name
        self._namespace = namespace
        self._retry_for_s = retry_for_s
        self._handle: Any = None

    async def call(
        self,
        method: str,
        *arguments: object,
        idempotent: bool,
        timeout_s: float = CALL_TIMEOUT_S,
        retry_for_s: float | None = None,
    ) -> Any:
        """Call a method and answer its result.

        While the actor is away, a call that is ``idempotent`` is repeated; another one only if it was never sent.
        Raises the error that the method raised; Transient (``ACTOR_UNAVAILABLE``) when the actor does not answer; Bug
        when the method failed with an error that is not ours.
        """
        now = asyncio.get_running_loop().time
        give_up_at = now() + (self._retry_for_s if retry_for_s is None else retry_for_s)
        pause_s = _FIRST_PAUSE_S
        while True:
            sent = False
            try:
                handle = await self._find()
                await _lose("before")
                sent = True
                future = getattr(handle, method).remote(*arguments).future()
                kind, value = await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
                await _lose("after")
                if kind == "error":
                    raise as_error(value)
                return value
            except RayTaskError as error:
                raise Bug("INTERNAL", f"{self.name}.{method}: {type(error.cause).__name__}: {error.cause}") from error
            except (RayActorError, _NotThere) as error:
                self._handle = None
                if (sent and not idempotent) or now() + pause_s > give_up_at:
                    raise self._unavailable(error) from error
            except (TimeoutError, RayError) as error:
                self._handle = None
                raise self._unavailable(error) from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _find(self) -> Any:
        if self._handle is None:
            if not ray.is_initialized():
                raise Transient("ACTOR_UNAVAILABLE", f"{self.name}: this process is not connected to Ray")
            try:
                # Asks Ray's control store, and blocks meanwhile.
                self._handle = await asyncio.to_thread(ray.get_actor, self.name, self._namespace)
            except ValueError as error:
                raise _NotThere("there is no actor of that name") from error
        return self._handle

    def _unavailable(self, error: BaseException) -> Transient:
        reason = str(error).partition("\n")[0] or type(error).__name__
        return Transient("ACTOR_UNAVAILABLE", f"{self.name} does not answer: {reason}", retry_after_s=1.0)


async def _lose(when: faults.When) -> None:
    """Let the call time out, if a fault strikes now."""
    if faults.injector is not None and await faults.injector.strikes(faults.ACTOR, when):
        raise TimeoutError(f"fault injected {when} the call")
