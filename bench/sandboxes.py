"""How long a program waits for its sandbox: from the call to its first line, and to its end, cold and warm.

``python -m bench.sandboxes [--runs 50] [--docker unix:///path] [bubblewrap docker]``. Cold: nothing waited. Warm: what
was started beforehand had time to stand. The pause between runs is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Sequence

from rayloom.dag.errors import Refused
from rayloom.tools.sandbox import measures
from rayloom.tools.sandbox.bubblewrap import Bubblewrap
from rayloom.tools.sandbox.docker import Docker
from rayloom.tools.sandbox.sandbox import RunSpec, Sandbox
from rayloom.tools.settings import DockerSettings, SandboxLimits

PAUSE_S = 1.5
HELLO = RunSpec(program="python", source=b"print(1)", limits=SandboxLimits())


async def measure(sandbox: Sandbox, runs: int) -> list[measures.Run]:
    """The measures of so many runs, one after the other."""
    await sandbox.probe()
    found: list[measures.Run] = []
    measures.listen(found.append)
    try:
        for _ in range(runs):
            await asyncio.sleep(PAUSE_S)
            await sandbox.run(HELLO)
    finally:
        measures.ignore(found.append)
    return found


def row(name: str, runs: Sequence[measures.Run]) -> str:
    """One line of the table, in milliseconds."""
    first = [1000 * run.first_output_s for run in runs if run.first_output_s is not None]
    whole = [1000 * run.total_s for run in runs]
    cells = [
        f"{statistics.median(each):.0f} [{min(each):.0f} to {statistics.quantiles(each, n=20)[18]:.0f}]"
        for each in (first, whole)
    ]
    return f"| {name} | {cells[0]} | {cells[1]} | {len(runs)} |"


async def main() -> None:
    """Measure what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["bubblewrap", "docker"])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--docker", default=DockerSettings().address)
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} CPUs, load {load:.1f} at the start, {time.strftime('%Y-%m-%d')}; ms, median [least to p95]"
    )
    print("| sandbox | to the first line | to the end | runs |\n|---|---|---|---|")
    kinds: dict[str, Sandbox] = {}
    if "bubblewrap" in asked.kinds:
        kinds["bubblewrap"] = Bubblewrap()
    if "docker" in asked.kinds:
        kinds["docker, cold"] = Docker(DockerSettings(address=asked.docker, warm=0))
        kinds["docker, warm"] = Docker(DockerSettings(address=asked.docker))
    for name, sandbox in kinds.items():
        try:
            runs = await measure(sandbox, asked.runs)
        except Refused as error:
            print(f"| {name} | {error.message} | | 0 |")
            continue
        print(row(name, runs), flush=True)
        if "warm" in name:
            print(f"waited for them: {sum(run.warm for run in runs)} of {len(runs)}")


if __name__ == "__main__":
    asyncio.run(main())
