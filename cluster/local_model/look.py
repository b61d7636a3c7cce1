"""How the local model is: asked at its face, for people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import httpx2

from rayloom.cluster.local_model.chosen import face_url
from rayloom.cluster.local_model.server import LlamaSettings
from rayloom.cluster.settings import Settings

LOOK_S: Final = 5.0
EVERY_S: Final = 0.5

State = Literal["answers", "loading", "down"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of it."""

    state: State
    detail: str


def seen(answer: httpx2.Response | None) -> Seen:
    """What an answer of the face says; None: there was none."""
    if answer is None:
        return Seen(state="down", detail="its face does not answer")
    if answer.status_code == 200:
        return Seen(state="answers", detail="it answers")
    try:
        detail = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        detail = f"its face answers {answer.status_code}"
    return Seen(state="loading" if detail.endswith("loading") else "down", detail=detail)


def look(url: str, key: str) -> Seen:
    """How the one behind the face at ``url`` is."""
    try:
        return seen(httpx2.get(f"{url}/health", headers=_with(key), timeout=LOOK_S, trust_env=False))
    except httpx2.HTTPError:
        return seen(None)


def _with(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Loading:
    """Tells people when the model has been loaded, or what keeps it from that."""

    def __init__(self, settings: Settings, llama: LlamaSettings | None, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._llama = llama
        self._tell = tell
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to look, if there is a model."""
        if self._llama is not None:
            self._watching = asyncio.create_task(self._watch(self._llama))

    def stop(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self, llama: LlamaSettings) -> None:
        name, began, said = llama.installed.model.name, time.monotonic(), ""
        self._tell(f"loading the local model `{name}`; prompts wait for it")
        url, key = f"{face_url(self._settings)}/health", llama.key.get_secret_value()
        async with httpx2.AsyncClient(timeout=LOOK_S, trust_env=False, headers=_with(key)) as client:
            while True:
                try:
                    found = seen(await client.get(url))
                except httpx2.HTTPError:
                    found = seen(None)
                if found.state == "answers":
                    self._tell(f"the local model `{name}` answers ({time.monotonic() - began:.0f} s); it is slow")
                    return
                # What passes by itself, while it starts, is not worth a line.
                if found.state == "down" and "face" not in found.detail and found.detail != said:
                    said = found.detail
                    self._tell(f"the local model `{name}`: {said}")
                await asyncio.sleep(EVERY_S)
