"""A Skill as it is kept: what it says of itself, its instructions, and the names of its files' contents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import orjson

from rayloom.dag.errors import UserError
from rayloom.tools.paths import workspace_path
from rayloom.tools.skills.front_matter import FrontMatter, InvalidSkill, read

ENTRY: Final = "SKILL.md"
SCRIPTS: Final = "scripts/"
MAX_FILES: Final = 500
"""Also a bound for whoever starts a script: a sandbox may hold each of its files open."""
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_BYTES: Final = 32 * 1024 * 1024
IGNORED: Final = frozenset({".git", ".hg", ".svn", "__MACOSX", "__pycache__", ".DS_Store"})
"""Folders and files that are no part of a Skill, wherever they lie: what tools and systems leave beside the work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkillFile:
    """One file; ``size`` in bytes, ``sha256`` its name in the blob store."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Skill:
    """A Skill that has passed the rules of the specification; ``files`` are sorted by path, ``SKILL.md`` among them."""

    about: FrontMatter
    instructions: str
    files: tuple[SkillFile, ...]

    @property
    def has_scripts(self) -> bool:
        """Whether it brings programs."""
        return any(file.path.startswith(SCRIPTS) for file in self.files)


def read_skill(files: Mapping[str, bytes], *, folder: str | None) -> Skill:
    """The Skill that these files are. ``folder`` is the name of the folder that they lie in, where there is one.

    Raises InvalidSkill with every fault.
    """
    raw = files.get(ENTRY)
    if raw is None:
        other = next((path for path in files if path.lower() == ENTRY.lower()), None)
        raise InvalidSkill((f"there is no {ENTRY}" + (f", but {other}: rename it" if other else " in it"),))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidSkill((f"{ENTRY} is not UTF-8: {error.reason} at byte {error.start}",)) from None
    if "\0" in text:
        raise InvalidSkill((f"{ENTRY} contains NUL",))
    about, instructions = read(text)
    if folder is not None and folder != about.name:
        raise InvalidSkill((f"name: must equal the name of its folder, {folder[:80]!r}, but is {about.name!r}",))
    return Skill(
        about=about,
        instructions=instructions,
        files=tuple(
            SkillFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
    )


def skill_path(path: str) -> str | None:
    """The path of a file in its one spelling; None for what is no part of a Skill. Raises InvalidSkill."""
    try:
        checked = workspace_path(path)
    except UserError as error:
        raise InvalidSkill((error.message,)) from None
    return None if IGNORED.intersection(PurePosixPath(checked).parts) else checked


def dumped(skill: Skill) -> bytes:
    """A Skill as the blob store keeps it; equal Skills give equal bytes, so their digest is its version."""
    about = skill.about
    document = {
        "name": about.name,
        "description": about.description,
        "license": about.license,
        "compatibility": about.compatibility,
        "metadata": dict(about.metadata),
        "allowed_tools": list(about.allowed_tools),
        "instructions": skill.instructions,
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in skill.files],
    }
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def loaded(data: bytes) -> Skill:
    """What ``dumped`` has made."""
    document: dict[str, Any] = orjson.loads(data)
    instructions, files = document.pop("instructions"), document.pop("files")
    allowed = tuple(document.pop("allowed_tools"))
    return Skill(
        about=FrontMatter(**document, allowed_tools=allowed),
        instructions=instructions,
        files=tuple(SkillFile(**file) for file in files),
    )
