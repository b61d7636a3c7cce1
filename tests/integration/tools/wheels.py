"""Wheels and source packages of one module, made for tests, and an index that serves them."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


def make_wheel(folder: Path, name: str, version: str, code: str, *needs: str, data: bytes = b"") -> Path:
    """A wheel; ``data`` lies beside its module."""
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files: dict[str, str | bytes] = {
        f"{name}.py": code,
        f"{name}.bin": data,
        f"{info}/METADATA": head + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    made = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
    return made


@contextmanager
def store_of_its_own() -> Iterator[Path]:
    """A folder for temporary files, unpacked sets among them, that anybody may walk through."""
    # Not below pytest's own, which other sessions of the same user close to all others.
    with tempfile.TemporaryDirectory(prefix="rlw") as name, pytest.MonkeyPatch.context() as patch:
        Path(name).chmod(0o755)
        patch.setattr("tempfile.tempdir", name)
        yield Path(name)


def make_source(folder: Path, name: str, version: str, build: str) -> None:
    """A package that would have to be built, by this code."""
    files = {"setup.py": build, "PKG-INFO": f"Metadata-Version: 1.0\nName: {name}\nVersion: {version}\n"}
    with tarfile.open(folder / f"{name}-{version}.tar.gz", "w:gz") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{path}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))


@dataclass
class Index:
    """A simple index (PEP 503) of a folder. ``asked``: the paths of all requests. ``status``: what it answers to those
    that begin with ``failing``, if not what it has. ``hold``: files come when this is set. ``password``: who has none
    gets nothing. ``digest``: what it tells of each file; nothing when empty."""

    folder: Path
    url: str = ""
    asked: list[str] = field(default_factory=list)
    status: int = 0
    failing: str = "/"
    digest: str = "sha256"
    password: str = ""
    hold: threading.Event | None = None

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        """The status and body for a path."""
        self.asked.append(path)
        if self.password and authorization != "Basic " + base64.b64encode(f"x:{self.password}".encode()).decode():
            return 401, b""
        if self.status and path.startswith(self.failing):
            return self.status, b""
        if path.startswith("/files/"):
            if self.hold is not None:
                self.hold.wait(30)
            return 200, (self.folder / path.removeprefix("/files/")).read_bytes()
        project = path.removeprefix("/simple/").strip("/")
        files = sorted(each for each in self.folder.iterdir() if each.name.startswith(f"{project}-"))
        links = (f'<a href="/files/{each.name}{self._told(each)}">{each.name}</a>' for each in files)
        return (200, "".join(links).encode()) if files else (404, b"")

    def _told(self, file: Path) -> str:
        return f"#{self.digest}={hashlib.new(self.digest, file.read_bytes()).hexdigest()}" if self.digest else ""


@contextmanager
def serving(folder: Path) -> Iterator[Index]:
    """An index of this folder on the loopback, while the block runs."""
    index = Index(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = index.answer(self.path, self.headers.get("Authorization", ""))
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.send_header("Content-Type", "text/html" if self.path.startswith("/simple/") else "application/zip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield index
        finally:
            if index.hold is not None:
                index.hold.set()
            server.shutdown()
            thread.join()
