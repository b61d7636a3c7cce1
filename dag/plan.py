"""The plan as a client writes it: models of its JSON, and the reading of it with a pointer for every fault.

Only the shape is judged here, what one subtask says by itself; ``verify`` judges what the parts say about each other,
about tools and about the cluster.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import ErrorDetails, core_schema

from rayloom.dag.amount import MAX_COST_USD
from rayloom.dag.errors import Fault, InvalidPlan
from rayloom.dag.json_text import faults_of, pointer_to
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.values import Json, JsonObject

MAX_SUBTASKS: Final = 100_000
MAX_EDGES: Final = 500_000
"""Dependencies of a plan in all, explicit and implied, each pair once: five for each of that many subtasks."""
MAX_SHAPES: Final = 64
"""Different resource requests in one plan. Ray looks for workers anew for each, and the scheduler keeps room for it."""
MAX_FAULTS: Final = 100
"""More faults than this are not listed: nobody mends a plan by reading them all."""
MAX_RETRIES: Final = 100
MAX_TIMEOUT_S: Final = 86_400
DEFAULT_TIMEOUT_S: Final = 300
RESERVED: Final = frozenset({"CPU", "GPU", "memory", "object_store_memory"})
"""Ray's names of the resources that a request gives in fields of their own."""

# What is JSON was settled by json_text before; copying it again would cost more than all other checks together.
_JsonObjectField = Annotated[JsonObject, GetPydanticSchema(lambda _source, _handler: core_schema.dict_schema())]
_JsonField = Annotated[Json, GetPydanticSchema(lambda _source, _handler: core_schema.any_schema())]

SubtaskId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
_ToolName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Quantity = Annotated[float, Field(ge=0, le=1e12, strict=True, allow_inf_nan=False)]
_Flag = Annotated[bool, Field(strict=True)]
_ResourceName = Annotated[str, StringConstraints(pattern=r"^[^\s,=:]{1,128}$")]
# Ray reads "!x" and "in(a,b)" in a label selector as operators; plain values only, so that both say the same.
_LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_./\-]{0,253}[A-Za-z0-9])?$")]
_LabelValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.\-]{0,61}[A-Za-z0-9])?$")]


class TaskType(StrEnum):
    """What kind of work a subtask is."""

    CODE_GEN = "CODE_GEN"
    DATA_RETRIEVAL = "DATA_RETRIEVAL"
    API_CALL = "API_CALL"
    TOOL = "TOOL"
    REASONING = "REASONING"


def _whole_above_one(amount: float) -> float:
    if amount > 1 and amount != int(amount):
        raise ValueError("more than one GPU can only be asked for in whole numbers")
    return amount


def _not_reserved(custom: dict[str, float]) -> dict[str, float]:
    taken = sorted(RESERVED & custom.keys())
    if taken:
        raise ValueError(f"can't name {', '.join(taken)}: use num_cpus, num_gpus and memory_mb for those")
    return custom


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Record):
    """What a subtask asks of the node that runs it. ``None`` and zero mean: what its tool asks by default."""

    num_cpus: _Quantity | None = None
    num_gpus: Annotated[_Quantity, AfterValidator(_whole_above_one)] = 0
    memory_mb: _Quantity = 0
    """In MiB: 1,048,576 bytes."""
    custom: Annotated[dict[_ResourceName, _Quantity], AfterValidator(_not_reserved)] = Field(default_factory=dict)
    """Amounts of the cluster's own resources, by name."""
    labels: dict[_LabelName, _LabelValue] = Field(default_factory=dict)
    """Labels that the node must have, with exactly these values."""
    lane: Literal["auto", "own", "shared"] = "auto"


NO_WISHES: Final = Resources()
"""The resources of a subtask that names none: one object, so that a hundred thousand such subtasks share it."""


class Fallback(_Record):
    """The tool to call in place of one that failed."""

    tool: _ToolName
    input: _JsonObjectField = Field(default_factory=dict)


def _if_asked(value: object, info: ValidationInfo) -> object:
    """What another policy has no use for is left out: it has no effect whatever."""
    return value if info.data.get("on_failure") == info.field_name else None


