"""Somebody else on a Ray cluster: ``neighbour.py ADDRESS``, which answers each command on stdin with a line of JSON."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

import ray
from ray import serve


class Theirs:
    """An application that has nothing to do with us."""

    def __call__(self) -> str:
        """Say that it is there."""
        return "still here"


def deploy() -> str:
    """Put it on Serve."""
    application: Any = serve.deployment(Theirs, ray_actor_options={"num_cpus": 0})
    serve.run(application.bind(), name="theirs", route_prefix="/theirs")
    return ask()


def ask() -> str:
    """What it says."""
    answer: str = serve.get_app_handle("theirs").remote().result(timeout_s=120)
    return answer


def seen() -> dict[str, list[str]]:
    """Names of our actors, and of everybody's applications."""
    named = ray.util.list_named_actors(all_namespaces=True)
    return {
        "actors": sorted(each["name"] for each in named if each["namespace"] == "rayloom"),
        "applications": sorted(serve.status().applications),
    }


if __name__ == "__main__":
    ray.init(address=sys.argv[1], namespace="theirs", log_to_driver=False, logging_level=logging.ERROR)
    # Ray prints messages of its cluster to stdout, whatever it was asked for.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands = {"deploy": deploy, "ask": ask, "seen": seen}
    for line in sys.stdin:
        answers.write(json.dumps(commands[line.strip()]()) + "\n")
        answers.flush()
