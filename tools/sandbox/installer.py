"""pip, as what makes a set of packages: wheels only, so that no code of a package runs, bounded in size and time.

It runs as the worker does. It takes wheels from a folder, or from a package index that whoever runs rayloom has named,
and from nowhere else: its own option for wheels only leaves out what a wheel asks for by an address.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import orjson

from rayloom.dag.errors import Refused, Transient
from rayloom.tools.sandbox.host import interpreter
from rayloom.tools.sandbox.package_store import LOOK_S, Stopped, size_of

INSTALL_S: Final = 300.0
ASK_S: Final = 30.0
SIZE_LOOK_S: Final = 0.5
MEMORY_MB: Final = 2_048
MAX_LOG_BYTES: Final = 4 * 1024 * 1024
MAX_REPORT_BYTES: Final = 32 * 1024 * 1024
_SHELL: Final = 'ulimit -c 0; ulimit -f "$1" || exit 125; ulimit -v "$2" || exit 125; shift 2; exec "$@"'
_PASSED: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "PIP_CERT")
_UNANSWERED: Final = re.compile(
    r"Could not fetch URL \S+: (?!(?:401|403|404|410) )"
    r"|HTTP error (?:5\d\d|408|429) while getting|Max retries exceeded with url"
    r"|ERROR: Exception:\n[\s\S]*pip\._vendor\.(?:urllib3|requests)\.exceptions\."
)
_OTHER_PIP: Final = 64
_PIP: Final = f"""
import signal, sys
signal.alarm(int(sys.argv.pop(1)))
try:
    from pip._internal.cli.main import main
    from pip._internal.distributions.sdist import SourceDistribution
    from pip._internal.exceptions import InstallationError
    from pip._internal.req.req_install import InstallRequirement
    begin = InstallRequirement.__init__
    SourceDistribution.prepare_distribution_metadata
except (ImportError, AttributeError):
    sys.exit({_OTHER_PIP})

def begin_by_name(self, req, comes_from, editable=False, link=None, *args, **kwargs):
    if editable or getattr(req, "url", None) or (link is not None and req is None):
        asks, asked = getattr(comes_from, "name", None), getattr(req, "name", None)
        raise InstallationError(f"{{asks}} wants {{asked}} from an address of its own, which is not gone to")
    begin(self, req, comes_from, editable, link, *args, **kwargs)

def build(self, *args, **kwargs):
    raise InstallationError(f"{{self.req.name}} is no wheel, and nothing is built")

