"""The front matter of a SKILL.md, read and judged as the Agent Skills specification says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

from rayloom.dag.errors import UserError
from rayloom.dag.nearest import did_you_mean

NAME_MAX_CHARS: Final = 64
DESCRIPTION_MAX_CHARS: Final = 1024
COMPATIBILITY_MAX_CHARS: Final = 500
MAX_CHARS: Final = 64 * 1024
"""No front matter is longer: it is read by whoever looks for a skill."""
MAX_FAULTS: Final = 100
_MAX_DEPTH: Final = 8

_FIELDS: Final = ("name", "description", "license", "compatibility", "metadata", "allowed-tools")
_NAME: Final = re.compile(r"[a-z0-9-]*")
_FENCE: Final = "---"
# One tool each, with what may follow in brackets, which may hold spaces: `Bash(git add:*) Read`.
_ALLOWED_TOOL: Final = re.compile(r"(?:\([^()]*\)|[^\s()]|[()])+")


class InvalidSkill(UserError):
    """Something that is not a Skill, with every fault found; each says where in the Skill it is."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("SKILL_INVALID", "; ".join(faults[:5]) or "not a Skill")
        self.faults = faults

    def __reduce__(self) -> tuple[type[InvalidSkill], tuple[tuple[str, ...]]]:
        return (type(self), (self.faults,))


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontMatter:
    """What a Skill says of itself. What it leaves out is None or empty."""

    name: str
    description: str
    license: str | None = None
    compatibility: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] = ()


def read(text: str) -> tuple[FrontMatter, str]:
    """The front matter of a SKILL.md, and the instructions below it. Raises InvalidSkill with every fault."""
    head, body = _parted(text)
    values = _mapping(head)
    faults = tuple(_faults(values))
    if faults:
        raise InvalidSkill(faults[:MAX_FAULTS])
    return FrontMatter(
        name=values["name"],
        description=values["description"].strip(),
        license=values.get("license") or None,
        compatibility=values.get("compatibility"),
        metadata=values.get("metadata", {}),
        allowed_tools=tuple(_ALLOWED_TOOL.findall(values.get("allowed-tools", ""))),
    ), body.strip()


def name_faults(name: str) -> list[str]:
    """What is wrong with the name of a Skill."""
    found = []
    if not 1 <= len(name) <= NAME_MAX_CHARS:
        found.append(f"name: must have 1 to {NAME_MAX_CHARS} characters, not {len(name)}")
    if not _NAME.fullmatch(name):
        found.append("name: must consist of lowercase letters (a-z), digits and hyphens")
    if name.startswith("-") or name.endswith("-"):
        found.append("name: must not start or end with a hyphen")
    if "--" in name:
        found.append("name: must not contain consecutive hyphens")
    return found


def _parted(text: str) -> tuple[str, str]:
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != _FENCE:
        raise InvalidSkill((f"must start with front matter: a line {_FENCE}, YAML, and a line {_FENCE}",))
    end = next((at for at, line in enumerate(lines[1:], 1) if line.rstrip() == _FENCE), None)
    if end is None:
        raise InvalidSkill((f"the front matter is not closed by a line {_FENCE}",))
    head = "\n".join(lines[1:end])
    if len(head) > MAX_CHARS:
        raise InvalidSkill((f"the front matter has more than {MAX_CHARS:,} characters",))
    return head, "\n".join(lines[end + 1 :])


def _mapping(head: str) -> dict[str, Any]:
    """The YAML as text, lists and mappings: ``version: 1.0`` is the text that its author wrote."""
    try:
        _refuse_tricks(head)
        root = yaml.compose(head, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise InvalidSkill(("the front matter must be a YAML mapping",))
        return {str(key): value for key, value in _plain(root).items()}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 2}"
        said = getattr(error, "problem", None) or str(error)
        raise InvalidSkill((f"the front matter is not valid YAML{where}: {said}",)) from None


def _refuse_tricks(head: str) -> None:
    """Raise InvalidSkill for what makes much out of little, or something else than data."""
    depth = 0
    for event in yaml.parse(head, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise InvalidSkill(("anchors and aliases are not taken in a front matter",))
        if getattr(event, "tag", None) is not None:
            raise InvalidSkill(("tags are not taken in a front matter",))
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise InvalidSkill((f"the front matter is nested deeper than {_MAX_DEPTH}",))


def _plain(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = _plain(key)
        if not isinstance(name, str):
            raise InvalidSkill(("the keys of the front matter must be text",))
        if name in found:
            raise InvalidSkill((f"{name}: is given twice",))
        found[name] = _plain(value)
    return found


def _faults(values: dict[str, Any]) -> Iterator[str]:
    for name in values:
        if name not in _FIELDS:
            yield f"{name[:80]}: is no field of the specification{did_you_mean(name, _FIELDS)}; put it under metadata"
    for name in ("name", "description"):
        if name not in values:
            yield f"{name}: is missing"
    for name in _FIELDS:
        if name in values and name != "metadata" and not isinstance(values[name], str):
            yield f"{name}: must be text"
    yield from _text_faults({name: value for name, value in values.items() if isinstance(value, str)})
    metadata = values.get("metadata", {})
    if not isinstance(metadata, dict):
        yield "metadata: must be a mapping of text to text"
    else:
        yield from (
            f"metadata.{key[:80]}: must be text" for key, value in metadata.items() if not isinstance(value, str)
        )


def _text_faults(texts: Mapping[str, str]) -> Iterator[str]:
    if "name" in texts:
        yield from name_faults(texts["name"])
    for name, most in (("description", DESCRIPTION_MAX_CHARS), ("compatibility", COMPATIBILITY_MAX_CHARS)):
        if name in texts and not 1 <= len(texts[name].strip()) <= most:
            yield f"{name}: must have 1 to {most} characters, not {len(texts[name].strip())}"
    for name, text in texts.items():
        if "\0" in text or any(0xD800 <= ord(char) <= 0xDFFF for char in text):
            yield f"{name}: must not contain NUL or lone surrogates"
