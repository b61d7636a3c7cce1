"""The subtasks of an outline, written one after the other as raw plan entries."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from rayloom.dag.outline_blocks import Code
from rayloom.dag.outline_calls import FETCH_TOOL, Call, CallCheck, Span, call_of_code, call_of_span, object_of, spans_of
from rayloom.dag.outline_cues import is_chinese, is_fetching, joining_word, without_cue
from rayloom.dag.plan import TaskType
from rayloom.dag.references import REF, literal
from rayloom.dag.tool_view import ToolView
from rayloom.dag.values import Json, JsonObject

TEXT_TOOL: Final = "core.echo"
GATHER_TOOL: Final = "core.noop"
MAX_GATHERED: Final = 64
"""More open ends than this are tied together by a subtask of their own: else two wide stages would have as many edges
as the product of their sizes."""
MAX_INSTRUCTION_CHARS: Final = 100_000
MAX_RESULTS: Final = 16
"""How many results a text is recorded with: the latest."""
_MAX_NAME_CHARS: Final = 80
_MAX_LABEL_CHARS: Final = 1_000
"""What is said about several steps is repeated in each of them: no more of it than this."""
_MAX_SLUG_WORDS: Final = 6
_MAX_SLUG_CHARS: Final = 48
_NOT_SLUG: Final = re.compile(r"[^a-z0-9]+")
_NAME_EDGES: Final = " .,;:。，、；："
_SCHEME: Final = re.compile(r"https?://(?:www\.)?")
_EMPHASIS: Final = re.compile(r"\*\*|__|`")
_NOTHING_ELSE: Final = re.compile(r"[\s:：]*\Z")


class Steps:
    """Collects subtasks. Every method gives back the ids on which what comes next depends."""

    def __init__(
        self, tools: Collection[str], views: Mapping[str, ToolView], notes: list[str], *, with_model: bool = False
    ) -> None:
        self.subtasks: list[Json] = []
        self.texts: set[str] = set()
        """Ids of the subtasks that only record text."""
        self._tools = tools
        self._notes = notes
        self._with_model = with_model
        self._check = CallCheck(tools, views)
        self._repeats: dict[str, int] = {}
        # For each id the calls whose results a text after it is recorded with. Texts pass on what they were given,
        # not what they gave: results inside results inside results would grow beyond all bounds.
        self._results: dict[str, tuple[str, ...]] = {}
        self._all_results: dict[str, tuple[str, ...]] = {}

    def has_call(self, content: Sequence[str | Code]) -> bool:
        """Whether a content holds anything that can be run."""
        return any(
            isinstance(call_of_code(part), Call) if isinstance(part, Code) else bool(spans_of(part, self._tools))
            for part in content
        )

    def add(self, content: Sequence[str | Code], *, before: Sequence[str], label: str = "") -> list[str]:
        """The subtasks of one step, after ``before``: its calls in order, or its text where it has none.

        Addresses that follow one another are fetched side by side.
        """
        groups, residue = self._calls(content)
        if len(label) > _MAX_LABEL_CHARS:
            note = f"of what stands above a step only {_MAX_LABEL_CHARS:,} characters are kept: {label[:60]} …"
            if note not in self._notes:
                self._notes.append(note)
            label = label[:_MAX_LABEL_CHARS]
        fetches_only = bool(groups) and all(call.tool == FETCH_TOOL for group in groups for call in group)
        # Of "Fetch https://…" the address says it all; "Summarise https://…" names the fetching only as a means.
        is_means = fetches_only and bool(without_cue(residue)) and not is_fetching(residue)
        about = label if fetches_only and not is_means else _joined(label, without_cue(residue))[:_MAX_LABEL_CHARS]
        ends = list(before)
        is_alone = sum(map(len, groups)) == 1
        for group in groups:
            ends = [self._add_call(call, ends, about, is_alone=is_alone) for call in group]
        if is_means or not groups:
            ends = [self._add_text(_joined(label, _as_written(content)), ends, about)]
        return ends

    def record(self, text: str) -> None:
        """The subtask of a text in which nothing is to be called."""
        self._add_text(text.strip(), [], without_cue(text))

    def gathered(self, ends: Sequence[str]) -> list[str]:
        """The same ends, or one subtask that waits for them all where they are many."""
        if len(ends) <= MAX_GATHERED or GATHER_TOOL not in self._tools:
            return list(ends)
        added = self._add(f"Wait for {len(ends)} subtasks", TaskType.TOOL, GATHER_TOOL, {}, ends)
        self._pass_on(added, ends)
        return [added]

    def _calls(self, content: Sequence[str | Code]) -> tuple[list[list[Call]], str]:
        """The calls of a content, grouped by what runs side by side, and the text that is left without them."""
        groups: list[list[Call]] = []
        residue: list[str] = []
        parts = list(content)
        while parts:
            part = parts.pop(0)
            if isinstance(part, Code):
                run = call_of_code(part)
                if isinstance(run, str):
                    self._notes.append(f"kept as text: {run}")
                elif self._is_taken(run, f"the {part.language} block"):
                    groups.append([run])
                continue
            end = 0
            for span in spans_of(part, self._tools):
                if span.given is None and not span.problem and parts and _NOTHING_ELSE.match(part, span.end):
                    span = _with_block(span, parts)
                call = self._call(span)
                if call is None:
                    continue
                if span.url.endswith(("/", "=")) and is_chinese(part[span.end : span.end + 1]):
                    self._notes.append(f"{span.url[:200]} is read as ending there: write what belongs to it as %XX")
                residue.append(part[end : span.start])
                end = span.end
                if span.url and groups and groups[-1][-1].tool == FETCH_TOOL:
                    groups[-1].append(call)
                else:
                    groups.append([call])
            residue.append(part[end:])
        return groups, " ".join(" ".join(residue).split()).rstrip(":：,，;；")

    def _call(self, span: Span) -> Call | None:
        if span.problem:
            self._notes.append(f"@{span.tool[:100]} is kept as text, what follows is not a JSON object: {span.problem}")
            return None
        call = call_of_span(span)
        return call if self._is_taken(call, span.url[:200] or f"@{span.tool[:100]}") else None

    def _is_taken(self, call: Call, what: str) -> bool:
        refusal = self._check.refusal(call, self._results)
        if refusal is not None:
            self._notes.append(f"{what} is kept as text: {refusal}")
        return refusal is None

    def _add_call(self, call: Call, before: Sequence[str], about: str, *, is_alone: bool) -> str:
        url = call.input.get("url") if call.tool == FETCH_TOOL else None
        detail = f"Fetch {url}" if isinstance(url, str) else call.runs_on
        name = about if about and is_alone and not isinstance(url, str) else _joined(about, detail)
        added = self._add(name, call.type, call.tool, call.input, before)
        self._gives(added, before)
        return added

    def _add_text(self, text: str, before: Sequence[str], about: str) -> str:
        # Who sums up means everything so far; anybody else what came just before.
        results = self._results_of(before, self._all_results if joining_word(text) else self._results)
        if self._with_model:
            seen: JsonObject = {result: {REF: f"{result}.output"} for result in results}
            added = self._add(about or text, TaskType.REASONING, None, seen, before, instruction=text)
            self._gives(added, before)
            return added
        value: JsonObject = {"step": literal(text)}
        if results:
            value["results"] = {result: {REF: f"{result}.output"} for result in results}
        added = self._add(about or text, TaskType.TOOL, TEXT_TOOL, {"value": value}, before)
        self._pass_on(added, before)
        self.texts.add(added)
        return added

    def _gives(self, added: str, before: Sequence[str]) -> None:
        """Let what comes after a subtask see what it gave."""
        self._results[added] = (added,)
        self._all_results[added] = (*self._results_of(before, self._all_results), added)[-MAX_RESULTS:]

    def _pass_on(self, added: str, before: Sequence[str]) -> None:
        """Let what comes after a subtask without a result of its own see what was before it."""
        self._results[added] = self._results_of(before, self._results)
        self._all_results[added] = self._results_of(before, self._all_results)

    def _results_of(self, before: Sequence[str], known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        unique = dict.fromkeys(result for needed in before for result in known[needed])
        return tuple(unique)[-MAX_RESULTS:]

    def _add(
        self,
        name: str,
        kind: TaskType,
        tool: str | None,
        given: JsonObject,
        before: Sequence[str],
        instruction: str = "",
    ) -> str:
        name = _EMPHASIS.sub("", " ".join(name.split()))[:_MAX_NAME_CHARS].strip(_NAME_EDGES)
        added = self._id_for(name)
        entry: JsonObject = {"id": added, "type": str(kind), "input": given, "depends_on": list(before)}
        if name:
            entry["name"] = name
        if tool is not None:
            entry["tool"] = tool
        if instruction:
            entry["instruction"] = instruction[:MAX_INSTRUCTION_CHARS]
        self.subtasks.append(entry)
        return added

    def _id_for(self, name: str) -> str:
        """A short id made from the name; ``step-<n>`` where the name has no Latin letters to make it from."""
        words = [] if is_chinese(name) else _NOT_SLUG.sub(" ", _SCHEME.sub("", name.lower())).split()
        slug = "-".join(words[:_MAX_SLUG_WORDS])[:_MAX_SLUG_CHARS].strip("-") or f"step-{len(self.subtasks) + 1}"
        chosen = slug
        while chosen in self._results:
            self._repeats[slug] = self._repeats.get(slug, 1) + 1
            chosen = f"{slug}-{self._repeats[slug]}"
        return chosen


def _with_block(span: Span, parts: list[str | Code]) -> Span:
    """A mention with the JSON block that follows it, which is then used up; as it is where none does."""
    given = object_of(parts[0]) if isinstance(parts[0], Code) else None
    if given is None:
        return span
    del parts[0]
    return replace(span, given=given)


def _joined(label: str, text: str) -> str:
    return ": ".join(filter(None, (label.strip().rstrip(":："), text)))


def _as_written(content: Sequence[str | Code]) -> str:
    """Text and code again as the author wrote them."""
    written = (part if isinstance(part, str) else f"```{part.language}\n{part.text}\n```" for part in content)
    return "\n".join(written).strip()
