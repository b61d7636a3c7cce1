"""A soak run: ``python -m tests.soak.run --subtasks 200000``.

Starts a rayloom with services of its own, runs no-op subtasks in tasks of 2,000, two tasks at a time, and samples the
memory of every process. Writes the samples as JSON and a plot as PNG. Exit code 1: a process has grown beyond the bound
since the base, the first 20,000 subtasks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any, Final

import httpx2

from tests.integration.instance import Instance, running
from tests.soak.memory import MB, Sample, base_of, bound_mb, growths, measure, table
from tests.soak.plot import draw

OF_A_TASK: Final = 2_000
AT_ONCE: Final = 2
LOOK_S: Final = 0.5
SAMPLE_S: Final = 5.0


class Soak:
    """One run against an instance that serves. ``samples`` are in the order of time."""

    def __init__(self, instance: Instance, subtasks: int) -> None:
        self._instance = instance
        self._subtasks = subtasks
        self._begun = time.monotonic()
        self._done = 0
        self.samples: list[Sample] = []

    def sample(self) -> Sample:
        """Measure all processes now."""
        uses = measure(self._instance.processes())
        self.samples.append(Sample(at_s=time.monotonic() - self._begun, done=self._done, uses=uses))
        return self.samples[-1]

    def run(self) -> tuple[Sample, Sample]:
        """Run all subtasks; gives the samples of the base and of the end."""
        base: Sample | None = None
        self.sample()
        with self._instance.http() as http:
            sizes = _sizes(self._subtasks)
            open_: dict[str, int] = {}
            ended = 0
            next_s = time.monotonic() + SAMPLE_S
            while True:
                while len(open_) < AT_ONCE and (size := next(sizes, 0)):
                    open_[_submit(http, size)] = size
                if not open_:
                    break
                Event().wait(LOOK_S)
                done = {task: _completed(http, task) for task in open_}
                for task, size in list(open_.items()):
                    if done[task] == size:
                        ended += open_.pop(task)
                self._done = ended + sum(done[task] for task in open_)
                if base is None and self._done >= base_of(self._subtasks):
                    base = self.sample()
                elif time.monotonic() > next_s:
                    next_s = time.monotonic() + SAMPLE_S
                    self._tell(self.sample())
        end = self.sample()
        assert base is not None
        return base, end

    def _tell(self, sample: Sample) -> None:
        role, size = max(sample.largest().items(), key=lambda each: each[1])
        print(f"{sample.at_s:6.0f} s {sample.done:7} done; the largest: {role}, {size / MB:.0f} MB", flush=True)


def _sizes(subtasks: int) -> Iterator[int]:
    while subtasks > 0:
        yield min(OF_A_TASK, subtasks)
        subtasks -= OF_A_TASK


def _submit(http: httpx2.Client, size: int) -> str:
    steps = [{"id": f"n{place}", "type": "TOOL", "tool": "core.noop", "input": {}} for place in range(size)]
    answer = http.post("/tasks", json={"plan": {"subtasks": steps}})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["task_id"])


def _completed(http: httpx2.Client, task: str) -> int:
    answer = http.get(f"/tasks/{task}")
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert shown["status"] in ("PENDING", "SPLITTING", "PROCESSING", "COMPLETED"), shown
    return int(shown["progress"]["completed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, write the samples and the plot, print the growth of each role; 1 where one is beyond the bound."""
    chosen = _parser().parse_args(arguments)
    with running() as instance:
        soak = Soak(instance, chosen.subtasks)
        base, end = soak.run()
    bound, found = bound_mb(chosen.subtasks), growths(base, end)
    beyond = [each for each in found if each.grown_mb > bound]
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(_told(chosen.subtasks, bound, soak.samples, base.done), indent=1) + "\n")
    draw(soak.samples, base.done, chosen.png)
    print(f"\n{table(found)}\n\n{end.done} subtasks in {end.at_s:.0f} s; base: {base.done}; bound: {bound:.0f} MB")
    for each in beyond:
        print(f"{each.role} has grown by {each.grown_mb:.0f} MB, of {bound:.0f}", file=sys.stderr)
    return 1 if beyond else 0


def _told(subtasks: int, bound: float, samples: Sequence[Sample], base: int) -> dict[str, Any]:
    return {
        "subtasks": subtasks,
        "base": base,
        "bound_mb": bound,
        "samples": [
            {
                "at_s": round(sample.at_s, 1),
                "done": sample.done,
                "mb": {f"{use.role} {use.process.pid}": round(use.size / MB, 1) for use in sample.uses},
            }
            for sample in samples
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--subtasks", type=int, default=200_000, help="how many (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/soak.json"), help="(default: %(default)s)")
    parser.add_argument("--png", type=Path, default=Path("build/soak.png"), help="(default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
