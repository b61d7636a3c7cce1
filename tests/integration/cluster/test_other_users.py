"""Another user of the machine finds no open door: no port, socket or file of a running rayloom."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from rayloom.dag.values import JsonObject
from tests.integration.instance import Instance
from tests.integration.listeners import listeners_of, unix_listeners_of
from tests.integration.runs import Run, echo, python, sleep
from tests.integration.waiting import wait_until

STRANGER = Path(__file__).with_name("stranger.py")
HUNT = """
import glob, json, os, socket, subprocess, sys
doors = json.loads(sys.stdin.read())
found = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("RAY")]
def attempt(what, *name):
    try:
        found.append([*name, repr(what())[:200]])
    except OSError:
        pass
for path in [*glob.glob("/proc/*/environ"), *glob.glob("/proc/*/cmdline")]:
    try:
        text = open(path, "rb").read()
    except OSError:
        continue
    if b"RAY_AUTH" in text or b"ray_auth_token" in text:
        found.append(path)
for folder, below, files in os.walk("/"):
    below[:] = [name for name in below if os.path.join(folder, name) not in ("/proc", "/sys", "/usr", "/lib")]
    found += [os.path.join(folder, name) for name in files if name in ("ray_auth_token", "auth_token", "api_key")]
for path in doors["files"]:
    attempt(lambda: open(path).read(), path)
    attempt(lambda: os.listdir(path), path)
for port in doors["ports"]:
    attempt(lambda: socket.create_connection(("127.0.0.1", port), 2), port)
for path in doors["sockets"]:
    attempt(lambda: socket.socket(socket.AF_UNIX).connect(path), path)
