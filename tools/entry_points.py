"""Native tools of third parties: Python entry points of the group ``rayloom.tools``."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from rayloom.dag.errors import UserError
from rayloom.tools.tool import Tool, ToolSpec

GROUP: Final = "rayloom.tools"


def available() -> list[str]:
    """The names of the installed entry points, sorted."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(endpoint: str) -> Tool:
    """The tool behind an entry point: an instance, or a class or function that makes one without arguments.

    Raises UserError: ``ENDPOINT_UNKNOWN``, ``ENDPOINT_AMBIGUOUS``, or ``ENDPOINT_INVALID`` when it can't be imported
    or isn't a tool.
    """
    points = list(entry_points(group=GROUP, name=endpoint))
    if not points:
        known = ", ".join(available()) or "none is installed"
        raise UserError("ENDPOINT_UNKNOWN", f"there is no entry point {endpoint!r} in the group {GROUP} ({known})")
    if len({point.value for point in points}) > 1:
        values = ", ".join(sorted(point.value for point in points))
        raise UserError("ENDPOINT_AMBIGUOUS", f"several packages give the entry point {endpoint!r}: {values}")
    try:
        loaded = points[0].load()
        made = loaded() if isinstance(loaded, type) or not isinstance(loaded, Tool) else loaded
    except Exception as error:
        raise UserError("ENDPOINT_INVALID", f"{endpoint}: {type(error).__name__}: {error}") from error
    return _checked(endpoint, made)


def _checked(endpoint: str, made: object) -> Tool:
    if not isinstance(made, Tool) or not callable(made.run):
        raise UserError("ENDPOINT_INVALID", f"{endpoint} gives {type(made).__name__}, which has no spec and run")
    if not isinstance(made.spec, ToolSpec):
        raise UserError("ENDPOINT_INVALID", f"{endpoint}: its spec is not a ToolSpec")
    for schema in (made.spec.input_schema, made.spec.output_schema):
        try:
            if schema is not None:
                Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise UserError("ENDPOINT_INVALID", f"{endpoint}: a schema is invalid: {error.message}") from error
    return made
