"""What a tool needs from outside, as Protocols: the engine hands the implementations in with the context of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypedDict

from rayloom.dag.values import Json

Stream = Literal["system", "stdout", "stderr", "tool", "model"]
Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class LogPort(Protocol):
    """The log of the attempt. Lines are buffered by the implementation, so that writing one never waits."""

    def line(
        self,
        message: str,
        *,
        stream: Stream = "tool",
        level: Level = "INFO",
        fields: Mapping[str, Json] | None = None,
    ) -> None:
        """Append one line; never raises and never blocks."""


class FileEntry(TypedDict):
    """One file of a task's workspace; ``size`` in bytes."""

    path: str
    size: int
    sha256: str


class FilesPort(Protocol):
    """The workspace of the task: the same files on every node. Paths are relative and already normalised."""

    async def write(self, path: str, data: bytes, media_type: str) -> None:
        """Store a file, in place of an earlier one of the same path."""

    async def read(self, path: str) -> bytes:
        """The content of a file. Raises UserError (``FILE_NOT_FOUND``)."""

    async def list(self) -> Sequence[FileEntry]:
        """Every file, sorted by path."""


class ContentsPort(Protocol):
    """What the blob store keeps, by the SHA-256 of each."""

    async def get(self, sizes: Mapping[str, int]) -> Mapping[str, bytes]:
        """The contents of these names; with each, its size in bytes as far as it is known.

        Raises Transient while the store is away, and Bug for what it does not have.
        """
