"""Inputs of tools as models write them: references in other shapes, numbers as text, one value where a list is wanted.

Mended is what can mean one thing only, as the tool's schema has it. All else is left as it is, for verification.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from rayloom.dag.planning.names import same_sound
from rayloom.dag.references import LITERAL, REF, SECRET
from rayloom.dag.values import Json, JsonObject

_DOUBLE: Final = re.compile(r"\{\{([^{}]+)\}\}")
_INSIDE: Final = re.compile(r"(?<!\$)\$\{([^{}]+)\}")
_WHOLE: Final = re.compile(r"\$\{([^{}]+)\}")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_OUTPUT: Final = ".output"


class InputMender:
    """Mends the inputs of one plan. ``ids``: what the model called its subtasks, and what they are called here.

    ``results``: for those what follows their output where their result alone is meant.
    """

    def __init__(self, ids: Mapping[str, str], results: Mapping[str, str]) -> None:
        self._ids, self._results = ids, results
        self.notes: list[str] = []

    def mend(self, given: JsonObject, schema: Mapping[str, Any]) -> JsonObject:
        """The input with its references and plain slips mended; adds to ``notes``."""
        properties = schema.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        mended: JsonObject = {}
        for name, value in given.items():
            known = name if name in properties else same_sound(name, properties)
            if known is not None and known != name and known not in given:
                self.notes.append(f"`{name}` is called `{known}`")
                name = known
            mended[name] = self._as(self._value(value), properties.get(name))
        return mended

    def _value(self, value: Json) -> Json:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict) or LITERAL in value or SECRET in value:
            return value
        if REF in value:
            target = value[REF]
            return {REF: self._target(target)} if isinstance(target, str) and len(value) == 1 else value
        return {key: self._value(member) for key, member in value.items()}

    def _target(self, written: str) -> str:
        """What a reference refers to: ``fetch``, ``#/fetch/output`` and ``${fetch.output}`` all mean one thing."""
        plain = written.strip().lstrip("#/$@{ ").rstrip("} ")
        if plain.split("/")[0] in self._ids and "/" in plain:
            plain = plain.replace("/", ".")
        return self._renamed(plain, bare=True) or written

    def _renamed(self, path: str, *, bare: bool) -> str | None:
        """``path`` with the id as it is called here; None where it begins with no id. ``bare``: an id alone will do."""
        for raw in sorted(self._ids, key=len, reverse=True):
            rest = path.removeprefix(raw)
            if not raw or rest == path:
                continue
            if rest == _OUTPUT or (rest == "" and bare):
                return self._ids[raw] + _OUTPUT + self._results.get(self._ids[raw], "")
            if rest.startswith(_OUTPUT):
                return self._ids[raw] + rest
            if rest.startswith((".", "[")) and bare:
                return self._ids[raw] + _OUTPUT + rest
        return None

    def _text(self, text: str) -> str:
        def double(match: re.Match[str]) -> str:
            path = self._renamed(match[1].strip().removeprefix("$"), bare=False)
            return match[0] if path is None else "${" + path + "}"

        def inside(match: re.Match[str]) -> str:
            path = self._renamed(match[1], bare=False)
            return match[0] if path is None else "${" + path + "}"

        return _INSIDE.sub(inside, _DOUBLE.sub(double, text))

    def _as(self, value: Json, schema: Any) -> Json:
        """``value`` as its schema wants it, where it says one thing in another type."""
        types = _types_of(schema)
        if not types:
            return value
        if isinstance(value, str) and "string" not in types:
            return self._from_text(value, types)
        if "string" in types and types <= {"string", "null"} and _is_number(value):
            self.notes.append(f"the number {value} is text here")
            return str(value)
        if types == {"array"} and not isinstance(value, (list, type(None))):
            within = _types_of(schema.get("items"))
            is_item = (isinstance(value, str) and "string" in within) or (
                isinstance(value, dict) and "object" in within
            )
            return [value] if is_item and not _is_reference(value) else value
        return value

    def _from_text(self, text: str, types: Collection[str]) -> Json:
        whole = _WHOLE.fullmatch(text)
        if whole is not None and self._renamed(whole[1], bare=False) is not None:
            self.notes.append(f"`{text}` is a reference by itself, so that its type is kept")
            return {REF: whole[1]}
        found: Json = text
        if text.strip().lower() in ("true", "false") and "boolean" in types:
            found = text.strip().lower() == "true"
        elif _NUMBER.fullmatch(text.strip()) and len(text) < 16:
            number = float(text)
            if "integer" in types and number.is_integer():
                found = int(number)
            elif "number" in types:
                found = number
        elif "array" in types:
            return [text]
        if found is not text:
            self.notes.append(f"the text `{text}` is a value here")
        return found


def _is_number(value: Json) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_reference(value: Json) -> bool:
    return isinstance(value, dict) and REF in value


def _types_of(schema: Any) -> set[str]:
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if isinstance(kind, str):
        return {kind}
    return {each for each in kind if isinstance(each, str)} if isinstance(kind, list) else set()
