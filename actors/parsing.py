"""The parser deployment, as the scheduler calls it: by its name in Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from rayloom.dag.answer import opened
from rayloom.dag.errors import Bug, Transient
from rayloom.dag.planned import Early, Planned, PlanRequest
from rayloom.dag.ports import PARSER_BROKE
from rayloom.dag.replan import ReplanRequest

APPLICATION: Final = "rayloom"
DEPLOYMENT: Final = "Parser"
TAKEN_S: Final = 120.0
"""Within which a replica must have room for a prompt; as long as an answer may take, where that is longer."""
ANSWER_S: Final = 120.0
"""Within which it must have answered, where no model plans."""


class ServeParser:
    """``PlannerPort`` over a deployment handle. Belongs to one event loop.

    ``answer_s``: within which a replica that has taken a prompt must have answered.
    """

    def __init__(self, *, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._handle: Any = None
        self._streaming: Any = None

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan.

        Raises NeedsClarification, UserError when it can't be planned otherwise, Bug (``PARSER_FAILED``), and Transient:
        ``PARSER_UNAVAILABLE`` when no replica takes the prompt, ``PARSER_BROKE`` when one took it and died or was
        silent, and what kept the models from answering.
        """
        return await self._call("plan", request)

    async def replan(self, request: ReplanRequest) -> Planned:
        """What to add to the plan of a running task. Raises as ``plan``."""
        return await self._call("replan", request)

    async def stream(self, request: PlanRequest) -> AsyncGenerator[Early | Planned, None]:
        """What may run already of a plan, as it is written, and last the plan. Raises as ``plan``."""
        async with self._response("stream", request, is_stream=True) as response:
            ends_at = asyncio.get_running_loop().time() + self._answer_s
            while True:
                async with asyncio.timeout_at(ends_at):
                    answer = await anext(response, None)
                if answer is None:
                    return
                given: Early | Planned = opened(answer)
                yield given

    async def _call(self, method: str, request: PlanRequest | ReplanRequest) -> Planned:
        async with self._response(method, request) as response, asyncio.timeout(self._answer_s):
            answer = await response
        planned: Planned = opened(answer)
        return planned

    @asynccontextmanager
    async def _response(
        self, method: str, request: PlanRequest | ReplanRequest, *, is_stream: bool = False
    ) -> AsyncIterator[Any]:
        """What a replica says that has taken it; who stops waiting for it stops the replica, too."""
        response: Any = None
        taken = False
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(_find)
                self._streaming = self._handle.options(stream=True)
            response = getattr(self._streaming if is_stream else self._handle, method).remote(request)
            async with asyncio.timeout(max(TAKEN_S, self._answer_s)):
                # Waits until a replica has taken it.
                await (response._to_object_ref_gen() if is_stream else response._to_object_ref())
            taken = True
            yield response
        except (asyncio.CancelledError, GeneratorExit):
            # Nobody waits any more: a model that is writing the plan is to stop.
            if response is not None:
                response.cancel()
            raise
        except RayTaskError as error:
            raise Bug("PARSER_FAILED", f"the parser broke: {type(error.cause).__name__}: {error.cause}") from error
        except (RayError, RayServeException, TimeoutError, _NotDeployed) as error:
            self._handle = None
            if response is not None and isinstance(error, TimeoutError):
                response.cancel()
            if taken:
                raise Transient(PARSER_BROKE, f"the parser took it and did not answer ({_said(error)})") from error
            raise Transient("PARSER_UNAVAILABLE", f"no parser replica answered ({_said(error)})") from error


class _NotDeployed(Exception):
    """Serve runs without our application: it is not up yet, or about to go."""


def _find() -> Any:
    try:
        return serve.get_deployment_handle(DEPLOYMENT, APPLICATION)
    except KeyError:
        raise _NotDeployed from None


def _said(error: Exception) -> str:
    return "silence" if isinstance(error, TimeoutError) else type(error).__name__.strip("_")
