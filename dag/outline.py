"""From a structured prompt to a plan without a model: what the author laid out is taken at its word.

- Numbered items run one after the other, bullets side by side; a list starts when what stands before it is done.
  Items under an item follow the same rule, and the item above is only their label unless it can itself be run.
- Words of order ("then", "最后"), of simultaneity ("meanwhile", "同时") and of joining ("combine", "根据…结果")
  overrule that. A step that comes after, comes after everything that is still open: too much order loses time, too
  little loses data. Joining bullets in a row, such as "Summarise A", "Summarise B", stay side by side.
- ``@tool {json}``, addresses and fenced code become calls; checked boxes (``[x]``) are done already and left out.
- What the author quotes (`quoted`) is text, whatever it says.
- What is none of these is text. Without a model nobody can act on it, so it is recorded: its subtask echoes the text
  with the results of the calls before it. Where there is a model, it does what the text says (``with_model``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from rayloom.dag.outline_blocks import Block, Code, Heading, Item, ItemList, Paragraph, read, text_of
from rayloom.dag.outline_calls import spans_of
from rayloom.dag.outline_cues import Relation, clauses, joining_word, language_of, relation_of, without_cue
from rayloom.dag.outline_steps import Steps
from rayloom.dag.output import clean_text
from rayloom.dag.plan import MAX_SUBTASKS, Plan, parse_plan
from rayloom.dag.quoted import disarmed
from rayloom.dag.tool_view import ToolView

_MAX_NOTES: Final = 200
_NO_VIEWS: Final[Mapping[str, ToolView]] = MappingProxyType({})
_LABEL_END: Final = re.compile(r"[:：]\s*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A plan made without a model, and what its author should know about it."""

    plan: Plan
    notes: tuple[str, ...]
    language: str
    """``en``, ``zh``, or ``und`` where it can't be told."""
    is_structured: bool
    """The prompt has lists, steps or calls that could be taken at their word."""


def split(
    prompt: str, tools: Collection[str], *, views: Mapping[str, ToolView] = _NO_VIEWS, with_model: bool = False
) -> Outline:
    """The plan that a prompt spells out; one subtask where it spells out nothing. Never raises.

    ``tools`` are the names that may be used; what text needs (``core.echo``) is taken for granted. With ``views`` of
    them, a mention whose input its tool would refuse is kept as text and noted, so that the plan passes verification.
    ``with_model``: text is not recorded but thought about, by a subtask of the type REASONING.
    """
    text = clean_text(prompt)
    tools = frozenset(tools)
    hidden = disarmed(text)
    outline = _Outliner(hidden.text, tools, views, with_model)
    outline.run(read(hidden.text))
    steps = outline.steps
    is_structured = 1 <= len(steps.subtasks) <= MAX_SUBTASKS
    if not is_structured:
        outline.notes.append("this prompt could not be split, so it is one subtask")
        steps = Steps(tools, views, outline.notes, with_model=with_model)
        steps.record(hidden.text)
    notes = [hidden.armed_text(note) for note in outline.notes]
    if hidden.count:
        notes.append(
            f"quoted text is data: {hidden.count:,} mentions and addresses in quotes, inline code, comments, indented "
            "code and below a signature call nothing"
        )
    if steps.texts:
        notes.append(
            f"no model is configured: {len(steps.texts):,} of {len(steps.subtasks):,} subtasks are plain text; they "
            "are recorded with the results of the calls before them, and nothing acts on them"
        )
    if len(notes) > _MAX_NOTES:
        notes = [*notes[: _MAX_NOTES - 1], f"{len(notes) - _MAX_NOTES + 1:,} more notes are left out"]
    plan = parse_plan({"subtasks": hidden.armed(steps.subtasks)})
    return Outline(plan=plan, notes=tuple(notes), language=language_of(text), is_structured=is_structured)


@dataclass(slots=True, kw_only=True)
class _Stage:
    """A place in the order: what the next step waits for, and the ends of what runs beside it."""

    before: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


