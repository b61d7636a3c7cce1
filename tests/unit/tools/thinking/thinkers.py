"""One attempt by a scripted model, and the tools that it may call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from rayloom.dag.values import Json, JsonObject
from rayloom.tools.thinking.thinking import SkillText, Thinking, ToolOffer
from tests.fakes.scripted_models import ScriptedModels


@dataclass
class Tools:
    """``ToolCaller``: gives what it is told to, or raises it."""

    results: dict[str, Json | Exception] = field(default_factory=dict)
    called: list[tuple[str, JsonObject]] = field(default_factory=list)

    def offers(self, globs: Sequence[str]) -> Sequence[ToolOffer]:
        names = [name for name in sorted(self.results) if any(fnmatchcase(name, glob) for glob in globs)]
        return [ToolOffer(name=name, description=f"does {name}", schema={"type": "object"}) for name in names]

    async def call(self, name: str, input: JsonObject) -> Json:
        self.called.append((name, input))
        result = self.results[name]
        if isinstance(result, Exception):
            raise result
        return result


@contextmanager
def _noted(name: str, version: str, input: JsonObject) -> Iterator[JsonObject]:
    yield {}


def thinking(
    models: ScriptedModels, *, instruction: str = "Do it.", tools: Tools | None = None, skills: Sequence[SkillText] = ()
) -> Thinking:
    """An attempt with these models."""
    return Thinking(instruction=instruction, models=models, tools=tools or Tools(), noted=_noted, skills=tuple(skills))
