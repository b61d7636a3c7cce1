"""Clients of scripted endpoints, which close what they opened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from rayloom.dag.model import Message, ModelRequest
from rayloom.tools.models.client import ModelClient
from rayloom.tools.models.settings import ModelSettings
from tests.integration.models.endpoint import Endpoint

Serve = Callable[..., Endpoint]
Client = Callable[..., ModelClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts scripted endpoints."""
    with ExitStack() as started:
        yield lambda *script: started.enter_context(Endpoint(*script))


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Makes clients of an endpoint's model; a call may be silent for minutes unless a test says otherwise."""
    made: list[ModelClient] = []

    def make(endpoint: Endpoint | str, **settings: Any) -> ModelClient:
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        given: dict[str, Any] = {"model": "scripted", "first_text_s": 120.0, "silence_s": 120.0} | settings
        made.append(ModelClient(ModelSettings(base_url=url, **given)))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


def question(text: str = "What is the capital of France?", **more: Any) -> ModelRequest:
    """A question to any model."""
    given: dict[str, Any] = {"role": "reasoner", "purpose": "reason"} | more
    return ModelRequest(messages=(Message(speaker="user", text=text),), **given)