print(json.dumps(found))
"""
"""Looks in a sandbox for the token by its name, by its path and in all processes, and for the ports of Ray."""
JOB_S = 60.0
SANDBOXED = "sleep 86325"
WORD = "zebra-crossing-at-midnight"
"""Stands in a title, an input and an output: nobody else may read it anywhere."""


@pytest.fixture(scope="module")
def secrets_of(instance: Instance) -> dict[str, str]:
    """What nobody else may hear, by name: keys, ids, and the contents of a task."""
    with instance.client() as client:
        run = Run.submit(instance, client, [echo("a", WORD), python("b", f"print({WORD!r})")], title=WORD)
        run.completed()
    found = {"word": WORD, "task": run.task_id}
    for name in ("api_key", "secret_key", "database_password", "worker_password", "redis_password", "ray_auth_token"):
        with suppress(FileNotFoundError):  # of a service that is not embedded
            found[name] = (instance.home / name).read_text().strip()
    with instance.http() as http:
        for key in http.get("/keys").json()["items"]:
            found[f"key {key['id']}"] = key["id"]
            found[f"user of {key['id']}"] = key["user_id"]
    return found


def as_nobody(doors: dict[str, Any]) -> dict[str, Any]:
    """What another user finds open, and what is heard at each door. Skips where we can't become another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    nobody = pwd.getpwnam("nobody")
    ended = subprocess.run(
        [sys.executable, "-u", str(STRANGER), str(nobody.pw_uid), str(nobody.pw_gid)],
        input=json.dumps(doors), capture_output=True, text=True, timeout=600, check=False,
        env={"PATH": os.environ["PATH"], "GRPC_VERBOSITY": "NONE", "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-4_000:]
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def doors_of(instance: Instance, command: str) -> dict[str, Any]:
    """Every port and Unix socket that processes of an instance listen on, and every place of its files."""
    processes = instance.processes()
    ports = {each.port for process in processes for each in listeners_of(process.pid)}
    sockets = {each for process in processes for each in unix_listeners_of(process.pid)}
    assert len(ports) > 15
    session = next(instance.folder.glob("ray/session_latest")).resolve()
    assert session.is_dir()
    files = [
        *(str(each) for each in (session, session / "logs", session / "sockets", session / "logs" / "gcs_server.out")),
        str(instance.home),
        *(str(each) for each in instance.home.iterdir()),
        # Those of other tests come and go meanwhile.
        *(each.path for each in os.scandir("/dev/shm") if _is_ours(each)),
        *(f"/proc/{process.pid}/{name}" for process in processes for name in ("environ", "fd", "maps", "cwd", "root")),
    ]
    return {"ports": sorted(ports), "sockets": sorted(sockets), "files": files, "command": command}


def _is_ours(entry: os.DirEntry[str]) -> bool:
    with suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    return False


@contextmanager
def witness() -> Iterator[tuple[str, Path]]:
    """A command that makes a file, which every user may make, and the file."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-", dir="/tmp"))
    folder.chmod(0o1777)
    yield f"touch {folder / 'ran'}", folder / "ran"
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()


def test_another_user_finds_no_open_port_socket_or_file(instance: Instance, secrets_of: dict[str, str]) -> None:
    with witness() as (command, ran):
        doors = doors_of(instance, command)
        found = as_nobody(doors)
        assert not found["open"], "\n".join(found["open"])
        assert not ran.exists()
    told = {
        (door, name) for door, text in found["heard"].items() for name, value in secrets_of.items() if value in text
    }
    assert told == set()
    figures = {door.split(" ")[0] for door, text in found["heard"].items() if text.startswith("200 # HELP")}
    assert 1 <= len(figures - {instance.url.rpartition(":")[2]}) <= 3, "of Ray's agent, autoscaler and dashboard"
    # Every port answered something, so each was tried in a language that it speaks.
    ports = {door.split(" ")[0] for door, text in found["heard"].items() if text}
    assert {str(port) for port in doors["ports"]} <= ports


def test_ray_counts_by_the_names_of_tools_and_not_by_attempts(instance: Instance) -> None:
    """Anybody may read Ray's metrics, and its agent keeps a series until it is read."""
    with instance.client() as client, instance.http() as http:
        run = Run.submit(instance, client, [sleep("a", 600)])
        try:
            told = wait_until(lambda: _figures_of(instance, "ray::core.sleep"), within_s=60)
            subtask = run.subtask("a")
            ids = (run.task_id, subtask["sub_task_id"], subtask["attempts"][-1]["ray_task_id"])
            assert not [each for each in ids if each in told]
        finally:
            http.post(f"/tasks/{run.task_id}/cancel").raise_for_status()


def _figures_of(instance: Instance, component: str) -> str:
    """All of Ray's metrics, as soon as they speak of such processes."""
    (services,) = json.loads((instance.folder / "ray" / "prom_metrics_service_discovery.json").read_text())
    pages = "\n".join(
        httpx2.get(f"http://{address}/metrics", timeout=30, trust_env=False).text for address in services["targets"]
    )
    return pages if f'Component="{component}"' in pages else ""


def test_the_same_probes_with_the_token_do_run_code_and_read_data(instance: Instance) -> None:
    """So it is the token that closes the doors."""
    with witness() as (command, ran):
        doors = doors_of(instance, command)
        token = (instance.home / "ray_auth_token").read_text().strip()
        found = as_nobody(
            {
                **doors,
                "sockets": [],
                "files": [],
                "authorization": f"Bearer {token}",
                "methods": ["/ray.rpc.InternalKVGcsService/InternalKVKeys", "/ray.rpc.JobInfoGcsService/GetAllJobInfo"],
                "routes": ["GET /api/jobs/", "POST /api/jobs/", "GET /api/v0/logs"],
            }
        )
        opened = {door.split(" ", 1)[1] for door in found["open"]}
        assert {"GET /api/jobs/ 200", "POST /api/jobs/ 200", "/ray.rpc.JobInfoGcsService/GetAllJobInfo"} <= opened
        wait_until(ran.exists, within_s=JOB_S)


def test_no_command_line_holds_a_secret(instance: Instance, secrets_of: dict[str, str]) -> None:
    told = [
        (process.title, name)
        for process in instance.processes()
        for name, value in secrets_of.items()
        if name not in {"word", "task"} and value in process.title
    ]
    assert told == []


def test_no_command_line_names_the_files_of_a_sandbox(instance: Instance) -> None:
    code = f"import subprocess\nsubprocess.run({SANDBOXED.split()!r})"
    with instance.client() as client, instance.http() as http:
        task: JsonObject = {**python("a", code), "input": {"code": code, "files": {f"{WORD}.txt": WORD}}}
        run = Run.submit(instance, client, [task])
        try:
            wait_until(lambda: instance.processes(SANDBOXED), what=run.details)
            assert instance.processes("bwrap")
            assert [each.title for each in instance.processes() if WORD in each.title] == []
        finally:
            http.post(f"/tasks/{run.task_id}/cancel").raise_for_status()


def test_program_in_the_sandbox_finds_neither_token_nor_ports(instance: Instance) -> None:
    doors = doors_of(instance, "")
    files = [str(instance.home / "ray_auth_token"), *(path for path in doors["files"] if "/proc/" not in path)]
    hidden = json.dumps({**doors, "files": files})
    with instance.client() as client:
        hunt: JsonObject = {**python("hunt", HUNT), "input": {"code": HUNT, "stdin": hidden, "limits": {"wall_s": 120}}}
        run = Run.submit(instance, client, [hunt])
        run.completed()
        found = run.subtask("hunt")["output"]
    assert (found["exit_code"], found["stdout"].strip()) == (0, "[]"), found["stderr"]
