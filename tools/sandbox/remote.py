"""One sandbox of E2B, by its SDK: how it is asked for, what it must say of itself, and how it is thrown away.

The SDK is an extra that need not be installed. Its errors become ours here, and none of them holds the key.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from rayloom.dag.errors import RayloomError, Refused, Transient, UserError
from rayloom.tools.sandbox import owner
from rayloom.tools.settings import E2bSettings

if TYPE_CHECKING:
    from e2b import AsyncSandbox
    from e2b.sandbox.sandbox_api import SandboxNetworkOpts

_log = logging.getLogger(__name__)

REQUEST_S: Final = 30.0
KILL_S: Final = 10.0
RETRIES: Final = 2
"""Of requests that the service answered with 429, 502, 503 or 504; together they take no longer than one may."""
MARGIN_S: Final = 120
"""What a sandbox lives longer than its program and the way of its files may take."""
EVERYTHING: Final = "0.0.0.0/0"
MOST_ORPHANS: Final = 100
"""At once: the others come next time."""
MISSING: Final = (
    "RAYLOOM_SANDBOX=e2b needs the SDK of E2B, which is not installed here: on every host, "
    "`pip install 'e2b>=2.63,<3'` beside rayloom"
)


class Service:
    """An E2B service, with our key for it."""

    def __init__(self, settings: E2bSettings) -> None:
        self._settings = settings
        self._key = settings.api_key.get_secret_value()
        self.api_url = settings.api_url or f"https://api.{settings.domain}"

    @property
    def options(self) -> dict[str, Any]:
        """What every call of the SDK is told, so that it looks for nothing in the environment by itself."""
        urls = (self.api_url, self._settings.sandbox_url)
        given: dict[str, Any] = {
            "api_key": self._key,
            "domain": self._settings.domain,
            "api_url": self.api_url,
            "debug": False,
            "retries": RETRIES,
            "request_timeout": REQUEST_S,
            # Without TLS there is nobody to agree on another one with.
            "http_version": "1.1" if any(url.startswith("http:") for url in urls) else "2",
        }
        return given | ({"sandbox_url": self._settings.sandbox_url} if self._settings.sandbox_url else {})

    def check(self) -> str:
        """The version of the SDK. Raises Refused (``SANDBOX_UNAVAILABLE``) without it, or without a key."""
        if not self._key:
            said = "RAYLOOM_SANDBOX=e2b needs a key: set RAYLOOM_E2B_API_KEY, or E2B_API_KEY"
            raise Refused("SANDBOX_UNAVAILABLE", said)
        try:
            return str(importlib.import_module("e2b.api.metadata").package_version)
        except ImportError as error:
            raise Refused("SANDBOX_UNAVAILABLE", MISSING) from error

    async def answers(self) -> None:
        """See that the service takes our key, which costs nothing: it is asked which sandboxes there are.

        Raises Refused (``SANDBOX_UNAVAILABLE``) and Transient (``SANDBOX_START_FAILED``).
        """
        from e2b import AsyncSandbox

        with self.errors("SANDBOX_START_FAILED"):
            async with asyncio.timeout(REQUEST_S):
                await AsyncSandbox.list(limit=1, **self.options).next_items()

    async def create(self, lifetime_s: float, hosts: Mapping[str, str]) -> AsyncSandbox:
        """A sandbox of its own, which ends by itself after so long, whatever becomes of us.

        ``hosts``: the names that it may reach, with the address of each; without any, it reaches nothing.
        Raises Refused (``SANDBOX_UNAVAILABLE``) and Transient (``SANDBOX_START_FAILED``).
        """
        from e2b import AsyncSandbox

        whole_s = math.ceil(lifetime_s)
        coming = asyncio.ensure_future(
            AsyncSandbox.create(
                template=self._settings.template,
                timeout=whole_s,
                metadata={**owner.labels(), owner.EXPIRES: str(int(time.time()) + whole_s + MARGIN_S)},
                network=_network(hosts),
                allow_internet_access=None if hosts else False,
                lifecycle={"on_timeout": "kill"},
                idempotency_key=str(uuid4()),
                **self.options,
            )
        )
        try:
            with self.errors("SANDBOX_START_FAILED"):
                made = await asyncio.shield(coming)
        except asyncio.CancelledError:
            # What was asked for may come all the same, and nobody else knows of it.
            await asyncio.shield(asyncio.ensure_future(self._give_up(coming)))
            raise
        return made

    async def expect_walls(self, made: AsyncSandbox, hosts: Mapping[str, str]) -> None:
        """See that the service has understood what the sandbox may reach: an old one leaves out what it doesn't know.

        Raises Refused (``SANDBOX_UNAVAILABLE``), and what a request may raise.
        """
        with self.errors("SANDBOX_START_FAILED"):
            found = await made.get_info()
        network: Mapping[str, Any] = found.network or {}
        denied = EVERYTHING in (network.get("deny_out") or ())
        if hosts:
            # Where it says nothing of name servers, there is one that can be reached.
            holds = denied and set(network.get("allow_out") or ()) == set(hosts) and network.get("dns_servers") == []
        else:
            holds = not network.get("allow_out") and (denied or found.allow_internet_access is False)
        if not holds or network.get("allow_public_traffic") is not False:
            said = f"{self.api_url} does not keep a sandbox from the network as it was asked to"
            raise Refused("SANDBOX_UNAVAILABLE", said)

    async def kill(self, identifier: str) -> bool:
        """Kill a sandbox, now; whether that is certain. It never raises: what is left ends by itself."""
        from e2b import AsyncSandbox

        try:
            async with asyncio.timeout(KILL_S):
                await AsyncSandbox.kill(identifier, **{**self.options, "request_timeout": KILL_S})
        except Exception as error:  # noqa: BLE001 - whatever it is, there is nobody to tell, and the lease goes on
            _log.warning("sandbox.not_killed", extra={"sandbox": identifier, "reason": self.plain(error)})
            return False
        return True

    async def sweep(self) -> int:
        """Kill the sandboxes whose owners are dead; how many there were."""
        try:
            self.check()
        except Refused:
            # A run will say so.
            return 0
        from e2b import AsyncSandbox, SandboxQuery

        orphans: list[str] = []
        # It is looked again later; what is wrong with the service, the run itself will meet.
        with suppress(RayloomError), self.errors("SANDBOX_START_FAILED"):
            async with asyncio.timeout(REQUEST_S):
                pages = AsyncSandbox.list(query=SandboxQuery(metadata={owner.SANDBOX: "1"}), **self.options)
                while pages.has_next and len(orphans) < MOST_ORPHANS:
                    # Looked at again: a service that ignores the question names other people's, too.
                    orphans += [
                        each.sandbox_id
                        for each in await pages.next_items()
                        if each.metadata.get(owner.SANDBOX) == "1" and owner.is_orphan(each.metadata)
                    ]
        return sum(await asyncio.gather(*map(self.kill, orphans[:MOST_ORPHANS])))

    @contextmanager
    def errors(self, code: str) -> Iterator[None]:
        """The errors of the SDK, as ours; ``code``: that of what may be better another time."""
        try:
            yield
        except RayloomError:
            raise
        except Exception as error:  # noqa: BLE001 - the SDK raises bare ones, too, and what it stands on has its own
            raise self._told(error, code) from None

    def plain(self, error: BaseException) -> str:
        """What an error says, in short and without the key, which a server may have sent back."""
        said = f"{type(error).__name__}: {error}".replace(self._key or "\0", "***")
        return said[:500]

    def _told(self, error: Exception, code: str) -> RayloomError:
        import e2b

        said = f"E2B at {self.api_url}: {self.plain(error)}"
        if isinstance(error, e2b.AuthenticationException):
            return Refused("SANDBOX_UNAVAILABLE", f"{said}; is RAYLOOM_E2B_API_KEY right?")
        if isinstance(error, e2b.NotEnoughSpaceException):
            return UserError("FILES_TOO_LARGE", "/files: they don't fit into the sandbox")
        if isinstance(error, e2b.TemplateException | e2b.InvalidArgumentException):
            return Refused("SANDBOX_UNAVAILABLE", said)
        status = getattr(error, "status_code", None)
        # 408, 409, 425 and 429 pass with time: too slow, in between, too early, too many.
        if isinstance(status, int) and 400 <= status < 500 and status not in (408, 409, 425, 429):
            return Refused("SANDBOX_UNAVAILABLE", said)
        return Transient(code, said)

    async def _give_up(self, coming: asyncio.Future[AsyncSandbox]) -> None:
        with suppress(RayloomError), self.errors("SANDBOX_START_FAILED"):
            made = await coming
            await self.kill(made.sandbox_id)


def _network(hosts: Mapping[str, str]) -> SandboxNetworkOpts:
    """What a sandbox may reach, and who may reach it: nobody, by the public address that each of its ports has."""
    network: SandboxNetworkOpts = {"deny_out": [EVERYTHING], "allow_public_traffic": False}
    if hosts:
        network["allow_out"] = sorted(hosts)
        # Names lead out of a sandbox, too: it has its own in /etc/hosts, and asks nobody.
        network["dns_servers"] = []
    return network