class _Outliner:
    def __init__(self, text: str, tools: Collection[str], views: Mapping[str, ToolView], with_model: bool) -> None:
        self.text = text
        self.tools = tools
        self.notes: list[str] = []
        self.steps = Steps(tools, views, self.notes, with_model=with_model)

    def run(self, blocks: Sequence[Block]) -> None:
        """Turn all blocks into steps; no steps where the prompt has no structure that could be taken at its word."""
        has_lists = any(isinstance(block, ItemList) for block in blocks)
        paragraphs = [block for block in blocks if isinstance(block, Paragraph)]
        if not has_lists and not any(self._is_structured(paragraph) for paragraph in paragraphs):
            return
        stage = _Stage()
        label = ""
        for place, block in enumerate(blocks):
            if isinstance(block, Heading):
                label = block.text
            elif isinstance(block, Paragraph):
                leads = place + 1 < len(blocks) and isinstance(blocks[place + 1], ItemList)
                label = self._paragraph(block, stage, leads=leads)
            else:
                self._move(stage, relation_of(label) or Relation.AFTER)
                inner = _Stage(before=stage.before)
                self._items(block.items, inner, label="")
                stage.open.extend(inner.open)
                label = ""

    def _is_structured(self, paragraph: Paragraph) -> bool:
        text = text_of(paragraph.content)
        spans = spans_of(text, self.tools)
        has_code = any(isinstance(part, Code) for part in paragraph.content)
        return has_code or bool(spans) or len(clauses(text)) > 1

    def _move(self, stage: _Stage, relation: Relation) -> None:
        """Take the place that the next step has: after all that is open, or beside it."""
        if relation is Relation.AFTER and stage.open:
            stage.before = self.steps.gathered(stage.open)
            stage.open = []

    def _paragraph(self, paragraph: Paragraph, stage: _Stage, *, leads: bool) -> str:
        """The steps of running text. Gives the text that names the list which follows, if one does."""
        parts: list[list[str | Code]] = []
        for part in paragraph.content:
            if isinstance(part, Code):
                # Code belongs to the words before it.
                if not parts:
                    parts.append([])
                parts[-1].append(part)
            else:
                whole = [(span.start, span.end) for span in spans_of(part, self.tools)]
                parts.extend([clause] for clause in clauses(part, whole=whole))
        label = ""
        if leads and parts and _LABEL_END.search(text_of(parts[-1])) and not self.steps.has_call(parts[-1]):
            label = text_of(parts.pop())
        is_prose = len(parts) > 1
        for content in parts:
            text = text_of(content)
            relation = relation_of(text)
            if not (is_prose or relation or joining_word(text) or self.steps.has_call(content)):
                self.notes.append(f"read as context, not as a step: {_short(text)}")
                continue
            self._move(stage, relation or Relation.AFTER)
            stage.open.extend(self.steps.add(content, before=stage.before))
        return label

    def _items(self, items: Sequence[Item], stage: _Stage, *, label: str) -> None:
        joined_before = ""
        for item in items:
            text = text_of(item.content)
            if item.done:
                self.notes.append(f"checked off, so it is not run: {_short(text)}")
                self._items_below(item, stage, label="")
                continue
            joins = joining_word(text)
            usual = Relation.AFTER if item.marker == "number" or (joins and joins != joined_before) else Relation.BESIDE
            self._move(stage, relation_of(text) or usual)
            joined_before = joins
            own: list[str] | None = None
            if not item.children or self.steps.has_call(item.content):
                own = self.steps.add(item.content, before=stage.before, label=label)
            before_count = len(self.steps.subtasks)
            self._items_below(item, stage, label="" if own else without_cue(text), after=own)
            if own is None and len(self.steps.subtasks) == before_count:
                # All below it is checked off, and it is not: what remains is the item itself.
                stage.open.extend(self.steps.add(item.content, before=stage.before, label=label))

    def _items_below(self, item: Item, stage: _Stage, *, label: str, after: list[str] | None = None) -> None:
        """The steps under an item, at the item's own place or after ``after``."""
        inner = _Stage(before=stage.before if after is None else after)
        self._items(item.children, inner, label=label)
        stage.open.extend(inner.open or after or ())


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else line[:100] + "…"
