"""What the commands say: for people on a terminal, as plain lines in a pipe, as the API's JSON when asked.

In a pipe a table is one line a row, columns parted by tabs, no colours, no header; nothing is ever cut off. All that a
command prints of data passes `printable` or `json_text`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

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


# Controls but tab and line feed; soft hyphen, zero-width and bidirectional marks; fillers that look like nothing;
# interlinear marks; tags; lone surrogates. A joiner between two emoji, and one variation selector after a character
# that is seen, only choose how that is drawn.
_EMOJI: Final = "\u2190-\u2bff\U0001f000-\U0001faff"
_SELECTORS: Final = "\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
_HIDDEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u200b\u200c\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
    f"|(?<![{_EMOJI}\ufe0f])\u200d|\u200d(?![{_EMOJI}])"
    f"|(?:^|(?<=[\\s\x00-\x20\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff{_SELECTORS}]))[{_SELECTORS}]",
)


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
        typer.echo(json_text(document, indent=sys.stdout.isatty()))

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
            name = one_line(name)
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
    """Text that can't steer a terminal or hide in it: tools, models and strangers write titles, logs and results.

    Control, bidirectional and invisible characters are shown escaped (``\\x1b``, ``\\u202e``). Twice is as once.
    """
    return _HIDDEN.sub(_shown, text.replace("\r\n", "\n"))


def json_text(document: object, *, indent: bool = False) -> str:
    """A document as JSON in which the same characters are escaped, as JSON allows: what it says is unchanged."""
    text = orjson.dumps(document, option=orjson.OPT_INDENT_2 if indent else 0).decode()
    return _HIDDEN.sub(lambda found: json.dumps(found.group())[1:-1].replace("\x7f", "\\u007f"), text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


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
