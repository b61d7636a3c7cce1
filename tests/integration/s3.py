"""An S3 server of the tests' own: a process that speaks the protocol over HTTP, and checks signatures."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
from pydantic import SecretStr

from rayloom.db.settings import BlobSettings, S3Settings
from tests.integration.ports import free_ports
from tests.integration.waiting import wait_until

KEY = "access"
BUCKET = "blobs"


class S3Server:
    """The server. Each bucket is a folder of ``folder``, and each object a file in it, to be looked at only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.secret = folder / "buckets", secrets.token_hex(16)
        (self.folder / BUCKET).mkdir(parents=True)
        self._log = folder / "log"
        [port] = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = Path(sys.executable).parent / "rclone"
        options = ["--config", "/dev/null", "--vfs-cache-mode", "off"]
        address = ["--addr", self.url.removeprefix("http://"), "--auth-key", f"{KEY},{self.secret}"]
        with self._log.open("ab") as sink:
            self._server = subprocess.Popen(
                [program, "serve", "s3", *options, *address, self.folder], stdout=sink, stderr=sink, env={}
            )
        wait_until(self._answers, what=lambda: self._log.read_text())

    def _answers(self) -> bool:
        with suppress(httpx2.HTTPError):
            return httpx2.get(self.url, trust_env=False).status_code > 0
        return False

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    def silence(self) -> None:
        """Connections are still made, and nothing is answered any more."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def settings(self, prefix: str = "", **more: object) -> BlobSettings:
        """Blobs are kept here."""
        place = f"s3://{BUCKET}/{prefix}".rstrip("/")
        s3 = S3Settings(endpoint=self.url, access_key_id=KEY, secret_access_key=SecretStr(self.secret))
        return BlobSettings.model_validate({"place": place, "s3": s3, **more})

    @property
    def environ(self) -> dict[str, str]:
        """The same for a whole rayloom."""
        return {
            "RAYLOOM_BLOB_STORE": f"s3://{BUCKET}/all",
            "RAYLOOM_S3_ENDPOINT": self.url,
            "RAYLOOM_S3_ACCESS_KEY_ID": KEY,
            "RAYLOOM_S3_SECRET_ACCESS_KEY": self.secret,
        }

    def objects(self, prefix: str = "") -> dict[str, Path]:
        """The file of each object below a prefix, by its name there."""
        folder = self.folder / BUCKET / prefix
        return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with one empty bucket, for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="rl-s3-"))
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)
