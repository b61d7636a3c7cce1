"""The tools that a model may call by itself in one attempt: as its task's rules say, whatever the model says."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from rayloom.actors.attempt import Surroundings
from rayloom.actors.attempt_record import AttemptRecord
from rayloom.actors.order import AttemptOrder
from rayloom.dag.breaker import Call, said_of_callee
from rayloom.dag.cache_key import input_digest
from rayloom.dag.errors import ErrorInfo, RayloomError, Refused, Transient
from rayloom.dag.outcome import Outcome
from rayloom.dag.output import sanitise
from rayloom.dag.ports import RegisteredTool, ToolSnapshot
from rayloom.dag.tool_scope import ToolScope
from rayloom.dag.values import Json, JsonObject
from rayloom.tools.call import checked, run_tool
from rayloom.tools.thinking.thinking import ToolOffer
from rayloom.tools.tool import ToolContext


@dataclass(frozen=True, slots=True)
class LoopTools:
    """Implements ``ToolCaller``. ``scope``: what the task may use. ``granted``: the names that its plan gave.

    ``snapshot``: the tools when the attempt began, which it was offered; a call is judged by those of its own time.
    """

    order: AttemptOrder
    surroundings: Surroundings
    snapshot: ToolSnapshot
    scope: ToolScope
    granted: Sequence[str]
    context: ToolContext
    record: AttemptRecord

    def offers(self, globs: Sequence[str]) -> Sequence[ToolOffer]:
        """Those of these names that may be called now, sorted by name."""
        tools = (self.snapshot.tools[name] for name in sorted(self.snapshot.tools))
        return [
            ToolOffer(name=tool.name, description=tool.description, schema=tool.schema)
            for tool in tools
            if any(fnmatchcase(tool.name, glob) for glob in globs) and self._why_not(tool, self.snapshot) is None
        ]

    async def _newest(self) -> ToolSnapshot:
        """The tools as they are now: an attempt lasts for minutes, and a tool may be switched off meanwhile."""
        with suppress(Transient):
            return await self.surroundings.tools(self.snapshot.version)
        # Nobody can say: as with what the scheduler starts meanwhile, what was known last holds.
        return self.snapshot

    def _why_not(self, tool: RegisteredTool, snapshot: ToolSnapshot) -> str | None:
        """Why a model may not call it; None: it may."""
        levels = self.surroundings.settings.engine.approval_levels
        if not tool.is_active:
            return "it is switched off"
        if not any(fnmatchcase(tool.name, glob) for glob in self.granted):
            return "it is not among those that `use_tools` gives"
        if not (self.scope.takes(tool.name) and self.scope.admits(tool.permission_level)):
            return "its task may not use it"
        if tool.permission_level in levels:
            return "it wants approval, and a model can't ask for that"
        if tool.breaker_key in snapshot.breakers:
            return "its breaker is open"
        return None

    async def call(self, name: str, input: JsonObject) -> Json:
        """Call one, as a subtask would: its input checked, its call in the trace, its breaker told."""
        snapshot = await self._newest()
        known = snapshot.tools.get(name)
        why = "there is no such tool" if known is None else self._why_not(known, snapshot)
        if known is None or why is not None:
            raise Refused("TOOL_REFUSED", f"{name} can't be called here: {why}")
        with self.record.tool_call(name, known.version, input) as told:
            told["called"] = False
            tool = await self.surroundings.tool(name, snapshot.version)
            fitting = checked(tool, input)
            told["called"] = True
            try:
                result = await run_tool(tool, fitting, self._context(name, input))
            except RayloomError as error:
                await self._report(known, error)
                raise
            await self._report(known, None)
            self.record.tool_tokens += result.tokens_used
            return sanitise(result.output)

    def _context(self, name: str, input: JsonObject) -> ToolContext:
        # Equal calls of any attempt have one key; others must not be taken for repetitions of them.
        key = f"{self.context.idempotency_key}-{input_digest({'tool': name, 'input': input})[:16]}"
        return replace(self.context, idempotency_key=key)

    async def _report(self, tool: RegisteredTool, error: RayloomError | None) -> None:
        if not tool.has_breaker:
            return
        info = None if error is None else ErrorInfo.from_exception(error)
        said = said_of_callee(Outcome(verdict="succeeded" if info is None else "failed", error=info, called=True))
        if said is not None:
            call = Call(key=tool.breaker_key, by=self.order.sub_task_id, succeeded=said)
            await self.surroundings.report(call)
