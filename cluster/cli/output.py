"""What the commands say: for people on a terminal, as plain lines in a pipe, as the API's JSON when asked.

In a pipe a table is one line a row, columns parted by tabs, no colours, no header; nothing is ever cut off.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson
import typer

from rayloom.dag.values import Json, JsonObject

if TYPE_CHECKING:
    from rich.console import Console

STATUS_STYLES = {
    "COMPLETED": "green",
    "RUNNING": "cyan",
    "PROCESSING": "cyan",
    "SPLITTING": "cyan",
    "QUEUED": "blue",
    "READY": "dim",
    "PENDING": "dim",
    "AWAITING_APPROVAL": "magenta",
    "FAILED": "red",
    "BLOCKED": "red",
    "SKIPPED": "yellow",
    "CANCELLED": "yellow",
}


class Output:
    """Where a command's answer goes: standard output, in one of the three forms."""

    def __init__(self, *, as_json: bool, console: Console | None = None) -> None:
        self.as_json = as_json
        self._console = console

    @property
    def rich(self) -> bool:
        """Whether a person is watching: this is a terminal and no JSON was asked for."""
        terminal = sys.stdout.isatty() if self._console is None else self._console.is_terminal
        return terminal and not self.as_json

    @property
    def console(self) -> Console:
        """Rich's console, made on standard output when first needed: the import takes time."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False)
        return self._console

    def json(self, document: object) -> None:
        """The API's own document: indented on a terminal, one line in a pipe."""
        option = orjson.OPT_INDENT_2 if sys.stdout.isatty() else 0
        typer.echo(_escaped(orjson.dumps(document, option=option).decode()))

    def line(self, text: str = "") -> None:
        """One plain line."""
        typer.echo(printable(text))

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows with a heading on a terminal; without it, parted by tabs, in a pipe."""
        if not self.rich:
            for row in rows:
                typer.echo("\t".join(one_line(cell) for cell in row))
            return
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in headings:
            table.add_column(heading, overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(cell), style=STATUS_STYLES.get(str(cell), "")) for cell in row))
        self.console.print(table)

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, one a line."""
        width = max((len(name) for name, _ in pairs), default=0) if self.rich else 0
        for name, value in pairs:
            typer.echo(f"{name.ljust(width)}  {one_line(value)}" if self.rich else f"{name}\t{one_line(value)}")

    def value(self, value: Json) -> None:
        """A value for reading: text as it is, anything else as indented JSON."""
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
        typer.echo(printable(text))


def complain(message: str) -> None:
    """One line on standard error."""
    typer.echo(f"rayloom: {one_line(message)}", err=True)


def items_of(document: JsonObject, name: str) -> list[JsonObject]:
    """The objects of a list in an answer."""
    items = document.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def one_line(value: object) -> str:
    """A value in one line, whatever it holds; None is empty."""
    if value is None:
        return ""
    return " ".join(printable(str(value)).split())


def printable(text: str) -> str:
    """Text that can't steer a terminal: tools and models write titles, logs and results."""
    return "".join(c if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") else "\ufffd" for c in text)


def _escaped(document: str) -> str:
    # JSON leaves DEL and the C1 controls as they are, and a terminal obeys them; escaped it is the same JSON.
    return "".join(f"\\u{ord(c):04x}" if "\x7f" <= c <= "\x9f" else c for c in document)


def seconds(value_ms: object) -> str:
    """A duration given in milliseconds, as a person says it."""
    if not isinstance(value_ms, int | float):
        return ""
    if value_ms < 1_000:
        return f"{value_ms:.0f} ms"
    if value_ms < 60_000:
        return f"{value_ms / 1_000:.1f} s"
    minutes, rest = divmod(round(value_ms / 1_000), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
