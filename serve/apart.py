"""What the API shows of contents that are kept apart: inline as far as the contract has it, else by reference.

Where one can't be had, now or ever, the rest is shown all the same: only who asks for just that content is refused it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from rayloom.dag.errors import Bug, ErrorInfo, RayloomError, Transient
from rayloom.db import results
from rayloom.db.attempts import INLINE_BYTES
from rayloom.db.blobs import Blob
from rayloom.db.reads import Record
from rayloom.db.s3 import in_time
from rayloom.serve.deps import Deps

log = logging.getLogger(__name__)

SHOW_S: Final = 5.0
"""What is shown beside others is waited for for so long."""


@dataclass(frozen=True, slots=True)
class ShownInput:
    """An input; or, where it can't be had, why not."""

    value: object
    error: RayloomError | None = None

    def as_json(self) -> dict[str, object]:
        """As fields of a document."""
        if self.error is None:
            return {"input": self.value}
        return {"input": None, "input_error": ErrorInfo.from_exception(self.error).as_json()}


async def inline_outputs(deps: Deps, rows: Sequence[Record]) -> Mapping[str, bytes]:
    """The outputs of these subtasks that are kept apart and yet shown inline, by their hashes.

    Those that can't be had now are left out: they are shown by reference.
    """
    wanted = [
        Blob(sha256=row.output_blob, size=row.output_size)
        for row in rows
        if row.output_blob is not None and row.output_size <= INLINE_BYTES
    ]
    return await deps.backends.blobs.at_hand(wanted, within_s=SHOW_S) if wanted else {}


async def shown_input(deps: Deps, row: Record, inline: object) -> ShownInput:
    """The whole input of a subtask; ``inline``: what its row has."""
    if row.input_blob is None:
        return ShownInput(inline)
    try:
        async with in_time(SHOW_S):
            return ShownInput(orjson.Fragment(await deps.backends.blobs.get(row.input_blob)))
    except (Transient, Bug) as error:
        log.warning("input.not_shown", extra={"error": error.message})
        return ShownInput(None, error)


async def shown_result(deps: Deps, task: Record) -> object:
    """The result of a task; where it can't be put together, a reference to where it will be, of unknown size."""
    if not task.result_apart:
        return task.result
    engine = deps.backends.primary
    try:
        async with in_time(SHOW_S):
            text = await results.shown(engine, deps.backends.blobs, task.id)
    except (Transient, Bug) as error:
        log.warning("result.not_shown", extra={"error": error.message})
        return {"$blob": f"/api/v1/tasks/{task.id}/result"}
    try:
        return await results.note(engine, task.id, text)
    except Transient:
        # Somebody else will note it. A database that only reads, for one, is no reason not to show it.
        return orjson.Fragment(text)