class Subtask(_Record):
    """One node of the plan."""

    id: SubtaskId
    name: _Name = Field(default_factory=lambda known: str(known["id"]))
    """For people; the id where none is given."""
    type: TaskType
    depends_on: tuple[str, ...] = ()
    tool: _ToolName | None = None
    input: _JsonObjectField = Field(default_factory=dict)
    """What the tool is given; may hold references to the outputs of other subtasks."""
    instruction: _Text | None = None
    """What a model is told, for REASONING and CODE_GEN."""
    resources: Resources = Field(default_factory=lambda: NO_WISHES)
    timeout_s: Annotated[float, Field(gt=0, le=MAX_TIMEOUT_S, strict=True, allow_inf_nan=False)] = DEFAULT_TIMEOUT_S
    """Of one attempt, in seconds."""
    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES, strict=True)] = 3
    cacheable: _Flag = False
    skills: tuple[_ToolName, ...] = ()
    on_failure: Literal["block", "continue", "default", "fallback"] = "block"
    default: Annotated[_JsonField, AfterValidator(_if_asked)] = None
    fallback: Annotated[Fallback | None, AfterValidator(_if_asked)] = None
    """This and ``default`` are None under any policy but the one that needs them, whatever was written."""
    require_approval: _Flag = False


class Plan(_Record):
    """A DAG of subtasks, as it was written: not verified yet."""

    subtasks: tuple[Subtask, ...]


class Budget(_Record):
    """What a task may spend before the rest of it is stopped. ``None`` means no limit."""

    max_tokens: Annotated[int, Field(gt=0, strict=True, le=2**63 - 1)] | None = None
    max_cost_usd: Annotated[float, Field(gt=0, le=MAX_COST_USD, strict=True, allow_inf_nan=False)] | None = None
    deadline_s: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] | None = None
    """Seconds from the task's creation."""


def parse_plan(raw: object, *, pointer: str = "/plan") -> Plan:
    """The plan that ``raw`` (decoded JSON) describes.

    Raises InvalidPlan with every fault found, at most 100; their pointers start with ``pointer``.
    """
    if not isinstance(raw, dict):
        raise InvalidPlan([Fault(pointer, "a plan is an object with a list `subtasks`")])
    subtasks = raw.get("subtasks")
    if isinstance(subtasks, list) and not 1 <= len(subtasks) <= MAX_SUBTASKS:
        message = f"a plan has 1 to {MAX_SUBTASKS:,} subtasks, this one has {len(subtasks):,}"
        raise InvalidPlan([Fault(f"{pointer}/subtasks", message)])
    faults = faults_of(raw, pointer=pointer, limit=MAX_FAULTS)
    if faults:
        raise InvalidPlan(faults)
    try:
        return Plan.model_validate(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # Without a good id there is no name to take from it: that is told once, of the id.
        own = [detail for detail in details if detail["type"] != "default_factory_not_called"]
        raise InvalidPlan([fault_of(detail, pointer) for detail in own[:MAX_FAULTS]]) from None


def subtasks_of(plan: JsonObject) -> list[JsonObject]:
    """The subtasks of a plan as they are written."""
    subtasks = plan.get("subtasks")
    return [each for each in subtasks if isinstance(each, dict)] if isinstance(subtasks, list) else []


_FIELDS: Final = {model.__name__: tuple(model.model_fields) for model in (Plan, Subtask, Resources, Fallback)}
_MESSAGES: Final = {
    "tuple_type": "must be a list",
    "model_type": "must be an object",
    "dict_type": "must be an object",
}
_SUBTASK_ID: Final = re.compile(r"/subtasks/\d+/id$")


def fault_of(detail: ErrorDetails, pointer: str) -> Fault:
    """A fault that pydantic found, with its place below ``pointer``."""
    # pydantic marks a fault of a key, as opposed to its value, by one more step; the pointer is the member's.
    path = [step for step in detail["loc"] if step != "[key]"]
    where = pointer_to(pointer, path)
    if detail["type"] == "extra_forbidden":
        owner = {1: "Plan", 3: "Subtask"}.get(len(path)) or str(path[-2]).title()
        return Fault(where, "is not a field here" + did_you_mean(str(path[-1]), _FIELDS.get(owner, ())))
    if detail["type"] == "missing":
        return Fault(where, "is missing")
    if detail["type"] == "string_pattern_mismatch":
        if _SUBTASK_ID.search(where):
            return Fault(where, "an id is 1 to 128 of the characters A-Z a-z 0-9 _ . -")
        return Fault(where, "has characters that are not allowed here, or is too long or empty")
    message = _MESSAGES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    return Fault(where, message[:1].lower() + message[1:])
