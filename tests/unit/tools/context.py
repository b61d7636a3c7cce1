"""A context as the engine would hand it in, with a log and a workspace in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayloom.dag.errors import UserError
from rayloom.dag.values import Json
from rayloom.tools.ports import FileEntry, Level, Stream
from rayloom.tools.settings import ToolSettings
from rayloom.tools.tool import ToolContext


@dataclass
class KeptLog:
    """Keeps the lines."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    spoke: asyncio.Event = field(default_factory=asyncio.Event)

    def line(
        self,
        message: str,
        *,
        stream: Stream = "tool",
        level: Level = "INFO",
        fields: Mapping[str, Json] | None = None,
    ) -> None:
        self.lines.append((stream, message))
        self.spoke.set()


@dataclass
class KeptFiles:
    """Keeps the files."""

    kept: dict[str, bytes] = field(default_factory=dict)

    async def write(self, path: str, data: bytes, media_type: str) -> None:
        self.kept[path] = data

    async def read(self, path: str) -> bytes:
        if path not in self.kept:
            raise UserError("FILE_NOT_FOUND", path)
        return self.kept[path]

    async def list(self) -> Sequence[FileEntry]:
        return [
            FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in sorted(self.kept.items())
        ]


@dataclass
class KeptContents:
    """Keeps what a blob store would."""

    kept: dict[str, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        self.kept[name] = data
        return name

    async def get(self, sizes: Mapping[str, int]) -> Mapping[str, bytes]:
        return {name: self.kept[name] for name in sizes}


def make_context(
    *, attempt: int = 1, log: KeptLog | None = None, contents: KeptContents | None = None, **settings: Any
) -> ToolContext:
    """The context of a call, with the given settings of tools."""
    return ToolContext(
        task_id="task",
        user_id="user",
        subtask="subtask",
        attempt=attempt,
        idempotency_key="key-1",
        settings=ToolSettings(**settings),
        log=log or KeptLog(),
        files=KeptFiles(),
        contents=contents or KeptContents(),
    )
