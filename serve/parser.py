"""Parse and split: from a prompt to a plan that is still to be verified. A plain class; Serve wraps it."""

from __future__ import annotations

import asyncio
from time import perf_counter

from rayloom.dag.outline import split
from rayloom.dag.parser_port import Planned, PlanRequest


class Parser:
    """Plans prompts by their outline. No model is configured in this version."""

    async def plan(self, request: PlanRequest) -> Planned:
        """Parse a prompt and split it into a plan. Raises UserError when it can't be planned."""
        return await asyncio.to_thread(_plan, request)


def _plan(request: PlanRequest) -> Planned:
    started_at = perf_counter()
    prompt = request.prompt.strip()
    parsed_at = perf_counter()
    outline = split(prompt, tuple(request.tools), views=request.tools)
    return Planned(
        plan=outline.plan.model_dump(mode="json", exclude_unset=True),
        source="outline",
        notes=tuple(outline.notes),
        language=outline.language,
        parsed_s=parsed_at - started_at,
        split_s=perf_counter() - parsed_at,
    )
