"""The parser deployment, as the scheduler calls it: by its name in Ray Serve."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException

from rayloom.dag.answer import opened
from rayloom.dag.errors import Bug, Transient
from rayloom.dag.ports import Planned, PlanRequest

APPLICATION: Final = "rayloom"
DEPLOYMENT: Final = "Parser"
TIMEOUT_S: Final = 120.0


class ServeParser:
    """``ParserPort`` over a deployment handle. Belongs to one event loop."""

    def __init__(self) -> None:
        self._handle: Any = None

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan.

        Raises UserError when it can't be planned, Bug (``PARSER_FAILED``), and Transient (``PARSER_UNAVAILABLE``) when
        no replica answers.
        """
        try:
            if self._handle is None:
                self._handle = await asyncio.to_thread(serve.get_deployment_handle, DEPLOYMENT, APPLICATION)
            async with asyncio.timeout(TIMEOUT_S):
                answer = await self._handle.plan.remote(request)
        except RayTaskError as error:
            raise Bug("PARSER_FAILED", f"the parser broke: {type(error.cause).__name__}: {error.cause}") from error
        except (RayError, RayServeException, TimeoutError) as error:
            self._handle = None
            raise Transient("PARSER_UNAVAILABLE", f"no parser replica answered: {type(error).__name__}") from error
        planned: Planned = opened(answer)
        return planned
