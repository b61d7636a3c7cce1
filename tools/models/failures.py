"""What an endpoint's failures mean: an error of ours whose branch says what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rayloom.dag.decision import MAX_RETRY_AFTER_S
from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.dag.model import ProviderLimits
from rayloom.tools.builtin.exchange import retry_after_s
from rayloom.tools.models.settings import ModelSettings

UNAVAILABLE: Final = "MODEL_UNAVAILABLE"
RATE_LIMITED: Final = "MODEL_RATE_LIMITED"
SILENT: Final = "MODEL_SILENT"
BROKE_OFF: Final = "MODEL_BROKE_OFF"
REFUSED: Final = "MODEL_REFUSED"
TOO_LONG: Final = "CONTEXT_TOO_LONG"

EXCERPT_CHARS: Final = 500
_MIN_SECRET_CHARS: Final = 6
_TOO_LONG: Final = re.compile(
    r"context[_ ](length|window|size)|maximum context|exceeds?.{0,40}context|prompt is too long|too many tokens", re.I
)
_NO_MONEY: Final = re.compile(r"insufficient_quota|billing|exceeded your current quota", re.I)
_OF_CONTENT: Final = re.compile(r"content_(filter|policy)", re.I)
_MOVED: Final = "its base_url is another now"
_ADVICE: Final[Mapping[int, str]] = {
    401: "set its api_key (RAYLOOM_LLM_API_KEY)",
    402: "its account has to be paid",
    403: "its api_key may not use this model",
    404: "it has no such model, or its base_url is another (they usually end in /v1)",
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
}
_SPAN: Final = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.A)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What an endpoint said in place of an answer; ``status`` 0: in the middle of one."""

    status: int
    message: str
    param: str = ""
    code: str = ""
    headers: Mapping[str, str]

    @classmethod
    def read(cls, body: object, *, status: int, headers: Mapping[str, str], fallback: str = "") -> Failure:
        """From the body of an error, as OpenAI, vLLM, Ollama and FastAPI write them."""
        found: Any = body.get("error", body) if isinstance(body, Mapping) else body
        if isinstance(found, Mapping):
            message = found.get("message") or found.get("detail") or fallback
            param, code = found.get("param") or "", found.get("code") or found.get("type") or ""
        else:
            message, param, code = found or fallback, "", ""
        return cls(status=status, message=str(message), param=str(param), code=str(code), headers=headers)

    @property
    def is_about_length(self) -> bool:
        """Whether question and answer are too long for the model."""
        return self.status in (0, 400, 413, 422, 500) and bool(_TOO_LONG.search(f"{self.code} {self.message}"))

    @property
    def may_be_an_option(self) -> bool:
        """Whether it may be an option that it minds, so that the same can be asked in another way."""
        return self.status in (400, 422) and not self.is_about_length and not _OF_CONTENT.search(self.code)

    @property
    def wait_s(self) -> float | None:
        """How long it asks to be left alone."""
        return _wait_s(self.headers)

    def error(self, settings: ModelSettings) -> RayloomError:
        """What to raise for it."""
        said = f"{settings.shown}: {excerpt(self.message, settings)}"
        if self.is_about_length or self.status == 413:
            return UserError(TOO_LONG, f"question and answer are too long for {said}")
        if self.status == 429 and not _NO_MONEY.search(f"{self.code} {self.message}"):
            return Transient(RATE_LIMITED, f"too much is asked of {said}", retry_after_s=self.wait_s)
        if self.status >= 500 or self.status in (408, 409, 425):
            return Transient(UNAVAILABLE, f"HTTP {self.status} from {said}", retry_after_s=self.wait_s)
        if self.status == 0:
            return Transient(BROKE_OFF, f"an answer broke off, {said}")
        if self.status == 429:
            return Refused(REFUSED, f"the account has nothing left, {said}; {_ADVICE[402]}")
        advice = f"; {_ADVICE[self.status]}" if self.status in _ADVICE else ""
        return Refused(REFUSED, f"HTTP {self.status} from {said}{advice}")


def excerpt(message: str, settings: ModelSettings) -> str:
    """What an endpoint said, short, and without our key."""
    key = settings.api_key.get_secret_value()
    if len(key) >= _MIN_SECRET_CHARS:
        message = message.replace(key, "***")
    return message.replace("\0", "\N{REPLACEMENT CHARACTER}")[:EXCERPT_CHARS]


def provider_limits(headers: Mapping[str, str]) -> ProviderLimits | None:
    """What the headers of an answer say of the endpoint's limits; None: nothing."""
    found = ProviderLimits(
        requests_left=_count(headers.get("x-ratelimit-remaining-requests")),
        tokens_left=_count(headers.get("x-ratelimit-remaining-tokens")),
        requests_reset_s=span_s(headers.get("x-ratelimit-reset-requests")),
        tokens_reset_s=span_s(headers.get("x-ratelimit-reset-tokens")),
        retry_after_s=_wait_s(headers),
    )
    return None if found == ProviderLimits() else found


def span_s(text: str | None) -> float | None:
    """The seconds of ``6m0s``, ``20ms``, ``1h2m3.5s`` or ``12``; None for none or nonsense."""
    if text is None:
        return None
    text = text.strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.A):
        return min(float(text), MAX_RETRY_AFTER_S)
    found = _SPAN.fullmatch(text)
    if not text or found is None:
        return None
    hours, minutes, seconds, thousandths = (float(each or 0) for each in found.groups())
    return min(hours * 3_600 + minutes * 60 + seconds + thousandths / 1_000, MAX_RETRY_AFTER_S)


def _wait_s(headers: Mapping[str, str]) -> float | None:
    in_ms = headers.get("retry-after-ms", "").strip()
    if re.fullmatch(r"\d{1,9}", in_ms, re.A):
        return min(int(in_ms) / 1_000, MAX_RETRY_AFTER_S)
    header = headers.get("retry-after")
    exact = retry_after_s(header, time.time())
    # Some say fractions of a second, which HTTP does not know.
    return span_s(header) if exact is None else exact


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,15}", text.strip(), re.A) else None
