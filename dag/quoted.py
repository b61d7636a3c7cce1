"""What a prompt quotes, and its author does not ask for: quotes, inline code, comments, mail below a signature.

Such text is data. `disarmed` writes it so that no reader of the prompt finds a tool mention, an address or a fence in
it; `armed` gives the author's characters back. Fenced code stays as it is: `outline_blocks` reads it whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from rayloom.dag.values import Json

# Spaces are looked at once (possessive): from each of them would be quadratic.
FENCE: Final = re.compile(
    r"(?P<ticks>`{3,}+)[ \t]*+(?P<a>[A-Za-z0-9_+#.\-]*+)[^`]*+|(?P<tildes>~{3,}+)[ \t]*+(?P<b>[A-Za-z0-9_+#.\-]*+).*+"
)
LIST_MARKER: Final = re.compile(
    r"(?:[-*+•‣·●○]\s++|\d{1,3}(?:[.)]\s++|[、．]\s*+)|[(（]\d{1,3}[)）]\s*+|[①-⑳]\s*+|[一二三四五六七八九十百]{1,4}[、．.]\s*+"
    r"|\[[ xX✓✔]\]\s++)"
)
_SIGNATURE: Final = re.compile(
    r"-- ?\r?|-{2,}\s*(?:original message|forwarded message|原始邮件|原邮件|转发的?邮件)\s*-{2,}\s*"
    r"|begin forwarded message:\s*",
    re.IGNORECASE,
)
_BLOCK_START: Final = re.compile(r"#{1,6}\s|([-*_])(?:\s*\1){2,}\s*$")
_SPECIAL: Final = re.compile(r"`++|<!--|@[A-Za-z][A-Za-z0-9_.\-]*+\s*+(?=\{)|\n")
_ODD_BREAKS: Final = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|\r(?!\n|$)")
_HIDDEN: Final = re.compile(r"@|`|~|:(?=//)")
_TAB: Final = 4
_MAX_MARKERS: Final = 16
"""Markers of lists that stand on one line."""
_MAX_FAULTS: Final = 100
"""So many inputs that are no JSON are looked at: each costs as much as the text before it."""
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disarmed:
    """A prompt whose quoted text calls nothing. ``count``: of the mentions and addresses in it."""

    text: str
    count: int
    stands_for: dict[int, str]

    def armed(self, value: Json) -> Json:
        """A value made of the text, with the author's characters."""
        if isinstance(value, str):
            return value.translate(self.stands_for) if self.stands_for else value
        if isinstance(value, list):
            return [self.armed(each) for each in value]
        if isinstance(value, dict):
            return {str(self.armed(name)): self.armed(each) for name, each in value.items()}
        return value

    def armed_text(self, text: str) -> str:
        """A text made of the text, with the author's characters."""
        return str(self.armed(text))


def disarmed(prompt: str) -> Disarmed:
    """A prompt with its quoted text disarmed. Takes time in proportion to its length."""
    free = islice((character for character in _unused() if character not in prompt), 4)
    hides = dict(zip("@`~:", free, strict=True))
    scanner = _Scanner(prompt, hides)
    scanner.run()
    stands_for = {ord(hidden): shown for shown, hidden in hides.items()} if scanner.has_hidden else {}
    return Disarmed(text="".join(scanner.written), count=scanner.count, stands_for=stands_for)


def _unused() -> Iterator[str]:
    """Characters that no text should hold: noncharacters first, then private ones."""
    yield from map(chr, range(0xFDD0, 0xFDF0))
    yield from map(chr, range(0x100000, 0x10FFFE))


def closes(line: str, fence: str, indent: int) -> bool:
    """Whether a line ends a fenced block that began with ``fence`` at this indent."""
    stripped = line.strip()
    own = len(line) - len(line.lstrip())
    return len(stripped) >= len(fence) and not stripped.strip(fence[0]) and own < indent + _TAB


