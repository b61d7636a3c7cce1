"""Runs in the sandbox: measure the Python sources of one room. Standard library only.

In: ``sources.zip``, and the room's name on standard input. Out: one JSON object on standard output.
"""

from __future__ import annotations

import ast
import json
import sys
import zipfile
from collections import Counter
from typing import Any

TOP = 20
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def complexity(function: ast.AST) -> int:
    """McCabe's number: one way through, and one more for every decision."""
    ways = 1
    for node in ast.walk(function):
        if isinstance(node, _BRANCHES):
            ways += 1
        elif isinstance(node, ast.BoolOp):
            ways += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            ways += 1 + len(node.ifs)
    return ways


def imported(tree: ast.AST) -> Counter[str]:
    """How often each room of rayloom is imported."""
    rooms: Counter[str] = Counter()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms.update(name.split(".")[1] for name in names if name.startswith("rayloom."))
    return rooms


def measure(room: str, sources: dict[str, str]) -> dict[str, Any]:
    """The numbers of one room, from the text of its files by name."""
    lines = code_lines = classes = public = documented = 0
    functions: list[dict[str, Any]] = []
    imports: Counter[str] = Counter()
    for path, text in sorted(sources.items()):
        tree = ast.parse(text, path)
        stripped = [line.strip() for line in text.splitlines()]
        lines += len(stripped)
        code_lines += sum(1 for line in stripped if line and not line.startswith("#"))
        imports += imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
                classes += isinstance(node, ast.ClassDef)
                if not node.name.startswith("_"):
                    public += 1
                    documented += ast.get_docstring(node) is not None
            if isinstance(node, _FUNCTIONS):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                where = f"{path}:{node.lineno}"
                functions.append({"name": node.name, "where": where, "lines": length, "ways": complexity(node)})
    hardest = sorted(functions, key=lambda f: (-f["ways"], -f["lines"], f["where"]))
    return {
        "room": room,
        "files": len(sources),
        "lines": lines,
        "code_lines": code_lines,
        "functions": len(functions),
        "classes": classes,
        "public": public,
        "documented": documented,
        "mean_ways": round(sum(f["ways"] for f in functions) / max(len(functions), 1), 2),
        "imports": dict(imports),
        "hardest": hardest[:TOP],
    }


def main() -> None:
    """Read, measure, write."""
    with zipfile.ZipFile("sources.zip") as archive:
        sources = {name: archive.read(name).decode("utf-8") for name in archive.namelist()}
    json.dump(measure(sys.stdin.read().strip(), sources), sys.stdout)


if __name__ == "__main__":
    main()
