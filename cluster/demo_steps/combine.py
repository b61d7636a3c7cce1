"""Runs in the sandbox: join the measurements of all rooms into one section of the report. Standard library only.

In: one ``<room>.json`` each, and the section's name on standard input. Out: Markdown on standard output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FLOORS = {"dag": 0, "tools": 1, "db": 1, "serve": 2, "actors": 2, "cluster": 3}
HARDEST = 10


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in (headings, marks, *rows))


def rooms(measured: list[dict[str, Any]]) -> str:
    """How large each room is, how it is documented, and the sum."""
    counted = ("files", "lines", "code_lines", "functions", "classes")
    rows = [[m["room"], *(m[c] for c in counted), _share(m["documented"], m["public"])] for m in measured]
    public, documented = sum(m["public"] for m in measured), sum(m["documented"] for m in measured)
    rows.append(["**all**", *(sum(m[c] for m in measured) for c in counted), _share(documented, public)])
    return table(("room", "files", "lines", "of code", "functions", "classes", "public names documented"), rows)


def arrows(measured: list[dict[str, Any]]) -> str:
    """Who imports whom, and whether an import runs upwards or to a neighbour."""
    names = [m["room"] for m in measured]
    rows = [[f"{m['room']} imports", *(m["imports"].get(name, 0) or "" for name in names)] for m in measured]
    wrong = [
        f"{m['room']} → {name}"
        for m in measured
        for name, count in sorted(m["imports"].items())
        if count and name != m["room"] and FLOORS.get(name, 99) >= FLOORS.get(m["room"], -1)
    ]
    verdict = f"Against the rules: {', '.join(wrong)}." if wrong else "Every import runs downwards, as it should."
    return table(("", *names), rows) + "\n\n" + verdict


def hardest(measured: list[dict[str, Any]]) -> str:
    """The functions with the most ways through them."""
    functions = sorted(
        (function for m in measured for function in m["hardest"]), key=lambda f: (-f["ways"], -f["lines"], f["where"])
    )
    return table(
        ("function", "ways through", "lines"),
        [[f"`{f['name']}` ({f['where']})", f["ways"], f["lines"]] for f in functions[:HARDEST]],
    )


SECTIONS = {"rooms": rooms, "arrows": arrows, "hardest": hardest}


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"


def main() -> None:
    """Read, join, write."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(Path().glob("*.json"))}
    missing = [f"measure-{room}" for room, text in texts.items() if not text]
    if missing:
        sys.exit(f"{', '.join(missing)} printed nothing: look at its stderr and its timed_out")
    measured = [json.loads(text) for text in texts.values()]
    measured.sort(key=lambda m: (FLOORS.get(m["room"], 99), m["room"]))
    sys.stdout.write(SECTIONS[sys.stdin.read().strip()](measured))


if __name__ == "__main__":
    main()
