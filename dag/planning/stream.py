"""The subtasks of a plan while a model is still writing it: each as soon as its last brace is there."""

from __future__ import annotations

import json
import re
from typing import Final

from rayloom.dag.json_text import faults_of
from rayloom.dag.planning.answer import LISTS, MAX_ANSWER_CHARS
from rayloom.dag.values import JsonObject

_LIST: Final = re.compile(rf'"(?:{"|".join(LISTS)})"\s*:\s*\[')
_NEXT: Final = re.compile(r'["\\{}]')
_HEAD_CHARS: Final = 64
"""So much of what was searched is searched again with the next piece: the beginning of the list may be cut in two."""


class SubtaskStream:
    """Fed with the pieces of an answer, gives each subtask once, as the model wrote it.

    ``PlanReader`` makes a subtask of it. Whatever this gives may still turn out to belong to a plan that is refused as
    a whole. What is no JSON ends it: ``is_open`` is false, and it gives nothing more. ``head``: what was said before
    the list; empty until that begins.
    """

    def __init__(self) -> None:
        self.head = ""
        self._text = ""
        self._at = 0
        self._is_within = False
        self._start = -1
        self._depth = 0
        self._is_text = False
        self.is_open = True

    def feed(self, piece: str) -> tuple[JsonObject, ...]:
        """The subtasks that this piece completes. Never raises."""
        if not self.is_open:
            return ()
        self._text += piece
        if len(self._text) > MAX_ANSWER_CHARS:
            self._close()
            return ()
        if not self._is_within:
            match = _LIST.search(self._text, self._at)
            if match is None:
                self._at = max(0, len(self._text) - _HEAD_CHARS)
                return ()
            self._is_within, self._at = True, match.end()
            self.head = self._text[: match.start()]
        found: list[JsonObject] = []
        while self._at < len(self._text):
            if self._start < 0:
                self._between()
            elif not self._within(found):
                break
        return tuple(found)

    def _close(self) -> None:
        self.is_open, self._text, self._at = False, "", 0

    def _between(self) -> None:
        """One character between subtasks."""
        char = self._text[self._at]
        if char == "{":
            self._start, self._depth = self._at, 1
        elif char != "," and not char.isspace():
            # The end of the list, or nothing that anybody foresaw.
            self._close()
            return
        self._at += 1

    def _within(self, found: list[JsonObject]) -> bool:
        """Up to the next quote or brace of a subtask; False where the text ends before one."""
        match = _NEXT.search(self._text, self._at)
        if match is None or (match[0] == "\\" and match.end() == len(self._text)):
            # What escapes and what is escaped are looked at together.
            self._at = len(self._text) if match is None else match.start()
            return False
        self._at = match.end()
        if match[0] == "\\":
            self._at += 1
        elif match[0] == '"':
            self._is_text = not self._is_text
        elif not self._is_text:
            self._depth += 1 if match[0] == "{" else -1
        if self._depth == 0:
            self._take(found)
        return True

    def _take(self, found: list[JsonObject]) -> None:
        try:
            value = json.loads(self._text[self._start : self._at], strict=False)
        except (ValueError, RecursionError):
            value = None
        self._start = -1
        if not isinstance(value, dict) or faults_of(value):
            self._close()
        else:
            found.append(value)
