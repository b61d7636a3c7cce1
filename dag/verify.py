"""Is this plan one that can run? Every fault of a plan, before anything of it is stored.

``plan`` settled what each subtask says by itself. Here it is held against the other subtasks (ids, dependencies,
references, cycles), against the tools (known, active, allowed, input as their schema wants it) and against the nodes
that the cluster could ever have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from rayloom.dag import graph
from rayloom.dag.errors import Fault, InvalidPlan, shown
from rayloom.dag.kinds import kind_faults, needs_model, permitted_by, tool_of
from rayloom.dag.nearest import Hints
from rayloom.dag.plan import MAX_EDGES, MAX_FAULTS, MAX_SHAPES, NO_WISHES, Fallback, Plan, Subtask
from rayloom.dag.references import scan
from rayloom.dag.resources import NodeShape, ResourceShape, effective, fits, largest
from rayloom.dag.tool_judge import ToolJudge, globs_of
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan, VerifiedSubtask

_SHOWN_MEMBERS: Final = 30


def verify(
    plan: Plan,
    *,
    tools: Mapping[str, ToolView],
    nodes: Sequence[NodeShape],
    allow: Sequence[str] = ("*",),
    deny: Sequence[str] = (),
    model_available: bool = False,
    approval_levels: Collection[str] = (),
    pointer: str = "/plan",
    done: Collection[str] = (),
    unusable: Collection[str] = (),
    beyond: Collection[str] = (),
) -> VerifiedPlan:
    """The plan with its dependencies, ranks and resource shapes settled.

    ``tools`` are all that exist, by name; ``allow`` and ``deny`` are globs of names, deny wins. ``nodes`` are all node
    types that the cluster could ever have; where there are none, resources are not judged. ``approval_levels`` are the
    permission levels of tools that want approval. ``done`` are the ids whose outputs are there already: neither their
    tools nor their inputs or resources are judged, and they want no approval. ``unusable`` are those of them that give
    nothing: no other may depend on them. ``beyond`` are tools that whoever asks may not use, whatever the task's own
    rules say. Raises InvalidPlan with every fault found, at most 100.
    """
    return _Verification(
        plan, tools, nodes, allow, deny, model_available, approval_levels, pointer, done, unusable, beyond
    ).run()


class _Verification:
    """One run over one plan: its faults so far, and what is worth remembering from one subtask to the next."""

    def __init__(
        self,
        plan: Plan,
        tools: Mapping[str, ToolView],
        nodes: Sequence[NodeShape],
        allow: Sequence[str],
        deny: Sequence[str],
        model_available: bool,
        approval_levels: Collection[str],
        pointer: str,
        done: Collection[str],
        unusable: Collection[str],
        beyond: Collection[str],
    ) -> None:
        self.plan = plan
        self.done, self.unusable = done, unusable
        self.nodes = nodes
        self.model_available = model_available
        self.approval_levels = approval_levels
        self.pointer = pointer
        self.faults: list[Fault] = []
        self.hints = Hints()
        self.judge = ToolJudge(tools, allow=allow, deny=deny, beyond=beyond, levels=approval_levels, hints=self.hints)
        self.references: dict[int, tuple[str, ...]] = {}
        self.fallback_references: dict[int, tuple[str, ...]] = {}
        self.ordinals: dict[str, int] = {}
        self.offered = frozenset(name for node in nodes for name, amount in node.total.items() if amount > 0)
        self.default_shapes: dict[tuple[str, tuple[str, ...]], ResourceShape] = {}
        self.shapes: dict[ResourceShape, ResourceShape] = {}
        self.shape_faults: dict[ResourceShape, str | None] = {}
        self.edges = 0

    def run(self) -> VerifiedPlan:
        self._number_ids()
        dependencies: list[tuple[int, ...]] = []
        for ordinal, subtask in enumerate(self.plan.subtasks):
            where = f"{self.pointer}/subtasks/{ordinal}"
            dependencies.append(self._dependencies(ordinal, subtask, where))
            self._count_edges(len(dependencies[-1]), subtask, where)
            if subtask.id not in self.done:
                self._check_subtask(subtask, where)
        layers = self._levels(dependencies)
        if self.faults:
            raise InvalidPlan(self.faults)
        return self._verified(dependencies, layers)

    def _fault(self, pointer: str, message: str) -> None:
        self._add([Fault(pointer, message)])

    def _add(self, faults: Sequence[Fault]) -> None:
        """Raises InvalidPlan once there are as many as are listed: to look for more would be work for nothing."""
        self.faults.extend(faults)
        if len(self.faults) >= MAX_FAULTS:
            raise InvalidPlan(self.faults[:MAX_FAULTS])

    def _number_ids(self) -> None:
        for ordinal, subtask in enumerate(self.plan.subtasks):
            first = self.ordinals.setdefault(subtask.id, ordinal)
            if first != ordinal:
                where = f"{self.pointer}/subtasks/{ordinal}/id"
                self._fault(where, f"`{subtask.id}` is the id of {self.pointer}/subtasks/{first} already")

    def _dependencies(self, ordinal: int, subtask: Subtask, where: str) -> tuple[int, ...]:
        """The ordinals that one subtask waits for; those that exist, where others are faults."""
        found: set[int] = set()
        for place, name in enumerate(subtask.depends_on):
            needed = self.ordinals.get(name)
            if needed is None:
                hint = self.hints(name, self.ordinals)
                self._fault(f"{where}/depends_on/{place}", f"there is no subtask `{shown(name)}`{hint}")
            elif name == subtask.id:
                self._fault(f"{where}/depends_on/{place}", f"`{name}` can't depend on itself")
            else:
                found.add(needed)
        names = self._referred(subtask, subtask.input, f"{where}/input")
        if names:
            self.references[ordinal] = names
            found.update(self.ordinals[name] for name in names)
        if subtask.fallback is not None:
            names = self._referred(subtask, subtask.fallback.input, f"{where}/fallback/input")
            self.fallback_references[ordinal] = names
            found.update(self.ordinals[name] for name in names)
        if self.unusable and subtask.id not in self.done:
            useless = [id_ for id_ in (self.plan.subtasks[each].id for each in sorted(found)) if id_ in self.unusable]
            self._add([Fault(where, f"`{id_}` gave nothing, so nothing can depend on it") for id_ in useless])
        # A dependency on itself was told already.
        found.discard(ordinal)
        return tuple(sorted(found))

    def _referred(self, subtask: Subtask, given: JsonObject, where: str) -> tuple[str, ...]:
        """The ids that an input refers to, sorted; what is wrong with its references and secrets is told."""
        if not given:
            return ()
        left = MAX_FAULTS - len(self.faults)
        scanned = scan(given, self.ordinals, pointer=where, limit=left, hints=self.hints)
        self._add(scanned.faults)
        for pointer, name in scanned.secrets:
            self._fault(pointer, f"there is no secret `{shown(name)}`: this version keeps no secrets")
        for reference in scanned.references:
            if reference.subtask == subtask.id:
                self._fault(reference.pointer, f"`{subtask.id}` can't use its own output")
        return tuple(sorted({reference.subtask for reference in scanned.references}))

    def _count_edges(self, count: int, subtask: Subtask, where: str) -> None:
        """Raises InvalidPlan at once where there are too many: the work that they make is what must not be done."""
        self.edges += count
        if self.edges > MAX_EDGES:
            field = "depends_on" if subtask.depends_on else "input"
            self._fault(f"{where}/{field}", f"a plan has at most {MAX_EDGES:,} dependencies, and here it has more")
            raise InvalidPlan(self.faults)

    def _check_subtask(self, subtask: Subtask, where: str) -> None:
        for field, message in kind_faults(subtask, model_available=self.model_available):
            self._fault(f"{where}/{field}", message)
        if subtask.fallback is not None:
            self._check_fallback(subtask.fallback, f"{where}/fallback")
        name = permitted_by(subtask)
        if name:
            fault = self.judge.fault(name)
            if fault is not None:
                self._fault(f"{where}/tool", fault)
                return
        if needs_model(subtask):
            self._add(self.judge.thinking_check(subtask).faults(subtask.input, pointer=f"{where}/input"))
            for field, message in self.judge.thinking_faults(subtask):
                self._fault(f"{where}/{field}", message)
        elif name:
            self._add(self.judge.input_check(name).faults(subtask.input, pointer=f"{where}/input"))
        known = len(self.shapes)
        fault = self._shape_fault(self._shape(subtask))
        if known == MAX_SHAPES < len(self.shapes):
            message = f"a plan asks for at most {MAX_SHAPES} different sets of resources, and this is one more"
            self._fault(f"{where}/resources", message)
        elif fault is not None:
            self._fault(f"{where}/resources", fault)

    def _check_fallback(self, fallback: Fallback, where: str) -> None:
        fault = self.judge.fault(fallback.tool)
        if fault is not None:
            self._fault(f"{where}/tool", fault)
        else:
            self._add(self.judge.input_check(fallback.tool).faults(fallback.input, pointer=f"{where}/input"))

    def _needs_approval(self, subtask: Subtask) -> bool:
        if subtask.require_approval or not self.approval_levels:
            return subtask.require_approval
        # The fallback comes without another question, so what it may do is asked for at once.
        names = (permitted_by(subtask), subtask.fallback.tool if subtask.fallback is not None else "")
        return any(self.judge.wants_approval(name) for name in names if name)

    def _shape(self, subtask: Subtask) -> ResourceShape:
        """The resource shape of a subtask; the same object for all that ask for the same."""
        asking = (permitted_by(subtask), globs_of(subtask))
        wishes = subtask.resources
        if wishes is NO_WISHES and asking in self.default_shapes:
            return self.default_shapes[asking]
        shape = effective(wishes, self.judge.resources(*asking), self.offered)
        shape = self.shapes.setdefault(shape, shape)
        if wishes is NO_WISHES:
            self.default_shapes[asking] = shape
        return shape

    def _shape_fault(self, shape: ResourceShape) -> str | None:
        if shape not in self.shape_faults:
            fault = None
            if self.nodes and not any(fits(shape, node) for node in self.nodes):
                fault = f"no node could ever give {shape}: the largest offers {largest(shape, self.nodes)}"
            self.shape_faults[shape] = fault
        return self.shape_faults[shape]

    def _levels(self, dependencies: Sequence[Sequence[int]]) -> list[list[int]]:
        try:
            return graph.levels(dependencies)
        except ValueError:
            subtasks = self.plan.subtasks
            for cycle in graph.find_cycles(dependencies):
                ids = [subtasks[member].id for member in cycle]
                explicit = subtasks[cycle[0]].depends_on
                edge = "input" if ids[-1] in self.references.get(cycle[0], ()) else "fallback/input"
                if ids[-1] in explicit:
                    edge = f"depends_on/{explicit.index(ids[-1])}"
                self._fault(f"{self.pointer}/subtasks/{cycle[0]}/{edge}", f"closes a cycle: {_cycle_text(ids)}")
            return []

    def _verified(self, dependencies: Sequence[tuple[int, ...]], layers: list[list[int]]) -> VerifiedPlan:
        waiting = graph.dependents(dependencies)
        rank = graph.ranks(layers, waiting)
        specs = self.plan.subtasks
        return VerifiedPlan(
            plan=self.plan,
            subtasks=tuple(
                VerifiedSubtask(
                    spec=spec,
                    ordinal=ordinal,
                    tool=tool_of(spec),
                    dependencies=dependencies[ordinal],
                    dependents=waiting[ordinal],
                    references=self.references.get(ordinal, ()),
                    fallback_references=self.fallback_references.get(ordinal, ()),
                    needs_approval=spec.id not in self.done and self._needs_approval(spec),
                    rank=rank[ordinal],
                    shape=self._shape(spec),
                    # A tool may be made for the shared lane; until there is one, everything runs in its own.
                    lane="own",
                )
                for ordinal, spec in enumerate(specs)
            ),
            width=graph.width(layers),
            critical_path=tuple(specs[node].id for node in graph.critical_path(layers, waiting, rank)),
            sinks=tuple(spec.id for spec, dependents in zip(specs, waiting, strict=True) if not dependents),
        )


def _cycle_text(ids: Sequence[str]) -> str:
    """``a -> b -> a``: each waits for the one before it. The middle of a very long one is left out."""
    shown = list(ids)
    if len(ids) > _SHOWN_MEMBERS:
        half = _SHOWN_MEMBERS // 2
        shown = [*ids[:half], f"({len(ids) - 2 * half:,} more)", *ids[-half:]]
    return " -> ".join([*shown, ids[0]])
