"""`rayloom up` as a process: it serves, stops in order, refuses in one line, and takes everything with it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import pytest

from rayloom.cluster.home import Home
from tests.integration.cluster.owner import Owner, me
from tests.integration.cluster.up import Up
from tests.integration.cluster.waiting import has_ended, until_gone
from tests.integration.ports import free_ports
from tests.integration.waiting import wait_until


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rl-") as folder:
        yield Path(folder) / "home"


def rayloom(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Another command on the same home."""
    program = [sys.executable, "-c", "from rayloom.cluster.cli.program import main; main()", *arguments]
    environ = {"PATH": os.environ["PATH"], "RAYLOOM_HOME": str(home)}
    return subprocess.run(program, capture_output=True, text=True, cwd=home.parent, env=environ, check=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(home: Path, number: int) -> None:
    up = Up(home)
    said = up.until("serving until")
    assert any("http://127.0.0.1:1" in line for line in said)
    assert any(line.endswith(f"key  in {home / 'api_key'}") for line in said)
    assert "rl_key" not in "".join(said)
    told = Home(home).read_run()
    assert told is not None
    assert (told.pid, told.state) == (up.process.pid, "serving")
    assert told.services["database"].startswith("embedded, port ")
    servers = up.servers()
    up.process.send_signal(number)
    code, said, errors = up.end()
    assert (code, errors) == (0, [])
    assert said == ["stopping (Ctrl-C again: at once)", "stand-in stopped", "stopping the services"]
    assert all(has_ended(pid) for pid in servers)
    assert not (home / "run.json").exists()
    assert Home(home).owner() is None


def test_key_is_printed_to_a_terminal_alone(home: Path) -> None:
    terminal, its_end = os.openpty()
    with os.fdopen(its_end) as end, mock.patch.object(Up, "stdout", end.fileno()):
        up = Up(home)
    with os.fdopen(terminal) as screen:
        said = list(iter(screen.readline, "serving until Ctrl-C\n"))
        up.process.terminate()
        assert up.end()[0] == 0
    assert any(f"rl_key  (kept in {home / 'api_key'})" in line for line in said)
    up = Up(home)
    said = up.until("serving until Ctrl-C")
    up.process.terminate()
    assert up.end()[0] == 0
    assert any(line.endswith(f"in {home / 'api_key'}") for line in said)
    assert not [line for line in said if "rl_key" in line]


def test_json_names_the_file_of_the_key_and_not_the_key(home: Path) -> None:
    up = Up(home, "json")
    [line] = up.until("serving")
    up.process.terminate()
    up.end()
    assert json.loads(line)["api_key_path"] == str(home / "api_key")
    assert "rl_key" not in line


def test_a_full_disk_does_not_keep_it_from_stopping_in_order(home: Path) -> None:
    with Path("/dev/full").open("w") as full, mock.patch.object(Up, "stdout", full.fileno()):
        up = Up(home)
    wait_until(lambda: (told := Home(home).read_run()) is not None and told.state == "serving")
    servers = up.servers()
    # Nothing can be put in its place, as on a full disk.
    (home / "run.json").unlink()
    (home / "run.json").mkdir()
    up.process.terminate()
    up.end()
    assert (home / "stopped").exists()
    assert all(has_ended(pid) for pid in servers)
    assert Home(home).owner() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_closed_terminal_does_not_keep_it_from_stopping_in_order(home: Path, number: int) -> None:
    up = Up(home)
    up.until("serving until")
    servers = up.servers()
    assert up.process.stdout is not None
    up.process.stdout.close()
    up.process.stdout = None
    up.process.send_signal(number)
    code, _, errors = up.end()
    assert (code, errors) == (0, [])
    assert (home / "stopped").exists()
    assert all(has_ended(pid) for pid in servers)
    assert Home(home).owner() is None


def test_down_and_status_speak_of_the_one_that_runs(home: Path) -> None:
    up = Up(home)
    up.until("serving until")
    status = json.loads(rayloom(home, "status", "--json").stdout)
    assert (status["running"], status["state"], status["pid"]) == (True, "serving", up.process.pid)
    assert status["serve"]["state"] == "down"
    password = (home / "database_password").read_text().strip()
    assert password not in json.dumps(status)
    down = rayloom(home, "down")
    assert (down.returncode, down.stdout) == (0, f"stopped process {up.process.pid}\n")
    assert up.end()[0] == 0
    assert "no rayloom runs" in rayloom(home, "down").stdout
    assert json.loads(rayloom(home, "status", "--json").stdout)["running"] is False


def test_a_second_one_on_the_same_home_says_so_and_exits(home: Path) -> None:
    up = Up(home)
    up.until("serving until")
    code, said, errors = Up(home).end()
    assert (code, said) == (1, [])
    assert len(errors) == 1
    assert f"in use by process {up.process.pid}" in errors[0]
    up.process.terminate()
    assert up.end()[0] == 0


def test_a_taken_port_is_one_line_and_nothing_is_left(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        code, said, errors = Up(home, RAYLOOM_PORT=str(number)).end()
    assert (code, said) == (1, [])
    assert errors == [f"rayloom: port {number} on 127.0.0.1 is taken: stop what listens there, or set RAYLOOM_PORT"]
    assert Home(home).owner() is None


def test_with_json_one_document_says_that_it_serves(home: Path) -> None:
    up = Up(home, "json", RAYLOOM_API_KEY="12345678", RAYLOOM_FAULTS="7:0")
    [line] = up.until("serving")
    document = json.loads(line)
    assert (document["state"], document["pid"], document["home"]) == ("serving", up.process.pid, str(home))
    assert document["api_key_path"] is None
    assert "api_key" not in document
    assert document["urls"]["api"].startswith("http://")
    assert document["services"]["database"].startswith("embedded")
    stopped = json.loads(rayloom(home, "down", "--json").stdout)
    assert stopped == {"home": str(home), "running": False, "stopped_pid": up.process.pid}
    code, said, errors = up.end()
    # What the driver prints is kept away from the one document, too.
    assert (code, said) == (0, [])
    assert "stand-in stopped" in errors
    warnings = [line for line in errors if line.startswith("rayloom: ")]
    assert "may be guessed" in warnings[0]
    assert "RAYLOOM_FAULTS" in warnings[1]
    kept = (home / "logs" / "up.log").read_text()
    assert all(line.removeprefix("rayloom: ") in kept for line in warnings)
    assert "12345678" not in "".join(errors) + kept


def test_a_key_too_short_is_one_line(home: Path) -> None:
    code, said, errors = Up(home, RAYLOOM_API_KEY="geheim").end()
    assert (code, said, len(errors)) == (1, [], 1)
    assert "RAYLOOM_API_KEY has 6 characters, and 8 to 512 are taken: choose 32 random" in errors[0]
    assert "geheim" not in errors[0]


def test_wrong_settings_are_one_line_each(home: Path) -> None:
    code, said, errors = Up(home, RAYLOOM_PROT="1", RAYLOOM_SANBOX="x").end()
    assert (code, said, len(errors)) == (1, [], 2)
    assert not home.exists()


def test_servers_that_do_not_answer_are_one_line(home: Path) -> None:
    (number,) = free_ports(1)
    url = f"postgresql://u:geheim@127.0.0.1:{number}/x"
    code, _, errors = Up(home, RAYLOOM_DATABASE_URL=url).end()
    assert code == 1
    assert len(errors) == 1
    assert f"PostgreSQL at 127.0.0.1:{number} does not answer" in errors[0]
    assert "geheim" not in errors[0]
    code, _, errors = Up(home, RAYLOOM_REDIS_URL=f"redis://:geheim@127.0.0.1:{number}").end()
    assert (code, len(errors)) == (1, 1)
    assert f"Redis at 127.0.0.1:{number} does not answer" in errors[0]
    assert "geheim" not in errors[0]


def test_machine_without_sandbox_is_named_at_the_start_and_the_demonstration_is_left_out(home: Path) -> None:
    up = Up(home, "demo", RAYLOOM_SANDBOX="docker", RAYLOOM_DOCKER_ADDRESS=f"unix://{home}/no.sock")
    said = up.until("serving until")
    up.process.terminate()
    code, _, errors = up.end()
    assert code == 0
    assert "the demonstration is left out: it runs programs in a sandbox" in said
    [line] = errors
    assert line.startswith("rayloom: no container engine answers")
    assert "python.run and shell.run are refused without it" in line


def test_when_ray_does_not_start_the_services_stop(home: Path) -> None:
    up = Up(home, "break")
    code, said, errors = up.end()
    assert (code, errors) == (1, ["rayloom: Ray does not start: do this"])
    assert said[-1] == "stopping the services"
    assert Home(home).owner() is None


def test_it_can_be_stopped_while_it_starts(home: Path) -> None:
    up = Up(home, "slow")
    up.until("stand-in starts")
    servers = up.servers()
    up.process.send_signal(signal.SIGINT)
    code, _, errors = up.end()
    assert (code, errors) == (0, [])
    assert all(has_ended(pid) for pid in servers)


async def test_a_killed_one_takes_its_servers_with_it_and_the_next_recovers(home: Path) -> None:
    up = Up(home)
    up.until("serving until")
    servers = up.servers()
    up.process.kill()
    up.end()
    following = Up(home)
    following.until("serving until")
    for pid in servers:
        await until_gone(pid)
    following.process.terminate()
    assert following.end()[0] == 0


def test_a_signal_is_heard_whichever_thread_the_kernel_gives_it_to(home: Path) -> None:
    up = Up(home)
    up.until("serving until")
    pid = up.process.pid
    other = max(int(name) for name in os.listdir(f"/proc/{pid}/task") if name != str(pid))
    assert ctypes.CDLL(None).tgkill(pid, other, signal.SIGTERM) == 0
    assert up.end()[0] == 0


async def test_a_second_signal_ends_it_at_once(home: Path) -> None:
    up = Up(home, "slow")
    up.until("stand-in starts")
    servers = up.servers()
    # Both are pending before it can look: the first is not acted upon before the second comes.
    up.process.send_signal(signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    up.process.send_signal(signal.SIGTERM)
    up.process.send_signal(signal.SIGCONT)
    assert up.end()[0] == 130
    for pid in servers:
        await until_gone(pid)


def test_up_starts_ray_again_says_so_and_status_tells_the_truth(home: Path) -> None:
    up = Up(home, "absent")
    up.until("serving until")
    first = up.head()
    os.kill(first, signal.SIGKILL)
    said = up.until("waiting for it")
    assert f"the driver of Ray (process {first}) ended by SIGKILL; starting Ray" in said[0]
    status = rayloom(home, "status", "--json")
    assert (status.returncode, json.loads(status.stdout)["state"]) == (1, "restarting Ray")
    (home / "back").touch()
    up.until("serving again")
    told = Home(home).read_run()
    assert told is not None
    assert told.state == "serving"
    assert up.head() not in (0, first)
    up.process.terminate()
    code, said, errors = up.end()
    assert (code, errors) == (0, [])
    assert said[-2:] == ["stand-in stopped", "stopping the services"]


def test_up_gives_up_after_three_failures_of_ray_in_five_minutes(home: Path) -> None:
    up = Up(home)
    up.until("serving until")
    servers = up.servers()
    for number in (1, 2):
        os.kill(up.head(), signal.SIGKILL)
        assert f"(failure {number} of 3 in 5 minutes)" in up.until("serving again")[0]
    os.kill(up.head(), signal.SIGKILL)
    code, said, errors = up.end()
    assert (code, said) == (1, ["stopping", "stopping the services"])
    assert errors[0].startswith("rayloom: Ray failed 3 times in 5 minutes, the last time because the driver of Ray")
    assert all(has_ended(pid) for pid in servers)
    assert Home(home).owner() is None


def test_ray_can_be_stopped_while_it_is_waited_for(home: Path) -> None:
    up = Up(home, "absent")
    up.until("serving until")
    os.kill(up.head(), signal.SIGKILL)
    up.until("waiting for it")
    up.process.send_signal(signal.SIGINT)
    code, said, errors = up.end()
    assert (code, errors) == (0, [])
    assert said[-2:] == ["stopping (Ctrl-C again: at once)", "stopping the services"]


def test_with_urls_it_starts_nothing(home: Path) -> None:
    with Owner(me(), home.parent / "elsewhere") as owner:
        urls = {"RAYLOOM_DATABASE_URL": owner.database, "RAYLOOM_REDIS_URL": owner.redis}
        up = Up(home, "external", **urls)
        up.until("serving until")
        told = Home(home).read_run()
        assert told is not None
        assert told.services == {"database": "external", "redis": "external"}
        assert not (home / "postgres").exists()
        assert not (home / "redis").exists()
        up.process.terminate()
        assert up.end()[0] == 0
        for name, server in (("RAYLOOM_DATABASE_URL", "PostgreSQL"), ("RAYLOOM_REDIS_URL", "Redis")):
            address = urlsplit(urls[name])
            wrong = urls[name].replace(address.password or "", "geheim")
            code, _, errors = Up(home, "external", **urls | {name: wrong}).end()
            assert (code, len(errors)) == (1, 1)
            assert errors[0].startswith(f"rayloom: {server} at 127.0.0.1:{address.port} refuses the ")
            assert "geheim" not in errors[0]
        missing = urlsplit(owner.database)._replace(path="/elsewhere").geturl()
        code, _, errors = Up(home, "external", **urls | {"RAYLOOM_DATABASE_URL": missing}).end()
        assert (code, len(errors)) == (1, 1)
        assert "has no database elsewhere: create it first" in errors[0]
