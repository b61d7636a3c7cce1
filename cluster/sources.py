"""Where settings are written down: the environment, ``.env`` files and ``rayloom.toml`` files.

Each source becomes a mapping of field names to raw values; the first source that names a field wins, and an empty
value means that field's default, also where a later source has another one.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError

PREFIX = "RAYLOOM_"
DEFAULT_HOME = Path("~/.rayloom")
# What Kubernetes sets for a Service whose name begins with "rayloom"; never ours unless it is a valid name.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_.*)?$|_PORT(_.*)?$")
_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


class SettingsError(Exception):
    """Settings that can't be used. ``lines``: one sentence for each fault, fit for a terminal, free of secrets."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)

    def __reduce__(self) -> tuple[type[SettingsError], tuple[tuple[str, ...]]]:
        return (type(self), (self.lines,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Raw values by field name, and what to call their origin in a message."""

    origin: str
    values: Mapping[str, object]
    folder: Path
    """What relative paths in it are relative to."""


def variable(field: str) -> str:
    """The environment variable of a field: ``port`` → ``RAYLOOM_PORT``."""
    return PREFIX + field.upper()


def from_environment(environ: Mapping[str, str], known: Collection[str]) -> Source:
    """The ``RAYLOOM_*`` variables. Raises SettingsError for names that are unknown."""
    return Source(origin="the environment", values=_named(environ, known, "the environment"), folder=Path.cwd())


def from_folder(folder: Path, known: Collection[str], *, strict: bool = True) -> list[Source]:
    """What ``.env`` and ``rayloom.toml`` in ``folder`` say, the first going before the second; missing ones are empty.

    Raises SettingsError for names that are unknown, if ``strict``, and for files that can't be read.
    """
    dotenv, toml = folder / ".env", folder / "rayloom.toml"
    sources = []
    if _is_file(dotenv):
        lines = {name: value or "" for name, value in _read_dotenv(dotenv).items()}
        sources.append(Source(origin=str(dotenv), values=_named(lines, known, str(dotenv), strict), folder=folder))
    if _is_file(toml):
        table = _toml_values(_read_toml(toml), known, toml, strict)
        sources.append(Source(origin=str(toml), values=table, folder=folder))
    return sources


def home_of(sources: Sequence[Source]) -> Path:
    """``RAYLOOM_HOME``, as the first of the sources has it that names it. Raises SettingsError for what is no path."""
    for source in sources:
        if "home" in source.values:
            value = source.values["home"]
            if not isinstance(value, str | Path):
                raise SettingsError([f"RAYLOOM_HOME in {source.origin} must be a path"])
            if str(value):
                return absolute(value, source.folder)
            break
    return absolute(DEFAULT_HOME, Path.cwd())


def absolute(value: str | Path, folder: Path) -> Path:
    """A path as it is meant in ``folder``. Raises SettingsError for a ``~`` where there is no home of a user."""
    try:
        return Path(os.path.normpath(folder / Path(value).expanduser()))
    except RuntimeError:
        raise SettingsError(["RAYLOOM_HOME is not set and this user has no home folder: set RAYLOOM_HOME"]) from None


def nearest(name: str, known: Collection[str]) -> str:
    """The valid name that looks most like ``name``."""
    return difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)[0]


def _named(variables: Mapping[str, str], known: Collection[str], origin: str, strict: bool = True) -> dict[str, object]:
    valid = {variable(field): field for field in known}
    values: dict[str, object] = {}
    unknown = []
    for name, value in variables.items():
        if not name.startswith(PREFIX):
            continue
        if name in valid:
            # A Service called "rayloom" sets RAYLOOM_PORT=tcp://10.0.0.1:8000 in every pod beside it.
            if not (name.endswith("_PORT") and _LINK_VALUE.match(value)):
                values[valid[name]] = value
        elif not _SERVICE_LINK.search(name):
            unknown.append(f"{name} in {origin} is not a setting; did you mean {nearest(name, valid)}?")
    if unknown and strict:
        raise SettingsError(sorted(unknown))
    return values


def _toml_values(table: Mapping[str, object], known: Collection[str], path: Path, strict: bool) -> dict[str, object]:
    values: dict[str, object] = {}
    unknown = []
    for key, value in table.items():
        field = key.removeprefix(PREFIX).lower() if key.startswith(PREFIX) else key
        if field in known:
            values[field] = value
        else:
            unknown.append(f"{key} in {path} is not a setting; did you mean {nearest(field, known)}?")
    if unknown and strict:
        raise SettingsError(unknown)
    return values


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise SettingsError([f"{path} can't be looked at: {error.strerror}"]) from None


def _read_dotenv(path: Path) -> dict[str, str | None]:
    try:
        # Values are taken as they stand: a password may hold "${".
        return dict(dotenv_values(path, interpolate=False, encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path} can't be read: {_reason(error)}"]) from None


def _read_toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{path} can't be read: {_reason(error)}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError([f"{path} is not valid TOML: {error}"]) from None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else "it is not UTF-8"


def fault_lines(error: ValidationError, values: Mapping[str, object], origins: Mapping[str, str]) -> list[str]:
    """A line for each setting that is refused: where it stands and why, and its value where that may be shown."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if not fault["loc"]:
            lines.append(message)
            continue
        field = str(fault["loc"][0])
        shown = f"={values[field]}" if _is_plain(field) and isinstance(values.get(field), str | int | float) else ""
        lines.append(f"{variable(field)}{shown} in {origins.get(field, 'arguments')}: {message}"[:300])
    return lines


def _is_plain(field: str) -> bool:
    """Whether a field's value may be shown: a number, a choice or a path, never anything that can hold a password."""
    return not any(word in field for word in ("url", "key", "token", "connections", "models", "ray_address"))
