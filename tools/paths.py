"""The rule of paths inside a workspace: relative, plain, short."""

from __future__ import annotations

import unicodedata
from typing import Final

from rayloom.dag.errors import UserError

MAX_CHARS: Final = 512
MAX_PARTS: Final = 32
MAX_PART_BYTES: Final = 255


def workspace_path(path: str) -> str:
    """The path in its one spelling: no ``.``, no doubled or trailing slash, Unicode NFC.

    Raises UserError (``PATH_INVALID``) for an absolute path, ``..``, control characters, or one that is too long.
    """
    path = unicodedata.normalize("NFC", path)
    if len(path) > MAX_CHARS:
        raise _invalid(path, f"longer than {MAX_CHARS} characters")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in path):
        raise _invalid(path, "control characters and lone surrogates are not allowed")
    if "\\" in path:
        raise _invalid(path, "use / between folders")
    if path.startswith(("/", "~")):
        raise _invalid(path, "it must be relative to the workspace")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _invalid(path, "'..' is not allowed")
    if not parts or path.endswith("/"):
        raise _invalid(path, "it names no file")
    if len(parts) > MAX_PARTS or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise _invalid(path, f"at most {MAX_PARTS} folders of {MAX_PART_BYTES} bytes")
    return "/".join(parts)


def _invalid(path: str, reason: str) -> UserError:
    shown = path if len(path) <= 80 else path[:77] + "..."
    return UserError("PATH_INVALID", f"the path {shown!r} is refused: {reason}")
