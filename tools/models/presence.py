"""Whether a model's endpoint answers: a look that costs nothing, and is no promise."""

from __future__ import annotations

from typing import Any, Final

import httpx2

from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.tls import trust

LOOK_S: Final = 3.0
_SHOWN_IDS: Final = 5


async def absence(settings: ModelSettings, *, timeout_s: float = LOOK_S) -> str | None:
    """Why calls of the model would fail, as far as its endpoint's list of models tells; None: they may well not."""
    key = settings.api_key.get_secret_value()
    headers = {"user-agent": "rayloom"} | ({"authorization": f"Bearer {key}"} if key else {})
    client = httpx2.AsyncClient(verify=trust(), trust_env=False, timeout=timeout_s)
    try:
        async with client:
            answer = await client.get(f"{settings.base_url.rstrip('/')}/models", headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"{settings.shown} does not answer ({type(error).__name__})"
    if answer.status_code in (401, 403):
        return f"{settings.shown} refuses our key (HTTP {answer.status_code})"
    if answer.status_code >= 500:
        return f"{settings.shown} answers HTTP {answer.status_code}"
    ids = _ids(answer)
    if ids and not any(_is_called(settings.model, each) for each in ids):
        return f"{settings.shown}: there is no such model, but {', '.join(ids[:_SHOWN_IDS])}"
    return None


def _is_called(model: str, listed: str) -> bool:
    # Ollama lists `qwen3:latest` and answers to `qwen3`.
    return listed in (model, f"{model}:latest")


def _ids(answer: httpx2.Response) -> list[str]:
    """The ids that it lists; none where it has no list, which is no fault."""
    try:
        found: Any = answer.json()
    except ValueError:
        return []
    data = found.get("data") if isinstance(found, dict) else None
    listed = [each.get("id") for each in data if isinstance(each, dict)] if isinstance(data, list) else []
    return [each for each in listed if isinstance(each, str)]
