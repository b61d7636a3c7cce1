"""The inputs of a plan as they are written down: in the rows, or in the blob store where they are too large for one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from rayloom.dag.values import JsonObject
from rayloom.dag.verified import VerifiedPlan
from rayloom.db.blobs import BlobStore

PUTS: Final = 4
"""So many inputs of one plan are put at once."""
APART: Final = "{}"
"""What a row has for an input that is kept apart."""


@dataclass(frozen=True, slots=True)
class KeptInput:
    """The JSON text of an input; for one that is kept apart ``APART``, and its name in the blob store."""

    text: str
    blob: str | None = None


async def keep_input(value: JsonObject, blobs: BlobStore) -> KeptInput:
    """An input, durable if it is a large one. Raises Transient while the blob store is away."""
    raw = orjson.dumps(value)
    if len(raw) <= blobs.inline_max_bytes:
        return KeptInput(raw.decode())
    return KeptInput(APART, (await blobs.put(raw)).sha256)


async def keep_inputs(
    plan: VerifiedPlan, blobs: BlobStore, *, taken: frozenset[str] = frozenset()
) -> Sequence[KeptInput]:
    """Those of all subtasks of a plan, in its order, nothing of those ``taken`` over. Raises as ``keep_input``.

    Equal ones are put once.
    """
    inputs = [b"" if each.spec.id in taken else orjson.dumps(each.spec.input) for each in plan.subtasks]
    names = await _put(dict.fromkeys(raw for raw in inputs if len(raw) > blobs.inline_max_bytes), blobs)
    return [KeptInput(APART, names[raw]) if raw in names else KeptInput(raw.decode()) for raw in inputs]


async def _put(contents: Iterable[bytes], blobs: BlobStore) -> dict[bytes, str]:
    names: dict[bytes, str] = {}
    turns = asyncio.Semaphore(PUTS)

    async def put(raw: bytes) -> None:
        async with turns:
            names[raw] = (await blobs.put(raw)).sha256

    try:
        async with asyncio.TaskGroup() as group:
            for raw in contents:
                group.create_task(put(raw))
    except ExceptionGroup as failed:
        # The first; the others were given up for it.
        raise failed.exceptions[0] from None
    return names
