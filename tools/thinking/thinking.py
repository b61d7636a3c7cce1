"""What an attempt by a model is handed beside its input, and what it may do by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import orjson

from rayloom.dag.model import ModelPort
from rayloom.dag.values import Json, JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillText:
    """A Skill that the model goes by. ``version`` is its digest."""

    name: str
    description: str
    instructions: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolOffer:
    """A tool that the model may call, as it is told of it."""

    name: str
    description: str
    schema: Mapping[str, Json]


class ToolCaller(Protocol):
    """The tools of the installation, as far as a model may call them in this attempt.

    Whoever implements it sees to it that nothing else can be called: what a model says is not to be trusted.
    """

    def offers(self, globs: Sequence[str]) -> Sequence[ToolOffer]:
        """Those of these names that may be called now, sorted by name."""

    async def call(self, name: str, input: JsonObject) -> Json:
        """Call one; its output. Raises RayloomError, and Refused for what may not be called."""


class Noted(Protocol):
    """Writes down that a tool is called, for the trace and the audit."""

    def __call__(self, name: str, version: str, input: JsonObject) -> AbstractContextManager[JsonObject]:
        """The call lasts as long as the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """One attempt by a model. ``scope`` tells apart those that may not see each other's kept results.

    ``noted``: writes down what is called without ``tools``.
    """

    instruction: str
    models: ModelPort
    tools: ToolCaller
    noted: Noted
    skills: tuple[SkillText, ...] = ()
    scope: str = ""

    def version(self, role: str, model: str) -> str:
        """A digest of all that an equal call must have in common beside its input."""
        skills = [[skill.name, skill.version] for skill in self.skills]
        told = [role, model, self.instruction, skills, self.scope]
        return hashlib.sha256(orjson.dumps(told)).hexdigest()[:16]

    @property
    def skill_texts(self) -> str:
        """The Skills, as a part of what the model is told first."""
        return "".join(
            f"\n\n# Skill {skill.name}: {skill.description}\n\n{skill.instructions.strip()}" for skill in self.skills
        )
