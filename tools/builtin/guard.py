"""A limited child process for one evaluation: CPU, memory and output are bounded by the kernel, not by good will."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

import orjson

from rayloom.dag.errors import Refused, Transient, UserError
from rayloom.tools.native import json_bytes
from rayloom.tools.sandbox import processes
from rayloom.tools.sandbox.sandbox import ignore_line
from rayloom.tools.sandbox.supervisor import Child
from rayloom.tools.settings import SandboxLimits, ToolSettings

_log = logging.getLogger(__name__)

WALL_ALLOWANCE_S: Final = 55.0
"""Wall clock beyond the CPU limit: on a busy machine all of it takes many times as long."""

_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from rayloom.tools.builtin.evaluate import main; main()"
)


async def evaluate(request: dict[str, Any], settings: ToolSettings) -> Any:
    """What ``rayloom.tools.builtin.evaluate.answer`` gives for a request.

    Raises its errors, Refused (``EVALUATION_LIMIT``) when it takes too much CPU, memory or output, and Transient
    (``EVALUATION_FAILED``) when the process fails, or has not had the CPU that it may use in a minute.
    """
    limits = SandboxLimits(
        wall_s=settings.evaluation_cpu_s + WALL_ALLOWANCE_S,
        memory_mb=settings.evaluation_memory_mb,
        pids=64,
        # JSON may write a character as six.
        output_kb=6 * settings.evaluation_max_bytes // 1024 + 64,
        disk_mb=1,
    )
    data = os.memfd_create("rayloom-evaluate", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(data), "wb") as file:
            file.write(json_bytes(request, ""))
        script = "; ".join(
            [
                processes.limits_script(limits, address_space=True, processes=False),
                f"ulimit -t {settings.evaluation_cpu_s} || exit 125",
                # Opened anew by its path: another offset, and no descriptor number that a shell can't spell.
                f'echo; read -r go || exit 125; exec "$@" </proc/self/fd/{data}',
            ]
        )
        paths = orjson.dumps([path for path in sys.path if path]).decode()
        try:
            child = Child(
                ["sh", "-c", script, "sh", sys.executable, "-I", "-c", _BOOT, paths],
                executable="/bin/sh",
                env={"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"},
                limits=limits,
                on_line=ignore_line,
                pass_fds=(data,),
                handshake=True,
                # It is short, and held to its CPU: behind programs that go on for long it would never come to its end.
                steps_back=False,
            )
        except OSError as error:
            raise Transient("EVALUATION_FAILED", f"can't start a process: {error}") from error
    finally:
        os.close(data)
    try:
        await child.started()
        child.release()
        verdict = await child.watch()
    finally:
        await child.close()
    if verdict == "timed_out":
        # It has used less CPU than it may: the machine is what is slow.
        raise Transient("EVALUATION_FAILED", f"it was not done within {limits.wall_s:g} s on a busy machine")
    if verdict != "exited" or child.stdout.truncated or (child.exit_code or 0) > 128:
        raise Refused(
            "EVALUATION_LIMIT",
            f"it needs more than {settings.evaluation_cpu_s} s, {settings.evaluation_memory_mb} MiB or "
            f"{settings.evaluation_max_bytes} bytes of output",
        )
    if child.exit_code != 0:
        # What it said is about our own machine, and for its administrator alone.
        _log.error("evaluation.failed", extra={"exit_code": child.exit_code, "stderr": child.stderr.text()[-2_000:]})
        raise Transient("EVALUATION_FAILED", f"the process ended with {child.exit_code}")
    answer = orjson.loads(child.stdout.text())
    if "code" in answer:
        raise (Refused if answer["refused"] else UserError)(answer["code"], answer["message"])
    return answer["value"]
