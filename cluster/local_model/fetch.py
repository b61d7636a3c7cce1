"""Packages by pip, each by its requirement with hashes: as wheels, never built, without what they depend on."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

from rayloom.cluster.checks import StartRefused

_COMMON = (
    "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--quiet", "--only-binary", ":all:", "--no-deps",
    "--require-hashes",
)  # fmt: skip


class Fetch:
    """Downloads into ``folder``, and keeps there what it needs meanwhile. pip's own settings hold: index, proxy."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.clear()
        folder.mkdir(mode=0o700, parents=True)

    def clear(self) -> None:
        """Remove all that is in the folder, also what a killed one has left."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def wheel(self, requirement: str) -> Path:
        """The wheel of one package. Raises StartRefused."""
        wheels = self._folder / "wheel"
        shutil.rmtree(wheels, ignore_errors=True)
        await self._pip("download", requirement, "--dest", str(wheels))
        (found,) = wheels.iterdir()
        return found

    async def unpack(self, requirement: str, folder: Path) -> None:
        """One package, ready to be imported from ``folder``, which is whole or not there. Raises StartRefused."""
        unpacked = self._folder / "unpacked"
        await self._pip("install", requirement, "--target", str(unpacked))
        unpacked.replace(folder)

    async def _pip(self, command: str, requirement: str, *arguments: str) -> None:
        name = requirement.partition("==")[0]
        asked = self._folder / "requirement.txt"
        asked.write_text(requirement)
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pip",
            command,
            *_COMMON,
            *arguments,
            "--requirement",
            str(asked),
            env={**os.environ, "TMPDIR": str(temporary), "PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for us, who end it.
            start_new_session=True,
        )
        try:
            _, said = await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
        if running.returncode != 0:
            raise StartRefused(
                f"pip could not fetch {name} ({_reason(said.decode(errors='replace'))}): is the network, or the index "
                "that pip is set to, there? The next start goes on from here"
            )


def _reason(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    # Of an error of the disk it says nothing more.
    return (errors or lines or ["it said nothing"])[-1][:300]
