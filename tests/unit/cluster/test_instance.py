"""`rayloom down` and `rayloom status` from another process."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayloom.cluster.home import Home
from rayloom.cluster.instance import read_status, run_down
from rayloom.cluster.settings import load_settings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    for name in [name for name in os.environ if name.startswith("RAYLOOM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYLOOM_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home")
    yield home
    home.release()


def test_down_signals_no_stranger_that_the_lock_names(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        (home.path / "lock").write_text(f"{stranger.pid}\n")
        assert run_down() == 1
        assert f"not by process {stranger.pid}" in capsys.readouterr().err
        assert stranger.poll() is None
    assert stranger.returncode == 0, "it ended with its input, and not by a signal"


class _Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"status": "ready"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_status_asks_no_proxy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), _Ready) as server:
        thread = threading.Thread(target=server.handle_request)
        server.timeout = 5
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        status = read_status(load_settings(environ={"RAYLOOM_HOME": str(home.path), "RAYLOOM_URL": url}))
        thread.join()
    assert status["serve"]["state"] == "ready"