class _Scanner:
    def __init__(self, text: str, hides: dict[str, str]) -> None:
        self.text, self.hides = text, hides
        self.written: list[str] = []
        self.count = 0
        self.has_hidden = False
        self.faults = 0

    def run(self) -> None:
        at, after_gap, lazy, in_list, has_margin, in_code = 0, True, False, False, False, False
        while at < len(self.text):
            end = self.line_end(at)
            line = self.text[at:end]
            body, is_item = _body(line)
            if _SIGNATURE.fullmatch(line.strip(" ") if line.strip() != "--" else line.strip()):
                self.hide(at, len(self.text))
                return
            fence = FENCE.fullmatch(body)
            is_code = self.is_indented(line) and not in_list and has_margin and (in_code or after_gap)
            if not body and not is_item:
                self.keep(at, end)
                lazy, after_gap = False, True
            elif is_code:
                self.hide(at, end)
                in_code, after_gap = True, False
            elif fence:
                end = self.fence_end(at, end, line, fence)
                self.keep(at, end)
                lazy, in_code, after_gap = False, False, False
            elif body.startswith((">", "＞")):
                self.hide(at, end)
                lazy, in_code, after_gap = True, False, False
            elif lazy and not is_item and not _BLOCK_START.match(body):
                self.hide(at, end)
            else:
                in_list = is_item or (in_list and (self.is_indented(line, 1) or not after_gap))
                has_margin = has_margin or not self.is_indented(line, 1)
                lazy, in_code, after_gap = False, False, False
                end = self.inline(at, end)
            at = end

    def line_end(self, at: int) -> int:
        """Where the next line begins."""
        return self.text.find("\n", at) + 1 or len(self.text)

    def is_indented(self, line: str, width: int = _TAB) -> bool:
        rest = line.lstrip(" \t")
        return bool(rest.strip()) and len(line[: len(line) - len(rest)].expandtabs(_TAB)) >= width

    def fence_end(self, at: int, end: int, line: str, fence: re.Match[str]) -> int:
        indent = len(line) - len(line.lstrip())
        mark = fence["ticks"] or fence["tildes"]
        while end < len(self.text):
            start, end = end, self.line_end(end)
            if closes(self.text[start:end], mark, indent):
                break
        return end

    def inline(self, at: int, end: int) -> int:
        """Write a line of the author's, its inline code and comments hidden. Gives where the next line begins."""
        start = at
        for_now = at
        while found := _SPECIAL.search(self.text, for_now):
            special = found.group()
            if special == "\n":
                end = found.end()
                self.keep(start, end)
                return end
            if special == "<!--":
                close = self.text.find("-->", found.end())
                stop = len(self.text) if close < 0 else close + 3
            elif special[0] == "`":
                stop = self.span_end(found.end(), len(special))
            else:
                # A call of the author's: what its input quotes is its input.
                for_now = self.object_end(found.end())
                continue
            if stop:
                # The backticks themselves stay: the names of steps are written without them.
                inner = stop - len(special) if special[0] == "`" else stop
                self.keep(start, found.end())
                self.hide(found.end(), inner)
                start = inner
            for_now = stop or found.end()
        self.keep(start, len(self.text))
        return len(self.text)

    def span_end(self, at: int, length: int) -> int:
        """Where inline code ends that so many backticks began: with as many, before the paragraph ends; 0: nowhere."""
        for run in re.compile(r"`++|\n[ \t]*+(?=\n|$)").finditer(self.text, at):
            if run.group()[0] == "\n":
                return 0
            if len(run.group()) == length:
                return run.end()
        return 0

    def object_end(self, at: int) -> int:
        if self.faults >= _MAX_FAULTS:
            return at
        try:
            return _DECODER.raw_decode(self.text, at)[1]
        except (ValueError, RecursionError):
            self.faults += 1
            return at

    def keep(self, start: int, end: int) -> None:
        self.written.append(self.text[start:end])

    def hide(self, start: int, end: int) -> None:
        text = self.text[start:end]
        hidden = _ODD_BREAKS.sub(" ", _HIDDEN.sub(lambda found: self.hides[found.group()], text))
        self.has_hidden = self.has_hidden or hidden != text
        self.count += text.count("@") + text.count("://")
        self.written.append(hidden)


def _body(line: str) -> tuple[str, bool]:
    """A line without margin and list markers, and whether it had any."""
    body, is_item = line.strip(), False
    for _ in range(_MAX_MARKERS):
        if not (marker := LIST_MARKER.match(body) or LIST_MARKER.fullmatch(body + " ")):
            break
        body, is_item = body[marker.end() :].strip(), True
    return body, is_item
