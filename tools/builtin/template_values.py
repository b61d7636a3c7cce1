"""The Jinja sandbox of a template: what a template may name and call, and which of it has text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from types import BuiltinMethodType, FunctionType, GeneratorType, MethodType, MethodWrapperType
from typing import Any, Final

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.filters import FILTERS
from jinja2.runtime import BlockReference, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Cycler, Joiner, Namespace


class _Function:
    """A function, or a method of a value: to be called, not to be written.

    Its own text would be an address in our memory. Here, and not in `_with_text`, since filters, ``~``, formats and
    lists make text of what they hold by themselves.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function = function
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        raise TemplateRuntimeError(f"`{self._name}` is a function, which has no text: call it, as {self._name}(…)")


class _Cycler(Cycler):
    def __repr__(self) -> str:
        raise TemplateRuntimeError("a cycler has no text: write its `current` or `next()`")


class _Joiner(Joiner):
    def __repr__(self) -> str:
        raise TemplateRuntimeError("a joiner has no text: call it")


_CALLED: Final = "called:"
"""Stands before the name of what is called as a method; no name of a template begins so."""


class _Environment(ImmutableSandboxedEnvironment):
    """Where a member of the data comes before the method of the same name (``order.items``), unless it is called."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if attribute.startswith(_CALLED):
            return super().getattr(obj, attribute.removeprefix(_CALLED))
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return _not_bare(super().getattr(obj, attribute), attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return _not_bare(super().getitem(obj, argument), str(argument))


def _not_bare(value: Any, name: str) -> Any:
    bare = (BlockReference, BuiltinMethodType, FunctionType, MethodType, MethodWrapperType)
    return _Function(value, name) if isinstance(value, bare) else value


def _with_text(value: Any) -> Any:
    """What may be written. Other things would be written as addresses in our memory."""
    kind: Any = type(value)
    if isinstance(value, GeneratorType) or (kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__):
        raise TemplateRuntimeError(f"a {kind.__name__} has no text")
    return value


def _whole(piecemeal: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that gives a list, where Jinja's gives what goes over one: that has no text but its address."""

    @wraps(piecemeal)
    def whole(*args: Any, **kwargs: Any) -> Any:
        made = piecemeal(*args, **kwargs)
        return made if isinstance(made, str) else list(made)

    return whole


_FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    name: _whole(FILTERS[name])
    for name in (
        "batch", "items", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "unique",
    )
}  # fmt: skip


def environment() -> ImmutableSandboxedEnvironment:
    """A sandbox for one template."""
    made = _Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True, finalize=_with_text)
    made.globals.pop("lipsum", None)
    functions: dict[str, Callable[..., Any]] = {
        "range": safe_range, "cycler": _Cycler, "joiner": _Joiner, "namespace": Namespace,
    }  # fmt: skip
    made.globals |= {name: _Function(function, name) for name, function in functions.items()}
    made.filters |= _FILTERS
    return made


def compiled(source: str) -> Template:
    """A template, ready to be rendered. Raises what Jinja raises for one that is wrong."""
    sandbox = environment()
    tree = sandbox.parse(source)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            call.node.attr = _CALLED + call.node.attr
    return sandbox.from_string(tree)
