"""The records, and the answers that were written down for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.tool_view import ToolView

FOLDER: Final = Path(__file__).parent
GOOD: Final = "good"
"""The kind of the answers that nobody broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldNode:
    """A subtask that a plan should have. ``tool``: its name, or ``think`` or ``code``.

    ``words``: what is to be found in it, in lower case, to be taken for this one.
    """

    id: str
    tool: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A prompt, the tools at hand, and the graph that should come of it: edges from what is needed to what needs it."""

    id: str
    domain: str
    language: str
    prompt: str
    tools: dict[str, ToolView]
    nodes: tuple[GoldNode, ...]
    edges: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One answer of a model. ``wants``: what it must have been told of before; else it says again what it said."""

    text: str
    wants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a model answered to one record, turn by turn. ``kind``: ``good``, or how it is broken."""

    record: str
    kind: str
    turns: tuple[Turn, ...]

    @property
    def is_broken(self) -> bool:
        """Whether somebody broke it."""
        return self.kind != GOOD


@cache
def records() -> dict[str, Record]:
    """All records, by id."""
    tools = _tools()
    return {raw["id"]: _record(raw, tools) for raw in _lines("records.jsonl")}


@cache
def answers() -> tuple[Recorded, ...]:
    """All recorded answers."""
    return tuple(
        Recorded(record=raw["record"], kind=raw["kind"], turns=tuple(map(_turn, raw["turns"])))
        for raw in _lines("answers.jsonl")
    )


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def _tools() -> dict[str, ToolView]:
    raw: dict[str, Any] = json.loads((FOLDER / "tools.json").read_text(encoding="utf-8"))
    return {
        name: ToolView(
            name=name,
            schema=tool["schema"],
            resources={"CPU": 0.25},
            description=tool["description"],
            output_schema=tool.get("output_schema"),
        )
        for name, tool in raw.items()
    }


def _record(raw: dict[str, Any], tools: dict[str, ToolView]) -> Record:
    nodes = [GoldNode(id=node["id"], tool=node["tool"], words=tuple(node["words"])) for node in raw["gold"]["nodes"]]
    assert CODE_TOOL in raw["tools"] or all(node.tool != "code" for node in nodes)
    return Record(
        id=raw["id"],
        domain=raw["domain"],
        language=raw["language"],
        prompt=raw["prompt"],
        tools={name: tools[name] for name in raw["tools"]},
        nodes=tuple(nodes),
        edges=frozenset((edge[0], edge[1]) for edge in raw["gold"]["edges"]),
    )


def _turn(raw: dict[str, Any]) -> Turn:
    text: str = raw["text"]
    if "fill" in raw:
        piece, times = raw["fill"]
        text = text.replace("@@", piece * times)
    return Turn(text=text, wants=tuple(raw.get("wants", ())))
