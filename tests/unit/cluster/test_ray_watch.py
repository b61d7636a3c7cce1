"""The watch over Ray's processes, with real processes that have the names of Ray's."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rayloom.cluster import processes, ray_watch
from rayloom.cluster.ray_watch import RayWatch, role_of

OBEY = 'while read -r line; do eval "$line"; done'
WITHIN_S = 20.0


class Tree:
    """A driver with a GCS, a dashboard, and a raylet with an agent, a scheduler and a worker."""

    def __init__(self, folder: Path) -> None:
        os.mkfifo(folder / "raylet")
        self.driver = subprocess.Popen(
            ["driver", "-c", OBEY], executable="/bin/bash", stdin=subprocess.PIPE, start_new_session=True
        )
        assert self.driver.stdin is not None
        for title in ("/x/gcs/gcs_server", "/x/dashboard/dashboard.py"):
            self.start(title, by_raylet=False)
        command = f"(exec -a /x/raylet/raylet bash -c '{OBEY}' < {folder}/raylet) &\n"
        self.driver.stdin.write(command.encode())
        self.driver.stdin.flush()
        self._raylet = (folder / "raylet").open("w")
        for title in ("ray::RuntimeEnvAgent", "ray::_SchedulerActor", "ray::IDLE"):
            self.start(title)

    def start(self, title: str, *, by_raylet: bool = True) -> int:
        """Start a process that shows as this."""
        before = self.all(title)
        command = f"(exec -a {title} sleep 600) &\n"
        if by_raylet:
            self._raylet.write(command)
            self._raylet.flush()
        else:
            assert self.driver.stdin is not None
            self.driver.stdin.write(command.encode())
            self.driver.stdin.flush()
        while not (new := self.all(title) - before):
            assert self.driver.poll() is None
        return new.pop()

    def all(self, title: str) -> set[int]:
        """The processes with this title."""
        found = processes.descendants(self.driver.pid)
        return {each.pid for each in found if processes.title(each.pid).startswith(title)}

    def kill(self, title: str) -> int:
        """`kill -9` of one."""
        (pid,) = self.all(title)
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self) -> None:
        """End all of it."""
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.communicate()
        self._raylet.close()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path)
    yield tree
    tree.end()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


class Watching:
    """A watch that has begun; ``ends``: what Ray says of workers that have ended."""

    def __init__(self, tree: Tree) -> None:
        self.said: list[str] = []
        self.errands: list[dict[str, Any]] = []
        self.ends: dict[str, str] = {}
        self.restarts: Callable[[], bool] = lambda: True
        self.watch = RayWatch(tree.driver.pid, tell=self.said.append, errand=self._errand, services=list)
        self.failed = asyncio.create_task(self.watch.until_failed())

    async def _errand(self, **what: Any) -> object:
        self.errands.append(what)
        return self.restarts() if "restart" in what else self.ends

    async def until_said(self, text: str) -> str:
        """The line with this text in it, when it has been said."""
        await until(lambda: any(text in line for line in self.said))
        return next(line for line in self.said if text in line)


@asynccontextmanager
async def watching(tree: Tree) -> AsyncIterator[Watching]:
    watching = Watching(tree)
    # It has taken in what there is before it waits for the first time.
    await asyncio.sleep(0)
    yield watching
    watching.failed.cancel()
    await asyncio.wait([watching.failed])


@pytest.mark.parametrize("title", ["/x/gcs/gcs_server", "/x/raylet/raylet", "ray::RuntimeEnvAgent"])
async def test_watch_names_what_ended_when_ray_can_not_live_without_it(tree: Tree, title: str) -> None:
    async with watching(tree) as watched:
        pid = tree.kill(title)
        reason = await asyncio.wait_for(watched.failed, WITHIN_S)
    name = role_of(title + " ").name
    assert f"the {name} (process {pid}) ended" in reason


async def test_watch_has_the_dashboard_started_again(tree: Tree) -> None:
    async with watching(tree) as watched:
        watched.restarts = lambda: bool(tree.start("/x/dashboard/dashboard.py", by_raylet=False))
        pid = tree.kill("/x/dashboard/dashboard.py")
        assert await watched.until_said(f"the dashboard (process {pid}) ended")
        assert await watched.until_said("the dashboard of Ray is back after")
        assert watched.errands == [{"restart": "dashboard"}]
        assert not watched.failed.done()


async def test_watch_notices_what_ends_while_the_dashboard_starts(tree: Tree) -> None:
    async with watching(tree) as watched:
        killed: list[int] = []

        def restart() -> bool:
            killed.append(tree.kill("ray::RuntimeEnvAgent"))
            return bool(tree.start("/x/dashboard/dashboard.py", by_raylet=False))

        watched.restarts = restart
        tree.kill("/x/dashboard/dashboard.py")
        reason = await asyncio.wait_for(watched.failed, WITHIN_S)
        assert f"the runtime env agent (process {killed[0]}) ended" in reason


async def test_watch_fails_when_the_dashboard_does_not_start_again(tree: Tree) -> None:
    async with watching(tree) as watched:
        watched.restarts = lambda: False
        tree.kill("/x/dashboard/dashboard.py")
        assert "does not start again" in await asyncio.wait_for(watched.failed, WITHIN_S)


async def test_watch_tells_when_an_actor_ended_by_accident_and_is_back(tree: Tree) -> None:
    async with watching(tree) as watched:
        pid = tree.kill("ray::_SchedulerActor")
        watched.ends = {str(pid): "SYSTEM_ERROR: connection error code 2"}
        line = await watched.until_said(f"the scheduler (process {pid}) ended")
        assert "Ray starts it again" in line
        new = tree.start("ray::_SchedulerActor")
        assert f"(process {new})" in await watched.until_said("the scheduler is back after")


async def test_watch_fails_when_an_actor_is_not_back_in_time(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_watch, "BACK_S", 0.5)
    async with watching(tree) as watched:
        pid = tree.kill("ray::_SchedulerActor")
        watched.ends = {str(pid): "SYSTEM_ERROR: connection error code 2"}
        reason = await asyncio.wait_for(watched.failed, WITHIN_S)
    assert f"the scheduler (process {pid}) ended and was not back after" in reason


async def test_watch_tells_of_a_worker_only_when_it_ended_by_accident(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_watch, "EVERY_S", 0.05)
    async with watching(tree) as watched:
        # Ray says nothing of this one: it was meant to end.
        first = tree.kill("ray::IDLE")
        await until(lambda: len(watched.errands) >= ray_watch.TRIES)
        second = tree.start("ray::01")
        await until(lambda: second in watched.watch._parts)
        watched.ends = {str(second): "SYSTEM_ERROR: connection error code 2"}
        os.kill(second, signal.SIGKILL)
        assert "process " + str(second) in await watched.until_said("ended by accident")
        assert str(first) not in " ".join(watched.said)


@pytest.mark.parametrize(
    ("title", "name", "care"),
    [
        ("ray::ServeReplica:rayloom:Api.handle_request", "API replica", "ray"),
        ("ray::ServeController.listen_for_change", "Serve controller", "ray"),
        (
            'ray-dashboard-JobHead-0 (python -c "from multiprocessing.forkserver import main")',
            "dashboard module",
            "ray",
        ),
        ("python -c from multiprocessing.forkserver import main; main(25)", "fork server of the dashboard", "driver"),
        ("python -u /x/ray/_private/log_monitor.py --session-dir=/tmp", "log monitor", "driver"),
        ("python -u /x/ray/autoscaler/_private/monitor.py --logs-dir=/tmp", "autoscaler monitor", "driver"),
        ("ray::DashboardAgent", "dashboard agent", "fatal"),
        ("postgres: checkpointer ", "checkpointer", "postgres"),
        ("ray::IDLE", "worker", "worker"),
    ],
)
def test_role_is_known_by_the_command_line(title: str, name: str, care: str) -> None:
    role = role_of(title)
    assert (role.name, role.care) == (name, care)
