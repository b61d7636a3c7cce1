"""`python -m bench.planner`: the splitter on recorded answers, or with a model (`--live`); or how long plans take
(`--makespan`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.planner.live import live_models
from bench.planner.makespan import measure, parallel, table
from bench.planner.records import GOOD, Record, records
from bench.planner.run import HEAD, Result, run_live, run_recorded, summary


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the JSON."""
    chosen = _parser().parse_args(arguments)
    if chosen.makespan:
        found = measure(_wanted(parallel(), chosen))
        _write(chosen.json, {name: [asdict(each) for each in timed] for name, timed in found.items()})
        print(table(found))
        return 0
    if chosen.live:
        results = asyncio.run(_live(_wanted(records().values(), chosen)))
        rows = [summary(results).as_markdown("live")]
    else:
        results = asyncio.run(run_recorded())
        good = [result for result in results if result.kind == GOOD]
        broken = [result for result in results if result.kind != GOOD]
        rows = [summary(good).as_markdown("good"), summary(broken).as_markdown("broken")]
        for result in broken:
            if result.score is None:
                print(f"not mended: {result.kind} ({result.record}): {result.problem}")
    _write(chosen.json, [asdict(result) for result in results])
    print("\n".join([HEAD, *rows]))
    return 0


def _wanted(known: Iterable[Record], chosen: argparse.Namespace) -> list[Record]:
    named = [record for record in known if not chosen.records or record.id in chosen.records]
    return named[: chosen.limit]


def _write(path: Path | None, results: object) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")


async def _live(wanted: Sequence[Record]) -> list[Result]:
    async with live_models() as models:
        return await run_live(models, wanted, _tell)


def _tell(result: Result) -> None:
    made = (
        "no plan" if result.score is None else f"node F1 {result.score.node_f1:.2f}, edge F1 {result.score.edge_f1:.2f}"
    )
    print(f"{result.record}: {made}, {result.repairs} rounds, {result.took_s:.1f} s {result.problem}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.planner", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("records", nargs="*", metavar="RECORD", help="with --live, --makespan: only these")
    parser.add_argument("--live", action="store_true", help="ask the model that RAYLOOM_LLM_* name")
    parser.add_argument("--makespan", action="store_true", help="run the gold graphs, with a second for each call")
    parser.add_argument("--limit", type=int, help="with --live, --makespan: only the first so many")
    parser.add_argument("--json", type=Path, help="write every result here")
    return parser


if __name__ == "__main__":
    sys.exit(main())
