"""Registering a Skill: from a folder of this machine or an uploaded zip, into the blob store and the registry."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final, Literal

from pydantic import Field, StringConstraints, model_validator

from rayloom.dag.errors import Fault, UserError
from rayloom.dag.ports import RegisteredTool
from rayloom.dag.values import JsonObject
from rayloom.serve.bodies import Body, validated
from rayloom.serve.deps import Deps, ask
from rayloom.serve.problems import invalid
from rayloom.tools.skills.archive import from_zip
from rayloom.tools.skills.folder import from_folder
from rayloom.tools.skills.front_matter import InvalidSkill
from rayloom.tools.skills.skill import Skill, dumped, read_skill
from rayloom.tools.skills.tool import level_of, skill_tool

PREFIX: Final = "skill."
REGISTRY_TIMEOUT_S: Final = 20.0
PUTS: Final = 8
"""So many files are put into the blob store at once."""
_SHOWN: Final = ("license", "compatibility", "metadata", "allowed_tools")


class SkillBody(Body):
    """The body of ``POST /api/v1/tools/register`` for a Skill: one of ``path`` and ``archive_base64``."""

    type: Literal["SKILL"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        description="as the front matter has it; the tool is called skill.<name>"
    )
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = Field(
        default=None, description="a folder below RAYLOOM_SKILLS_DIR, on the machine that serves the API"
    )
    archive_base64: Annotated[str, StringConstraints(min_length=1)] | None = Field(
        default=None, description="a zip of the folder, or of what is in it"
    )

    @model_validator(mode="after")
    def _one_source(self) -> SkillBody:
        if (self.path is None) == (self.archive_base64 is None):
            raise ValueError("give either path or archive_base64")
        return self


async def register_skill(deps: Deps, document: JsonObject) -> RegisteredTool:
    """The Skill that a body describes, registered.

    Raises Problem (422) with every fault, UserError (``TOOL_EXISTS``), and Transient while something is away.
    """
    body = validated(document, SkillBody)
    pointer = "/path" if body.path is not None else "/archive_base64"
    try:
        skill, files = await asyncio.to_thread(_read, deps, body)
    except InvalidSkill as error:
        raise invalid([Fault(pointer, fault) for fault in error.faults], code=error.code) from error
    if skill.about.name != body.name:
        message = f"must equal the name in the Skill's front matter, {skill.about.name!r}"
        raise invalid([Fault("/name", message)], code="SKILL_INVALID")
    name = PREFIX + body.name
    if name in await deps.offered.all():
        raise UserError("TOOL_EXISTS", f"there is a tool {name!r} already")
    manifest = dumped(skill)
    # The contents first: when a row names them they must be durable.
    version = (await deps.backends.blobs.put(manifest)).sha256
    turns = asyncio.Semaphore(PUTS)

    async def put(data: bytes) -> None:
        async with turns:
            await deps.backends.blobs.put(data)

    await asyncio.gather(*map(put, {file.sha256: files[file.path] for file in skill.files}.values()))
    contents = [version, *(file.sha256 for file in skill.files)]
    registering = deps.ports.registry.register_skill(_registered(name, version, skill), contents)
    return await ask(registering, "the tool registry", timeout_s=REGISTRY_TIMEOUT_S)


def shown(tool: RegisteredTool) -> Mapping[str, Any]:
    """What a Skill says of itself beside its description."""
    return {name: tool.config.get(name) for name in _SHOWN}


def _read(deps: Deps, body: SkillBody) -> tuple[Skill, Mapping[str, bytes]]:
    """The Skill and its files. Takes its time. Raises InvalidSkill."""
    if body.path is not None:
        if deps.settings.skills_dir is None:
            raise InvalidSkill(("this machine takes no Skills from folders: RAYLOOM_SKILLS_DIR is not set",))
        files, folder = from_folder(deps.settings.skills_dir, body.path)
        return read_skill(files, folder=folder), files
    try:
        archive = base64.b64decode(body.archive_base64 or "", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidSkill((f"is not base64: {error}",)) from None
    files, top = from_zip(archive)
    return read_skill(files, folder=top), files


def _registered(name: str, version: str, skill: Skill) -> RegisteredTool:
    about = skill.about
    spec = skill_tool(name=name, description=about.description, version=version, level=level_of(skill)).spec
    said = {field: value for field, value in asdict(about).items() if field in _SHOWN}
    return RegisteredTool(
        name=name,
        type="SKILL",
        description=spec.description,
        version=version,
        schema=dict(spec.input_schema),
        output_schema=None if spec.output_schema is None else dict(spec.output_schema),
        endpoint=f"skill:{version}",
        config={**said, "allowed_tools": list(about.allowed_tools), "breaker_default": spec.breaker},
        resources=dict(spec.resources),
        lane=spec.lane,
        permission_level=spec.permission_level,
        is_active=True,
    )
