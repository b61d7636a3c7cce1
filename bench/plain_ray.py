"""Plain Ray: no-op remote functions, dependencies handed over as references. Nothing is durable.

It runs in a process of its own, `python -m bench.plain_ray CPUS FOLDER`, which reads shapes and answers runs, one
JSON a line, until its input ends; so its Ray starts and stops with the process.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType

from bench.shapes import BrokenRun, NodeRun, Run, Shape


class PlainRay:
    """The side of plain Ray. Use it as a context manager; ``cpus`` is what each node asks for."""

    def __init__(self, cpus: float) -> None:
        self._cpus = cpus

    def __enter__(self) -> PlainRay:
        # Short, because Ray puts sockets below it, and a socket's path may have 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="rlb", dir="/tmp")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.plain_ray", str(self._cpus), self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Rayloom's local Ray checks a token in each call: so does this one.
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, shapes: Sequence[Shape]) -> Run:
        """See Side. The clock runs in the driver process, so the pipe to it costs nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([shape.dependencies for shape in shapes]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BrokenRun(f"plain Ray's process ended with {self._process.wait(30)}")
        answer = json.loads(line)
        for shape, values in zip(shapes, answer["values"], strict=True):
            if values != _depths(shape):
                raise BrokenRun("a value that plain Ray gave is wrong")
        nodes = tuple(tuple(NodeRun(started_at=s, finished_at=f) for s, f in times) for times in answer["times"])
        return Run(seconds=answer["seconds"], nodes=nodes)


def _depths(shape: Shape) -> list[int]:
    """The value of each node: the length of the longest way to it, counted in nodes."""
    depths: list[int] = []
    for dependencies in shape.dependencies:
        depths.append(1 + max((depths[each] for each in dependencies), default=0))
    return depths


def _serve(cpus: float, folder: str) -> None:
    import ray

    ray.init(
        address="local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, _temp_dir=folder
    )

    @ray.remote(num_cpus=cpus, max_retries=0)
    def node(*dependencies: tuple[float, float, int]) -> tuple[float, float, int]:
        started_at = time.time()
        value = 1 + max((each[2] for each in dependencies), default=0)
        return started_at, time.time(), value

    for line in sys.stdin:
        begun = time.perf_counter()
        refs: list[list[ray.ObjectRef[tuple[float, float, int]]]] = []
        last: list[ray.ObjectRef[tuple[float, float, int]]] = []
        for dependencies in json.loads(line):
            mine: list[ray.ObjectRef[tuple[float, float, int]]] = []
            for each in dependencies:
                mine.append(node.remote(*(mine[index] for index in each)))
            refs.append(mine)
            last.extend(mine[index] for index in Shape(dependencies=dependencies).sinks)
        ray.get(last)
        seconds = time.perf_counter() - begun
        results = [ray.get(mine) for mine in refs]
        answer = {
            "seconds": seconds,
            "times": [[each[:2] for each in result] for result in results],
            "values": [[each[2] for each in result] for result in results],
        }
        print(json.dumps(answer), flush=True)
        del refs, last, results
    ray.shutdown()


if __name__ == "__main__":
    _serve(float(sys.argv[1]), sys.argv[2])
