"""The program that becomes a server: it says why it can't, and never outlives a parent that is gone already."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rayloom.cluster.embedded.identity import myself
from rayloom.cluster.embedded.launch import CANNOT_LAUNCH


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_becomes_the_program() -> None:
    done = run(myself().command(["/bin/sh", "-c", "echo $$ $0", "name"], death_signal=15))
    assert (done.returncode, done.stdout.split()[1]) == (0, "name")


def test_it_asks_to_be_told_of_its_parents_death() -> None:
    read = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)"
    done = run(myself().command([sys.executable, "-c", read], death_signal=2))
    assert done.stdout == "2\n"


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    command = myself().command(["/bin/echo", "alive"], death_signal=15)
    command[command.index(str(os.getpid()))] = "1"
    done = run(command)
    assert (done.returncode, done.stdout) == (CANNOT_LAUNCH, "")


def test_a_program_that_is_not_there_is_named() -> None:
    done = run(myself().command(["/no/such/program"]))
    assert done.returncode == CANNOT_LAUNCH
    assert done.stderr.startswith("launch: self: /no/such/program: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_an_ordinary_user_can_not_become_another() -> None:
    command = myself().command(["/bin/echo"])
    command[command.index("self")] = "nobody"
    command[command.index("nobody") + 1] = "1"
    assert run(command).returncode == CANNOT_LAUNCH
