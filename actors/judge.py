"""What plans of a task are made of and judged by: the tools and nodes that there are, and what the task may use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from uuid import UUID

from rayloom.actors.settings import EngineSettings
from rayloom.dag.model import Payer
from rayloom.dag.plan import parse_plan
from rayloom.dag.planned import PlanRequest
from rayloom.dag.planning.early import may_begin, may_plan_begin
from rayloom.dag.ports import ToolSnapshot
from rayloom.dag.resources import NodeShape
from rayloom.dag.tool_scope import ALL_TOOLS, ToolScope
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.dag.verify import verify


class Judge:
    """The newest tools and nodes that the scheduler has heard of."""

    def __init__(self, settings: EngineSettings) -> None:
        self.levels, self.with_models = settings.approval_levels, settings.with_models
        self._begins = settings.early_start and settings.with_models
        self.tools = ToolSnapshot(version=-1, tools={})
        self.nodes: tuple[NodeShape, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Whether tools and nodes are known.

        Without tools every mention of one would be taken for plain text, and without nodes nobody offers what tools ask
        for by default.
        """
        return self.tools.version >= 0 and bool(self.nodes)

    def request(
        self,
        *,
        task_id: UUID,
        user_id: UUID,
        key_id: UUID | None,
        prompt: str,
        context: JsonObject,
        options: JsonObject,
        p50_s: Mapping[str, float],
        begun: tuple[JsonObject, ...] = (),
    ) -> PlanRequest:
        """What the parser is asked for a task, of which some may have ``begun`` already: then no more of it does."""
        scope, budget = _scope(options), options.get("budget")
        usable = {name: view for name, view in self.tools.views().items() if view.is_active and _admits(scope, view)}
        return PlanRequest(
            task_id=str(task_id),
            prompt=prompt,
            context=context,
            tools=usable,
            nodes=self.nodes,
            payer=Payer(user_id=str(user_id), key_id=str(key_id or ""), task_id=str(task_id)),
            budget=budget if isinstance(budget, dict) else {},
            p50_s=p50_s,
            may_begin=self._begins and not begun and may_plan_begin(options, approval_levels=self.levels),
            begun=begun,
        )

    def verify(
        self, plan: JsonObject, options: JsonObject, *, done: Collection[str] = (), unusable: Collection[str] = ()
    ) -> VerifiedPlan:
        """The plan, if a task with these options may run it. Takes its time. Raises InvalidPlan."""
        scope, views = _scope(options), self.tools.views()
        # Its key may be allowed less than its own rules say, and a parser may name any tool.
        bounds = replace(scope, allow=ALL_TOOLS.allow, deny=ALL_TOOLS.deny)
        beyond = [name for name, view in views.items() if not _admits(bounds, view)]
        return verify(
            parse_plan(plan),
            tools=views,
            nodes=self.nodes,
            allow=scope.allow,
            deny=scope.deny,
            beyond=beyond,
            model_available=self.with_models,
            approval_levels=self.levels,
            done=done,
            unusable=unusable,
        )

    def may_begin(self, plan: VerifiedPlan, *, begun: int) -> bool:
        """Whether all but the first ``begun`` subtasks of a plan may run before it is whole. They stand in order."""
        views, ids = self.tools.views(), [each.spec.id for each in plan.subtasks]
        return all(
            not each.needs_approval and may_begin(each.spec, tools=views, begun=ids[: each.ordinal])
            for each in plan.subtasks[begun:]
        )


def _scope(options: JsonObject) -> ToolScope:
    return ToolScope.of(options.get("tools"))


def _admits(scope: ToolScope, view: ToolView) -> bool:
    return scope.takes(view.name) and scope.admits(view.permission_level)
