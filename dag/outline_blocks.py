"""A prompt as its author laid it out: headings, paragraphs, lists within lists, fenced code. No meaning yet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from rayloom.dag.quoted import FENCE, closes

_MAX_NESTING: Final = 16
"""Lists nested deeper than this are read as if they were not."""
_TAB: Final = 4

Marker = Literal["number", "bullet"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """A fenced block: its language in lower case, empty where none is given."""

    language: str
    text: str


Content: TypeAlias = "list[str | Code]"
"""Text and code in the order in which they stand."""


@dataclass(slots=True, kw_only=True)
class Item:
    """One item of a list. ``done`` is None where it has no check box."""

    marker: Marker
    indent: int
    content: Content
    done: bool | None = None
    children: list[Item] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Heading:
    """A line that names what follows."""

    text: str


@dataclass(slots=True, kw_only=True)
class Paragraph:
    """Running text, and the code that belongs to it."""

    content: Content


@dataclass(slots=True, kw_only=True)
class ItemList:
    """Items that stand together, all numbered or all bulleted."""

    marker: Marker
    items: list[Item]


Block: TypeAlias = "Heading | Paragraph | ItemList"

_HEADING: Final = re.compile(r"#{1,6}\s+(\S.*)")
_RULE: Final = re.compile(r"([-*_])(?:\s*\1){2,}")
_BULLET: Final = re.compile(r"[-*+•‣·●○]\s+(.*)")
_CHINESE_DIGITS: Final = "一二三四五六七八九十百"
_NUMBER: Final = re.compile(
    rf"""(?:
        \d{{1,3}}[.)]\s+                                    # 1. or 1)
      | \d{{1,3}}[、．]\s*                                  # 1、
      | [(（]\d{{1,3}}[)）]\s*                              # (1)
      | [①-⑳]\s*
      | [{_CHINESE_DIGITS}]{{1,4}}[、．.]\s*                # 一、
      | 第[{_CHINESE_DIGITS}\d]{{1,4}}步[:：、，,.\s]*        # 第一步：
      | (?:step|步骤)\s*[\d{_CHINESE_DIGITS}]{{1,4}}\s*[:：.)、]\s*
    )(.*)""",
    re.VERBOSE | re.IGNORECASE,
)
_CHECK_BOX: Final = re.compile(r"\[([ xX✓✔])\](?:\s+(.*)|$)")


def read(text: str) -> list[Block]:
    """The blocks of a prompt, in order."""
    return _Reader([_with_even_margin(line) for line in text.splitlines()]).blocks()


def _with_even_margin(line: str) -> str:
    """A line with tabs in its margin, where they are measured, written as spaces; elsewhere they are the author's."""
    rest = line.lstrip()
    return line[: len(line) - len(rest)].expandtabs(_TAB) + rest


def text_of(content: Sequence[str | Code]) -> str:
    """The text of a content, its code left out."""
    return "\n".join(part for part in content if isinstance(part, str)).strip()


class _Reader:
    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = lines
        self.at = 0
        self.found: list[Block] = []
        self.open_items: list[Item] = []  # from the outermost to the one that text now belongs to
        self.after_gap = True

    def blocks(self) -> list[Block]:
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            self._take(line, line.strip())
        return self.found

    def _take(self, line: str, stripped: str) -> None:
        indent = len(line) - len(line.lstrip())
        fence = FENCE.fullmatch(stripped)
        heading = _HEADING.fullmatch(stripped)
        if not stripped:
            self.after_gap = True
        elif fence:
            self._add_code(self._code(fence, indent))
        elif _RULE.fullmatch(stripped):
            self._close_items()
        elif heading:
            self._close_items()
            self.found.append(Heading(text=heading.group(1)))
        elif bullet := _BULLET.fullmatch(stripped):
            self._add_item("bullet", indent, bullet.group(1))
        elif number := _NUMBER.fullmatch(stripped):
            self._add_item("number", indent, number.group(1))
        else:
            self._add_text(indent, stripped)

    def _code(self, fence: re.Match[str], indent: int) -> Code:
        language = fence["a"] or fence["b"] or ""
        return Code(language=language.lower(), text=self._fenced(fence["ticks"] or fence["tildes"], indent))

    def _fenced(self, fence: str, indent: int) -> str:
        """The lines up to the closing fence, or to the end where there is none."""
        inside: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if closes(line, fence, indent):
                break
            inside.append(line[indent:] if not line[:indent].strip() else line)
        return "\n".join(inside)

    def _close_items(self) -> None:
        self.open_items = []
        self.after_gap = True

    def _add_code(self, code: Code) -> None:
        last = self.found[-1] if self.found else None
        if self.open_items:
            # Also where it stands at the margin: that is how most people write code between numbered steps.
            self.open_items[-1].content.append(code)
        elif isinstance(last, Paragraph) and (not self.after_gap or text_of(last.content).endswith((":", "："))):
            last.content.append(code)
        else:
            self.found.append(Paragraph(content=[code]))
        self.after_gap = True

    def _add_item(self, marker: Marker, indent: int, text: str) -> None:
        under_number = any(item.marker == "number" and item.indent == indent for item in self.open_items)
        if marker == "bullet" and under_number and not self.after_gap:
            indent += 2  # bullets between numbers belong to the number above them, indented or not
        while self.open_items and (indent < self.open_items[-1].indent + 2 or len(self.open_items) >= _MAX_NESTING):
            self.open_items.pop()
        box = _CHECK_BOX.fullmatch(text)
        done = None if box is None else box.group(1) != " "
        text = (box.group(2) or "") if box else text
        fence = FENCE.fullmatch(text)
        content: Content = [self._code(fence, indent)] if fence else [text]
        item = Item(marker=marker, indent=indent, content=content, done=done)
        if self.open_items:
            self.open_items[-1].children.append(item)
        else:
            last = self.found[-1] if self.found else None
            if isinstance(last, ItemList) and last.marker == marker:
                last.items.append(item)
            else:
                self.found.append(ItemList(marker=marker, items=[item]))
        self.open_items.append(item)
        self.after_gap = False

    def _add_text(self, indent: int, text: str) -> None:
        while self.open_items and self.after_gap and indent <= self.open_items[-1].indent:
            self.open_items.pop()
        last = self.found[-1] if self.found else None
        if self.open_items:
            _append_line(self.open_items[-1].content, text)
        elif isinstance(last, Paragraph) and not self.after_gap:
            _append_line(last.content, text)
        else:
            self.found.append(Paragraph(content=[text]))
        self.after_gap = False


def _append_line(content: Content, text: str) -> None:
    if content and isinstance(content[-1], str):
        content[-1] += f"\n{text}"
    else:
        content.append(text)
