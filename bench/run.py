"""`python -m bench.run`: rayloom over REST beside plain Ray, turn about, in one run.

The same plain-Ray code may vary fourfold over an hour on a shared machine, so only ratios of one run say anything:
each repetition measures rayloom, then plain Ray, and medians of the repetitions are compared. While one is measured
the other is stopped; a rayloom given by --url stays up, idle. Each side gets a warm-up. Each workload is measured from
an idle system, so that its figure does not depend on what was measured before it, and once more right behind that,
with every worker that the first time needed still there. Every repetition is verified (each node ran exactly once,
none before its dependencies had ended, the value at the sink is right); one that is wrong ends the run.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from bench.over_rest import OverRest
from bench.plain_ray import PlainRay
from bench.report import SIDES, Report
from bench.server import Server
from bench.settled import settle
from bench.shapes import BrokenRun, Side, Workload, fan, workloads

# What core.noop asks for when a plan doesn't say.
DEFAULT_CPUS = 0.25
WARM_UP = fan(50)
AGAIN = "again"
"""What a figure is called that was measured right behind the first one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 1 when a repetition was wrong."""
    chosen = _parser().parse_args(arguments)
    # So that what was started for it is stopped: by default nothing would be.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    everything = workloads(chosen.seed)
    names = chosen.workloads or [each.name for each in everything]
    unknown = set(names) - {each.name for each in everything}
    if unknown:
        print(f"unknown workload: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    selected = [each for each in everything if each.name in names]
    report = Report(
        settings={
            "repeat": chosen.repeat,
            "cpus": chosen.cpus or DEFAULT_CPUS,
            "seed": chosen.seed,
            "rayloom": chosen.url or "started and stopped for each repetition, embedded services",
        }
    )
    server = None if chosen.url else Server()
    try:
        for repetition in range(1, chosen.repeat + 1):
            for side_name, side in _sides(chosen, server):
                with side as ready:
                    _measure(ready, side_name, selected, report, f"{repetition}/{chosen.repeat}")
    except BrokenRun as error:
        print(f"a repetition is wrong, so nothing counts: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.remove()
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(report.as_json(selected), indent=1) + "\n")
    print(f"\n{report.as_markdown(selected)}\n\nmedian [min–max] of {chosen.repeat}; every figure in {chosen.json}")
    return 0


def _measure(side: Side, name: str, selected: Sequence[Workload], report: Report, repetition: str) -> None:
    side.run([WARM_UP])
    for workload in selected:
        settle()
        for when in ("", AGAIN):
            for part, value in workload.measure(side).items():
                figure = " ".join(word for word in (workload.name, part, when) if word)
                report.add(name, figure, value)
                print(f"{repetition} {name:9} {figure:14} {value:9.1f} {workload.unit}", flush=True)


def _sides(chosen: argparse.Namespace, server: Server | None) -> Iterator[tuple[str, AbstractContextManager[Side]]]:
    yield SIDES[0], _rayloom(chosen, server)
    if not chosen.alone:
        yield SIDES[1], PlainRay(chosen.cpus or DEFAULT_CPUS)


@contextmanager
def _rayloom(chosen: argparse.Namespace, server: Server | None) -> Iterator[Side]:
    if server is None:
        with closing(OverRest(chosen.url.rstrip("/"), chosen.api_key, cpus=chosen.cpus)) as side:
            yield side
        return
    with server.running(), closing(OverRest(server.url, server.api_key, cpus=chosen.cpus)) as side:
        yield side


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help="W1 W2 W3t W3l W5; all when none is named")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions (default: %(default)s)")
    parser.add_argument("--cpus", type=float, help="num_cpus of each node (default: what core.noop asks for)")
    parser.add_argument("--seed", type=int, default=7, help="of W5's DAG (default: %(default)s)")
    parser.add_argument("--url", help="a rayloom that runs already, for example http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="", help="its key, with --url")
    parser.add_argument("--alone", action="store_true", help="rayloom only, without plain Ray")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
