"""What runs in the place of a tool where a model does the subtask: made for one attempt, of what its order says."""

from __future__ import annotations

import orjson

from rayloom.actors.attempt import Surroundings
from rayloom.actors.attempt_record import AttemptRecord, ModelCallTold
from rayloom.actors.loop_tools import LoopTools
from rayloom.actors.order import AttemptOrder, Thought
from rayloom.dag.cache_key import input_digest
from rayloom.dag.errors import Refused, UserError
from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.plan import TaskType
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.thinking import CODE
from rayloom.dag.tool_scope import ToolScope
from rayloom.dag.values import Json
from rayloom.tools.skills.tool import activated
from rayloom.tools.thinking.coding import Coding
from rayloom.tools.thinking.reasoning import Reasoning
from rayloom.tools.thinking.thinking import SkillText, Thinking
from rayloom.tools.tool import Tool, ToolContext


async def thinker(
    order: AttemptOrder, input_: Json, surroundings: Surroundings, context: ToolContext, record: AttemptRecord
) -> Tool:
    """The executor of a REASONING or CODE_GEN subtask that a model does. ``input_``: with its references resolved.

    Raises Refused (``MODEL_MISSING``, ``TOOL_REFUSED``, ``TOOL_INACTIVE``), UserError (``TOOL_UNKNOWN``), and Transient
    where something is away.
    """
    thought = order.thought
    assert thought is not None
    given = input_ if isinstance(input_, dict) else {}
    scope = ToolScope.of(orjson.loads(thought.rules) if thought.rules else None)
    snapshot = await surroundings.tools(order.registry_version)
    codes = thought.task_type == TaskType.CODE_GEN
    if codes:
        # What a model writes runs as what is given does: by the same tool's leave.
        run = await surroundings.tool(CODE_TOOL, order.registry_version)
        _must_be_taken(scope, run.spec.name, snapshot)
        if CODE in given:
            # Somebody has retried it with code of their own.
            return run

    def on_call(call: ModelCallTold) -> None:
        record.note(call)
        context.log.line(call.line, stream="model", level="INFO" if call.is_ok else "WARNING", fields=call.attributes)

    record.is_thought = True
    named = given.get("use_tools")
    granted = [str(name) for name in named] if isinstance(named, list) else []
    thinking = Thinking(
        instruction=thought.instruction,
        models=surroundings.models(order, on_call),
        tools=LoopTools(order, surroundings, snapshot, scope, granted, context, record),
        noted=record.tool_call,
        skills=await _skills(thought, scope, snapshot, context),
        scope=input_digest(scope.as_json()),
    )
    return Coding(thinking) if codes else Reasoning(thinking, uses_tools=bool(granted))


async def _skills(
    thought: Thought, scope: ToolScope, snapshot: ToolSnapshot, context: ToolContext
) -> tuple[SkillText, ...]:
    found: list[SkillText] = []
    for name in thought.skills:
        _must_be_taken(scope, name, snapshot)
        tool = snapshot.tools[name]
        if tool.type != "SKILL":
            raise UserError("TOOL_UNKNOWN", f"{name} is no Skill any more")
        skill = await activated(context.contents, tool.version)
        text = SkillText(name=name, description=tool.description, instructions=skill.instructions, version=tool.version)
        found.append(text)
    return tuple(found)


def _must_be_taken(scope: ToolScope, name: str, snapshot: ToolSnapshot) -> None:
    """Raises where a tool can't be used any more: the plan was judged, but things change."""
    tool = snapshot.tools.get(name)
    if tool is None:
        raise UserError("TOOL_UNKNOWN", f"the tool {name} is no longer registered")
    if not tool.is_active:
        raise Refused("TOOL_INACTIVE", f"the tool {name} is switched off")
    if not (scope.takes(name) and scope.admits(tool.permission_level)):
        raise Refused("TOOL_REFUSED", f"the task may not use the tool {name}")