InstallRequirement.__init__ = begin_by_name
SourceDistribution.prepare_distribution_metadata = build
sys.exit(main(sys.argv[1:]))
"""
"""pip, which follows no address that a package names, builds nothing, and ends by itself, should we be killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installer:
    """Where wheels come from, a folder or an index or both, and how large a set may become."""

    wheels: Path | None
    index: str = field(repr=False)
    max_bytes: int

    def source(self) -> str:
        """What it is called before others: an address may hold a password."""
        return " and ".join(
            [*(["the folder of wheels"] if self.wheels else []), *(["the package index"] if self.index else [])]
        )

    def fill(self, folder: Path, wanted: Sequence[str], lock: int, stop: threading.Event) -> tuple[Path, list[str]]:
        """Make a set in a new folder; see `package_store.Maker`.

        Raises Stopped, Refused (``PACKAGES_REFUSED``) when these packages can't be had, and Transient
        (``PACKAGES_FAILED``).
        """
        target, report, log = folder / "packages", folder / "report", folder / "log"
        scratch = folder / "scratch"
        scratch.mkdir()
        command = [
            *("/bin/sh", "-c", _SHELL, "sh", str(self.max_bytes // 512), str(MEMORY_MB * 1024)),
            *(sys.executable, "-I", "-c", _PIP, str(int(INSTALL_S) + 30), "install", "--quiet"),
            *("--disable-pip-version-check", "--no-input"),
            *("--log", str(log), "--report", str(report), "--timeout", "15", "--retries", "2"),
            *([] if self.index else ["--no-index"]),
            *(["--find-links", str(self.wheels)] if self.wheels else []),
            *("--only-binary", ":all:", "--no-compile", "--no-cache-dir", "--no-warn-conflicts"),
            *("--python-version", python_version(), "--implementation", "cp", "--target", str(target), "--", *wanted),
        ]
        code = self._run(command, self._environment(folder, scratch), folder, lock, stop)
        if code == _OTHER_PIP:
            raise Refused("PACKAGES_REFUSED", "there is no pip beside rayloom that can be kept from building packages")
        if code != 0 or not target.is_dir():
            raise self._failure(wanted, _last_words(log))
        told = _told(report)
        if size_of(target) > self.max_bytes:
            raise self._too_large()
        _let_all_read(target)
        return target, told

    def _environment(self, folder: Path, scratch: Path) -> dict[str, str]:
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "PIP_CONFIG_FILE": os.devnull,
        }
        if self.index:
            environment |= {name: os.environ[name] for name in _PASSED if name in os.environ}
            # Not as an argument, which everybody on this machine may read.
            environment["PIP_INDEX_URL"] = self.index
            address = urlsplit(self.index)
            if address.scheme == "http":
                environment["PIP_TRUSTED_HOST"] = address.netloc.rpartition("@")[2]
        return environment

    def _run(
        self, command: Sequence[str], env: Mapping[str, str], folder: Path, lock: int, stop: threading.Event
    ) -> int:
        try:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(lock,),
            )
        except OSError as error:
            raise Transient("PACKAGES_FAILED", f"pip could not be started: {error}") from error
        until, look_at = time.monotonic() + INSTALL_S, time.monotonic() + SIZE_LOOK_S
        try:
            while process.poll() is None:
                if stop.wait(LOOK_S):
                    raise Stopped
                if time.monotonic() > until:
                    raise Transient("PACKAGES_FAILED", f"pip did not end within {INSTALL_S:g} s")
                if time.monotonic() > look_at:
                    # Twice: what is unpacked lies beside what it is unpacked from.
                    if size_of(folder) > 2 * self.max_bytes:
                        raise self._too_large()
                    look_at = time.monotonic() + SIZE_LOOK_S
        finally:
            process.kill()
            process.wait()
        return process.returncode

    def _too_large(self) -> Refused:
        return Refused("PACKAGES_REFUSED", f"the packages take more than {self.max_bytes // 1024**2} MiB")

    def _failure(self, wanted: Sequence[str], log: str) -> Refused | Transient:
        if self.index and _UNANSWERED.search(log):
            return Transient("PACKAGES_FAILED", "the package index does not answer as it should")
        if "No space left on device" in log or "File too large" in log:
            return self._too_large()
        lines = [line.partition(" ")[2].strip() if line[:4].isdigit() else line for line in log.splitlines()]
        said = next((line for line in lines if line.upper().startswith("ERROR")), "pip gave no reason")
        if self.index:
            said = re.sub(r"\S*://\S+", "(address)", said)
        return Refused("PACKAGES_REFUSED", f"{self.source()} does not give {', '.join(wanted)}: {said[:500]}")


def _last_words(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
            return file.read(MAX_LOG_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _told(report: Path) -> list[str]:
    """What was taken, from pip's own report: ``name==1.0 sha256:…`` each. Raises Transient."""
    try:
        if report.stat().st_size > MAX_REPORT_BYTES:
            raise ValueError("too much")
        items = orjson.loads(report.read_bytes())["install"]
        return sorted(
            f"{item['metadata']['name']}=={item['metadata']['version']}"
            + _digest(item["download_info"]["archive_info"].get("hashes") or {})
            for item in items
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Transient("PACKAGES_FAILED", f"pip did not say what it took: {error!r}") from error


def _digest(hashes: Mapping[str, str]) -> str:
    """The SHA-256, or what the index has given in its place."""
    kind = "sha256" if "sha256" in hashes else min(hashes, default="")
    return f" {kind}:{hashes[kind]}" if kind else ""


def _let_all_read(target: Path) -> None:
    for folder, _, files in os.walk(target):
        Path(folder).chmod(0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o111 else 0o644)
    shutil.rmtree(target / "bin", ignore_errors=True)


@cache
def python_version() -> str:
    """That of the interpreter that programs run on."""
    asked = [interpreter()[0], "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(asked, capture_output=True, text=True, timeout=ASK_S, check=True, env={}).stdout.strip()
