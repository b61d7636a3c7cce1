"""What a step of an outline says outright that can be run: tool mentions, addresses, and code in a known language."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from rayloom.dag.input_check import InputCheck
from rayloom.dag.json_text import MAX_NESTING, faults_of
from rayloom.dag.kinds import CODE_TOOL
from rayloom.dag.nearest import did_you_mean
from rayloom.dag.outline_blocks import Code
from rayloom.dag.plan import TaskType
from rayloom.dag.references import literal, scan
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import JsonObject

FETCH_TOOL: Final = "http.fetch_text"
SHELL_TOOL: Final = "shell.run"
_PLAN_LEVELS: Final = 8
"""Levels of a plan above the members of an input."""
_PYTHON: Final = frozenset({"python", "python3", "py"})
_SHELL: Final = frozenset({"bash", "sh", "shell"})
_JSON: Final = frozenset({"json", ""})
_RETRIEVING: Final = frozenset({FETCH_TOOL, "sql.query", "files.read", "files.list"})

# Where an address ends although no space does: Chinese is written without any. Scripts from the CJK radicals to the
# compatibility forms, full-width forms, and the quotes, dashes and ellipses that stand beside them.
_NOT_IN_URL: Final = (
    r"\s<>\"'`\\^{}|()\[\]\u2010-\u206f\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
    r"\U00020000-\U0003ffff"
)
_NAME: Final = r"[A-Za-z][A-Za-z0-9_\-]*(?:\.[A-Za-z0-9_\-]+)*"
_SPAN: Final = re.compile(
    rf"""(?<![A-Za-z0-9_.@/])@(?P<tool>{_NAME})
      | (?P<url>https?://(?:(?![,;]https?://)[^{_NOT_IN_URL}])+)""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of text that mentions a tool, with the JSON object that follows, or an address."""

    start: int
    end: int
    tool: str = ""
    given: JsonObject | None = None
    """The object that follows a mention; None where none does."""
    problem: str = ""
    """What is wrong with the object that follows."""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Something that can be run as one subtask."""

    type: TaskType
    tool: str | None
    """None for given code, which its type runs."""
    input: JsonObject

    @property
    def runs_on(self) -> str:
        """The tool that it comes down to."""
        return self.tool or CODE_TOOL


def spans_of(text: str, tools: Collection[str]) -> list[Span]:
    """All tool mentions and addresses in ``text``, in order. ``@name`` without a dot counts only as a known tool."""
    found: list[Span] = []
    end = 0
    for match in _SPAN.finditer(text):
        if match.start() < end:
            continue  # inside the JSON object of a mention
        if match.group("url"):
            url = match.group("url").rstrip(".,;:!?*_~")
            found.append(Span(start=match.start(), end=match.start() + len(url), url=url))
        elif match.group("tool") in tools or "." in match.group("tool"):
            found.append(_mention(text, match))
        else:
            continue
        end = found[-1].end
    return found


def call_of_code(code: Code) -> Call | str:
    """What runs a fenced block, or why nothing does."""
    if code.language in _PYTHON:
        return Call(type=TaskType.CODE_GEN, tool=None, input={"code": literal(code.text)})
    if code.language in _SHELL:
        return Call(type=TaskType.CODE_GEN, tool=SHELL_TOOL, input={"command": literal(code.text)})
    if code.language == "sql":
        return 'SQL needs a connection: write @sql.query {"connection": …, "sql": …} to run it'
    return f"a block in `{code.language[:40]}` is not run" if code.language else "a block without a language is not run"


def object_of(code: Code) -> JsonObject | None:
    """The JSON object that a fenced block holds, where it is one: the input of the mention before it."""
    return _object_at(code.text.strip(), 0)[0] if code.language in _JSON else None


def call_of_span(span: Span) -> Call:
    """The call that a mention or an address asks for."""
    if span.url:
        return Call(type=TaskType.DATA_RETRIEVAL, tool=FETCH_TOOL, input={"url": literal(span.url)})
    if span.tool in _RETRIEVING:
        kind = TaskType.DATA_RETRIEVAL
    else:
        kind = TaskType.API_CALL if span.tool.startswith("http.") else TaskType.TOOL
    return Call(type=kind, tool=span.tool, input=span.given or {})


class CallCheck:
    """Whether a call would be taken by the verification of the plan; remembers what it compiled."""

    def __init__(self, tools: Collection[str], views: Mapping[str, ToolView]) -> None:
        self._tools = tools
        self._views = views
        self._checks: dict[str, InputCheck] = {}

    def refusal(self, call: Call, known: Collection[str]) -> str | None:
        """Why a call can't be made; None where it can. ``known`` are the ids that it may refer to."""
        name = call.runs_on
        view = self._views.get(name)
        if name not in self._tools or (view is not None and not view.is_active):
            return f"there is no tool `{name[:100]}`{did_you_mean(name, sorted(self._tools))}"
        faults = faults_of(call.input, pointer="input", max_nesting=MAX_NESTING - _PLAN_LEVELS, limit=1)
        if not faults:
            scanned = scan(call.input, known, pointer="input", limit=1)
            faults = list(scanned.faults)
            if scanned.secrets:
                return "it asks for a secret, and this version keeps none"
        if not faults and view is not None:
            if name not in self._checks:
                self._checks[name] = InputCheck(view.schema)
            faults = self._checks[name].faults(call.input, pointer="input", limit=1)
        return f"{faults[0].pointer}: {faults[0].message}" if faults else None


def _mention(text: str, match: re.Match[str]) -> Span:
    tool = match.group("tool")
    at = match.end()
    while at < len(text) and text[at].isspace():
        at += 1
    if text[at : at + 1] != "{":
        return Span(start=match.start(), end=match.end(), tool=tool)
    given, end, problem = _object_at(text, at)
    return Span(start=match.start(), end=end or match.end(), tool=tool, given=given, problem=problem)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _object_at(text: str, at: int) -> tuple[JsonObject | None, int, str]:
    """The JSON object that starts here, where it ends, and what is wrong where there is none."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        return None, 0, str(error)[:200]
    return (value, end, "") if isinstance(value, dict) else (None, 0, "not an object")
