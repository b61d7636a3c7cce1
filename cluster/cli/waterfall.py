"""A trace as a text waterfall: every span under its parent, with a bar that shows when it ran and how long."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rayloom.cluster.cli.output import Output, one_line, seconds
from rayloom.dag.values import JsonObject

BAR_MIN_CHARS = 20
NAME_CHARS = 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One span of the picture; ``start_ms`` counts from the beginning of the trace."""

    label: str
    depth: int
    start_ms: float
    duration_ms: float
    ok: bool


def bars(trace: JsonObject) -> list[Bar]:
    """The spans of a trace in the order of a waterfall: children under their parent, by time."""
    given = trace.get("spans")
    spans = [span for span in (given if isinstance(given, list) else []) if isinstance(span, dict)]
    starts = {str(span.get("span_id")): start for span in spans if (start := _epoch_ms(span.get("started_at")))}
    origin = min(starts.values(), default=0.0)
    children: dict[str | None, list[JsonObject]] = {}
    for span in spans:
        parent = span.get("parent_id")
        children.setdefault(str(parent) if str(parent) in starts else None, []).append(span)
    for siblings in children.values():
        siblings.sort(key=lambda span: starts.get(str(span.get("span_id")), 0.0))
    drawn: list[Bar] = []
    pending = [(span, 0) for span in reversed(children.pop(None, []))]
    while pending:
        span, depth = pending.pop()
        key = str(span.get("span_id"))
        duration = span.get("duration_ms")
        start_ms = starts.get(key, origin) - origin
        drawn.append(
            Bar(
                label=_label(span),
                depth=depth,
                start_ms=start_ms,
                duration_ms=float(duration) if isinstance(duration, int | float) else 0.0,
                ok=span.get("status") != "error",
            )
        )
        pending.extend((child, depth + 1) for child in reversed(children.pop(key, [])))
    return drawn


def show_waterfall(out: Output, trace: JsonObject) -> None:
    """Draw a trace; in a pipe one line a span: start and duration in ms, status, name."""
    drawn = bars(trace)
    if not out.rich:
        for bar in drawn:
            status = "ok" if bar.ok else "error"
            out.line(f"{bar.start_ms:.0f}\t{bar.duration_ms:.0f}\t{status}\t{'  ' * bar.depth}{bar.label}")
        return
    from rich.text import Text

    whole_ms = max((bar.start_ms + bar.duration_ms for bar in drawn), default=0.0) or 1.0
    width = max(BAR_MIN_CHARS, out.console.width - NAME_CHARS - 12)
    for bar in drawn:
        name = f"{'  ' * bar.depth}{bar.label}"
        begin = min(width - 1, int(bar.start_ms / whole_ms * width))
        length = max(1, min(width - begin, round(bar.duration_ms / whole_ms * width)))
        line = Text(no_wrap=True, overflow="crop")
        line.append(name[:NAME_CHARS].ljust(NAME_CHARS + 1))
        line.append(" " * begin + "█" * length + " " * (width - begin - length), style="green" if bar.ok else "red")
        line.append(f" {seconds(bar.duration_ms)}", style="dim")
        out.console.print(line)


def _label(span: JsonObject) -> str:
    kind, name = one_line(span.get("kind")), one_line(span.get("name"))
    subtask, attempt = one_line(span.get("subtask")), span.get("attempt")
    parts = [kind] if name in ("", kind) else [kind, name]
    if subtask and subtask not in name:
        parts.append(subtask)
    if kind == "attempt" and isinstance(attempt, int):
        parts.append(f"#{attempt}")
    return " ".join(part for part in parts if part)


def _epoch_ms(value: object) -> float:
    if not isinstance(value, str):
        return 0.0
    try:
        return datetime.fromisoformat(value).timestamp() * 1_000
    except ValueError:
        return 0.0
