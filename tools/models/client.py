"""Calls of one model: asked in the way its endpoint takes, heard as it speaks, and held to what was asked for.

No rounds of repair, and few retries: those of a moment, and never once a word was heard. Who calls decides the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, Literal

from openai import APIConnectionError, APIError, APIStatusError, AsyncStream

from rayloom.dag.errors import AnswerInvalid, RayloomError, Refused, Transient, UserError
from rayloom.dag.model import Completion, ModelRequest, ModelUse, ModelView, ProviderLimits
from rayloom.dag.values import Json
from rayloom.tools.models.connection import Connections
from rayloom.tools.models.failures import BROKE_OFF, REFUSED, TOO_LONG, UNAVAILABLE, Failure, excerpt, provider_limits
from rayloom.tools.models.settings import ModelSettings
from rayloom.tools.models.stream import Heard, listen, within
from rayloom.tools.models.structure import check_schema, structured
from rayloom.tools.models.tokens import count
from rayloom.tools.models.usage import use_of
from rayloom.tools.models.wire import Way, Wire, prompt_tokens

RETRIES: Final = 2
RETRY_WAIT_MAX_S: Final = 2.0
"""An endpoint that asks for a longer wait is left to who may spend more time."""
_RETRY_FIRST_S: Final = 0.2
_WAYS_MAX: Final = 12
"""More ways than there are of asking the same; a bound for endpoints that name what was not sent."""
_TOKEN_BYTES_MAX: Final = 32
"""Longer than the tokens of any text are in the mean: what exceeds it was not held to its limit."""

OnLimits = Callable[[ProviderLimits], None]
OnText = Callable[[str], None]


class ModelClient:
    """One model. For any number of calls at a time, in any event loop; to be closed in each that used it."""

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.view: ModelView = settings.view
        self._wire = Wire(settings)
        self._connections = Connections(settings)

    async def prepare(
        self, request: ModelRequest, *, on_text: OnText | None = None, on_limits: OnLimits | None = None
    ) -> ModelCall:
        """A call that was not made yet. ``on_limits`` is told what the endpoint says of its limits.

        Raises UserError (``CONTEXT_TOO_LONG``, ``SCHEMA_INVALID``).
        """
        if request.schema is not None:
            check_schema(request.schema)
        tokens_in = await asyncio.to_thread(prompt_tokens, request)
        longest = min(request.max_tokens or self.view.answer_tokens, self.view.answer_tokens)
        if tokens_in + longest > self.view.context_tokens:
            raise UserError(
                TOO_LONG,
                f"a question of {tokens_in} tokens and an answer of {longest} are too long for {self.settings.shown}, "
                f"which takes {self.view.context_tokens} together",
            )
        return ModelCall(self, request, tokens_in, longest, on_text, on_limits)

    async def complete(self, request: ModelRequest, *, on_text: OnText | None = None) -> Completion:
        """Call it once. Raises what `prepare` and `ModelCall.run` raise."""
        return await (await self.prepare(request, on_text=on_text)).run()

    async def aclose(self) -> None:
        """Close the connections of this event loop."""
        await self._connections.aclose()


class ModelCall:
    """One call. ``tokens_in``: its question as counted here; ``max_tokens``: its longest answer."""

    def __init__(
        self,
        client: ModelClient,
        request: ModelRequest,
        tokens_in: int,
        max_tokens: int,
        on_text: OnText | None,
        on_limits: OnLimits | None,
    ) -> None:
        self.client = client
        self.tokens_in = tokens_in
        self.max_tokens = max_tokens
        self.heard = Heard()
        self._request = request
        self._on_text = on_text
        self._on_limits = on_limits
        self._is_asked = False
        self._use: ModelUse | None = None
        self._started = monotonic()

    async def run(self) -> Completion:
        """Make it, and judge its answer. Raises what `hear` and `judged` raise."""
        await self.hear()
        return await self.judged()

    async def hear(self) -> None:
        """Ask, and hear the answer. Raises what `ModelPort.complete` raises for an endpoint's sake.

        Whatever it raises, `use` tells what was used.
        """
        settings = self.client.settings
        self._started = monotonic()
        limit = asyncio.timeout(settings.call_s)
        try:
            async with limit:
                await self._hear()
        except TimeoutError:
            if not limit.expired():
                raise
            raise Transient(BROKE_OFF, f"{settings.shown} was not done after {settings.call_s:g} s") from None

    async def judged(self) -> Completion:
        """What was heard, if it is what was asked for. Raises Refused (``MODEL_REFUSED``) and `AnswerInvalid`."""
        cut_off = self._cut_off()
        text = self.heard.text
        value: Json = None
        if self._request.schema is not None:
            # A large answer may take a while to judge, and others have calls in this loop, too.
            try:
                value = await asyncio.to_thread(structured, text, self._request.schema, cut_off=cut_off)
            except AnswerInvalid as error:
                error.use = await self.use()
                raise
        duration_s = monotonic() - self._started
        return Completion(
            text=text,
            value=value,
            model=self.client.view.name,
            use=await self.use(),
            finish="length" if cut_off else "stop",
            first_text_s=duration_s if self.first_text_s is None else self.first_text_s,
            duration_s=duration_s,
        )

    async def use(self) -> ModelUse:
        """What it has used so far, however it ended: nothing where the endpoint refused it or was not reached."""
        if not self._is_asked:
            return ModelUse()
        if self._use is None:
            counted_out = await asyncio.to_thread(count, self.heard.spoken)
            self._use = use_of(self.client.view, self.heard.usage, counted_in=self.tokens_in, counted_out=counted_out)
        return self._use

    async def least(self) -> ModelUse:
        """What it has used at least, as is counted here, while it goes on: the question, and what was heard so far."""
        counted_out = await asyncio.to_thread(count, self.heard.spoken)
        return use_of(self.client.view, None, counted_in=self.tokens_in, counted_out=counted_out)

    @property
    def finish(self) -> Literal["stop", "length", ""]:
        """Why the answer ended; empty where it did not, or badly."""
        if self.heard.is_cut or self.heard.finish == "length":
            return "length"
        return "stop" if self.heard.finish else ""

    @property
    def first_text_s(self) -> float | None:
        """When its first word was heard, in seconds from the request; None: it never was."""
        return None if self.heard.first_text_at is None else self.heard.first_text_at - self._started

    async def _hear(self) -> None:
        stream, first_by = await self._open()
        settings = self.client.settings
        try:
            await listen(
                aiter(stream),
                self.heard,
                settings,
                first_by=first_by,
                max_bytes=min(settings.answer_max_bytes, self.max_tokens * _TOKEN_BYTES_MAX),
                on_text=self._on_text,
            )
        except APIError as error:
            if not self.heard.finish:
                raise self._broken_off(error, stream.response.headers) from None
        finally:
            await stream.close()
        if not self.heard.finish and not self.heard.is_cut:
            raise self._unfinished(stream.response.headers.get("content-type", ""))

    async def _open(self) -> tuple[AsyncStream[Any], float]:
        """The stream of the answer, and when its first piece is due."""
        client, wire, settings = self.client, self.client._wire, self.client.settings
        retries = ways = 0
        doubted: set[Way] = set()
        while True:
            body = wire.body(self._request, self.max_tokens, doubted)
            first_by = monotonic() + settings.first_text_s
            self._is_asked = True
            try:
                stream = await within(client._connections.stream(body), first_by, settings, is_first=True)
            except APIStatusError as error:
                self._is_asked = False
                self._learn(error.response.headers)
                failure = Failure.read(
                    error.body, status=error.status_code, headers=error.response.headers, fallback=error.message
                )
                ways += 1
                is_an_option = failure.may_be_an_option and ways < _WAYS_MAX
                if is_an_option and wire.learn(self._request, body, failure.message, failure.param, doubted):
                    continue
                wait_s = failure.wait_s
                is_short = failure.status in (429, 503) and wait_s is not None and wait_s <= RETRY_WAIT_MAX_S
                if not is_short or retries == RETRIES:
                    raise failure.error(settings) from None
            except APIConnectionError as error:
                self._is_asked = False
                if retries == RETRIES:
                    message = f"{settings.shown} can't be reached: {_cause(error)}"
                    raise Transient(UNAVAILABLE, message) from None
                wait_s = _RETRY_FIRST_S * 2**retries
            else:
                self._learn(stream.response.headers)
                wire.confirm(self._request, doubted)
                return stream, first_by
            retries += 1
            await asyncio.sleep(wait_s or 0.0)

    def _learn(self, headers: Mapping[str, str]) -> None:
        limits = provider_limits(headers)
        if limits is not None and self._on_limits is not None:
            self._on_limits(limits)

    def _broken_off(self, error: APIError, headers: Mapping[str, str]) -> RayloomError:
        settings = self.client.settings
        if isinstance(error, APIConnectionError):
            return Transient(BROKE_OFF, f"the connection to {settings.shown} broke: {_cause(error)}")
        return Failure.read(error.body, status=0, headers=headers, fallback=error.message).error(settings)

    def _unfinished(self, media_type: str) -> RayloomError:
        settings = self.client.settings
        if self.heard.first_text_at is None and not media_type.startswith("text/event-stream"):
            kind = excerpt(media_type, settings) or "nothing"
            message = f"{settings.shown} answers with {kind} and no stream: is its base_url another?"
            return Refused(REFUSED, message)
        return Transient(BROKE_OFF, f"{settings.shown} ended its answer without saying that it was whole")

    def _cut_off(self) -> str:
        """Why the answer ended before its end; empty where it did not. Raises Refused (``MODEL_REFUSED``)."""
        heard, settings = self.heard, self.client.settings
        if heard.is_cut:
            return f"here, after {heard.size_bytes} bytes"
        if heard.refusal and not heard.pieces:
            raise Refused(REFUSED, f"{settings.shown} declines: {excerpt(heard.refusal, settings)}")
        if heard.finish == "content_filter":
            raise Refused(REFUSED, f"{settings.shown} broke off: its filter of contents would not have it")
        return f"after {self.max_tokens} tokens" if heard.finish == "length" else ""


def _cause(error: APIConnectionError) -> str:
    cause = error.__cause__
    return f"{type(cause).__name__}: {cause}"[:200] if cause is not None else error.message[:200]
