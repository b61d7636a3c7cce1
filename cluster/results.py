"""The results file of a batch: lines are only ever appended, so that it is a valid prefix whenever we are killed.

Beside it stands ``<name>.batch`` with the identity of the batch, written first: results of another input, or a file
that is something else altogether, are never appended to and never cut. One process at a time may hold it.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from rayloom.dag.errors import UserError
from rayloom.dag.values import JsonObject


class ResultsFile:
    """An open results file. ``numbers`` and ``statuses`` tell of the lines that it had when it was opened."""

    def __init__(self, path: Path, batch_id: str) -> None:
        self.path, self.batch_id = path, batch_id
        self.numbers: list[int] = []
        self.statuses: list[str] = []
        self._mark = path.with_name(f"{path.name}.batch")
        self._file = -1

    @property
    def count(self) -> int:
        """How many results were there when it was opened."""
        return len(self.numbers)

    def __enter__(self) -> Self:
        """Open, lock, check and repair. Raises UserError when the file is taken or belongs to something else."""
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            self._take()
        except OSError as error:
            self._close()
            raise self._unwritable(error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.fsync(self._file)
        finally:
            self._close()

    def append(self, result: JsonObject) -> None:
        """Write one result. Raises UserError when the disk refuses."""
        line = memoryview(orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE))
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("RESULTS_TAKEN", f"another batch is writing {self.path}") from None
        if os.fstat(self._file).st_size == 0:
            self._write_mark()
            return
        try:
            owner = self._mark.read_text(encoding="ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            owner = ""
        if owner != self.batch_id:
            raise UserError(
                "RESULTS_OF_ANOTHER", f"{self.path} holds something else than this batch's results: give another --out"
            )
        self._repair()

    def _write_mark(self) -> None:
        draft = self._mark.with_name(f".{self._mark.name}.{os.getpid()}")
        draft.write_text(f"{self.batch_id}\n", encoding="ascii")
        draft.replace(self._mark)

    def _repair(self) -> None:
        good = 0
        with self.path.open("rb") as file:
            for raw in file:
                result = _parsed(raw)
                if result is None:
                    break
                number, status = result
                self.numbers.append(number)
                self.statuses.append(status)
                good += len(raw)
        # What follows the first torn line was never acknowledged to anybody; it is simply done again.
        os.ftruncate(self._file, good)

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _unwritable(self, error: OSError) -> UserError:
        return UserError("NOT_WRITTEN", f"can't write {self.path}: {error.strerror or error}")


def _parsed(raw: bytes) -> tuple[int, str] | None:
    """The line number and status of a result line, or None for a torn one."""
    if not raw.endswith(b"\n"):
        return None
    try:
        result = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(result, dict) or not isinstance(result.get("line"), int):
        return None
    return result["line"], str(result.get("status") or "REFUSED")
