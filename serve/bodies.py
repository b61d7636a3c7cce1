"""Request bodies: read within limits, then held against a model. Every fault gets a pointer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from rayloom.dag.errors import Fault
from rayloom.dag.json_text import pointer_to
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.plan import fault_of
from rayloom.dag.values import JsonObject
from rayloom.serve.json_body import parse
from rayloom.serve.problems import Problem, invalid

THREAD_BYTES: Final = 64 * 1024
"""A larger body is judged in a thread, so that other requests go on."""
PLAN_THREAD_BYTES: Final = 4 * 1024
"""The same for a plan: reading the JMESPath of its references takes up to 10 µs a byte."""
JSON_TYPES: Final = ("application/json", "text/json")

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


class Body(BaseModel):
    """A request body: fields that it does not name are refused, values are taken as they are written."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Nothing(Body):
    pass


async def read_object(request: Request) -> JsonObject:
    """The JSON object of a request.

    Raises Problem: 400 for what is not JSON, 413 for what is too large, 415 for another media type, 422 with pointers
    for JSON that can't be stored.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind not in JSON_TYPES and not kind.endswith("+json"):
        raise Problem(415, f"the body must be application/json, not {kind[:100]}", code="UNSUPPORTED_MEDIA_TYPE")
    raw = await request.body()
    return await off_loop(len(raw), lambda: parse(raw))


async def read_body(request: Request, model: type[M]) -> M:
    """The body of a request as ``model``. Raises Problem like ``read_object``, and 422 for what ``model`` refuses."""
    return validated(await read_object(request), model)


async def read_optional(request: Request, model: type[M]) -> M:
    """The same where no body at all says as much as an empty object."""
    return await read_body(request, model) if (await request.body()).strip() else validated({}, model)


async def expect_no_body(request: Request) -> None:
    """For routes that take nothing: no body at all or an empty object. Raises Problem as ``read_body`` does."""
    await read_optional(request, _Nothing)


async def off_loop(size: int, work: Callable[[], T], *, at_most: int = THREAD_BYTES) -> T:
    """``work``, in a thread when ``size`` (bytes that it has to look at) says that it takes long."""
    return work() if size <= at_most else await asyncio.to_thread(work)


def validated(document: JsonObject, model: type[M]) -> M:
    """``document`` as ``model``. Raises Problem (422)."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[:100]
        raise invalid([_fault(detail, model) for detail in details]) from None


def _fault(detail: Any, model: type[BaseModel]) -> Fault:
    place: tuple[int | str, ...] = detail["loc"]
    if detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        # pydantic tells it of the union as a whole.
        known = detail["ctx"].get("expected_tags")
        tag = (*place, detail["ctx"]["discriminator"].strip("'"))
        return Fault(pointer_to("", tag), "is missing" if known is None else f"must be one of {known}")
    place = _untagged(place, model)
    if detail["type"] == "extra_forbidden" and len(place) == 1:
        return Fault(pointer_to("", place), "is not a field here" + did_you_mean(str(place[0]), model.model_fields))
    return fault_of(detail | {"loc": place}, "")


def _untagged(place: tuple[int | str, ...], model: type[BaseModel]) -> tuple[int | str, ...]:
    """A place as it is in the document: pydantic names the tag of a union as a step of its own."""
    field = model.model_fields.get(str(place[0])) if len(place) > 1 else None
    return (place[0], *place[2:]) if field is not None and _is_tagged(field.annotation) else place


def _is_tagged(kind: Any) -> bool:
    """Whether a field is a union that its members' tags tell apart, or may be one."""
    if any(isinstance(each, FieldInfo) and each.discriminator for each in getattr(kind, "__metadata__", ())):
        return True
    return get_origin(kind) in (Union, UnionType) and any(map(_is_tagged, get_args(kind)))


def schema_of(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """Describe for OpenAPI a body that a route reads by hand. ``required``: False where the route takes none, too."""
    content = {"application/json": {"schema": model.model_json_schema(ref_template="#/components/schemas/{model}")}}
    definitions = content["application/json"]["schema"].pop("$defs", None)
    if definitions:
        content["application/json"]["schema"] = _inlined(content["application/json"]["schema"], definitions)
    return {"requestBody": {"required": required, "content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        return {name: _inlined(item, definitions) for name, item in node.items()}
    return node
