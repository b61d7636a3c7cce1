"""llama.cpp's server as one that a `Keeper` keeps running: what it is told, and when it is ready."""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from rayloom.cluster.embedded.identity import ServiceError
from rayloom.cluster.embedded.keeper import Tell
from rayloom.cluster.home import write_private
from rayloom.cluster.local_model import llama
from rayloom.cluster.local_model.install import Installed
from rayloom.cluster.local_model.memory import shortage


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaSettings:
    """What is served, and how: plain values that cross to the replica.

    ``key``: what the server wants from whoever asks; the door asks the same of its callers. ``folder``: of this
    machine, for what the server is told; ``log``: what it says.
    """

    installed: Installed
    key: SecretStr
    folder: Path
    log: Path
    threads: int


class LlamaServer:
    """A `Server` of the keeper."""

    name = "the local model"
    death_signal: int = signal.SIGKILL
    stop_signals: tuple[tuple[int, float], ...] = ((signal.SIGTERM, 3.0),)

    def __init__(self, settings: LlamaSettings) -> None:
        self._settings = settings
        self.log = settings.log
        self._config = settings.folder / "server.json"
        self._told = settings.folder / "address.json"

    def prepare(self, *, failures: int, stopping: threading.Event, tell: Tell) -> list[str]:
        """Write down what it is told; gives the command line. Raises ServiceError where memory is short."""
        settings, model = self._settings, self._settings.installed.model
        too_little = shortage(model)
        if too_little is not None:
            raise ServiceError(too_little)
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._told.unlink(missing_ok=True)
        told = {
            "library": settings.installed.library,
            "model": str(settings.installed.gguf),
            "alias": model.name,
            "template": model.chat_template(),
            "key": settings.key.get_secret_value(),
            "slots": model.slots,
            "context_tokens": model.context_tokens,
            "answer_tokens": model.answer_tokens,
            "threads": settings.threads,
            "address_file": str(self._told),
        }
        write_private(self._config, json.dumps(told))
        return [sys.executable, "-I", llama.__file__, str(self._config)]

    def is_ready(self, pid: int) -> bool:
        """Whether it has loaded the model, and listens."""
        return self.address(pid) is not None

    def address(self, pid: int | None) -> str | None:
        """Where the server with this process listens; None until it does."""
        try:
            told = json.loads(self._told.read_text())
        except (OSError, ValueError):
            return None
        return str(told["address"]) if told["pid"] == pid else None
