"""Processes as /proc shows them, with real ones."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from rayloom.cluster import processes


def test_exit_signal_of_a_zombie_is_known_until_it_is_reaped() -> None:
    child = subprocess.Popen(["sleep", "600"])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.exit_signal(child.pid) == signal.SIGKILL
    child.wait()
    assert processes.exit_signal(child.pid) is None


@pytest.mark.parametrize(("number", "said"), [(signal.SIGKILL, " by SIGKILL"), (None, ""), (99, " by signal 99")])
def test_signal_is_named_for_a_sentence(number: int | None, said: str) -> None:
    assert processes.named(number) == said


def test_descendants_leave_out_the_named_trees() -> None:
    tree = subprocess.Popen(["bash", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert tree.stdout is not None
    below = int(tree.stdout.readline())
    try:
        found = {each.pid for each in processes.descendants(os.getpid())}
        assert {tree.pid, below} <= found
        assert not {tree.pid, below} & {each.pid for each in processes.descendants(os.getpid(), but=[tree.pid])}
        assert processes.children(tree.pid) == [below]
    finally:
        for pid in (below, tree.pid):
            os.kill(pid, signal.SIGKILL)
        tree.communicate()


def test_kill_spares_a_later_process_with_the_same_number() -> None:
    child = subprocess.Popen(["sleep", "600"])
    seen = processes.look(child.pid)
    assert seen is not None
    processes.kill(processes.Process(seen.pid, seen.parent, seen.state, seen.born - 1))
    assert child.poll() is None
    processes.kill(seen)
    assert child.wait(10) == -signal.SIGKILL
