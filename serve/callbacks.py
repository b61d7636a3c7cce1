"""Where the end of a task is to be told: judged when it is submitted, and never shown again with its secret."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final
from uuid import UUID

from rayloom.dag import webhook
from rayloom.dag.errors import Fault, UserError
from rayloom.dag.values import Json
from rayloom.db.cipher import Cipher
from rayloom.db.submit import Callback
from rayloom.serve.settings import ServeSettings
from rayloom.tools.addresses import AddressRules, Target, parse_url

_LOOPBACK: Final = ip_address("127.0.0.1")
_NO_SECRET: Final = (
    f"must be {webhook.PREFIX} and the base64 of {webhook.MIN_SECRET_BYTES} to {webhook.MAX_SECRET_BYTES} random "
    f"bytes, as Standard Webhooks has them, or another text of {webhook.MIN_TEXT_CHARS} to {webhook.MAX_TEXT_CHARS} "
    "characters"
)


class Callbacks:
    """Judges callbacks by what an administrator allows, and encrypts their secrets."""

    def __init__(self, settings: ServeSettings) -> None:
        self._master = settings.secret_key.get_secret_value()
        self._cipher = Cipher(settings.secret_key) if self._master else None
        self._rules = AddressRules.parse(settings.allow_addresses)

    def faults(self, url: str | None, secret: str | None) -> list[Fault]:
        """What is wrong with a callback. A name is resolved, and judged, when it is called."""
        found = []
        if url is not None and (why := self._why_not(url)) is not None:
            found.append(Fault("/callback_url", why))
        if secret is not None and url is None:
            found.append(Fault("/callback_secret", "is for webhooks: give a callback_url, too"))
        elif secret is not None and webhook.secret_bytes(secret) is None:
            found.append(Fault("/callback_secret", _NO_SECRET))
        return found

    def _why_not(self, url: str) -> str | None:
        if self._cipher is None:
            return "webhooks can't be signed here: there is no RAYLOOM_SECRET_KEY"
        try:
            target = parse_url(url)
        except UserError as error:
            return error.message
        if not self._may_be_called(target):
            return (
                f"{target.host}:{target.port} is not a public address; an administrator may allow it with "
                "RAYLOOM_ALLOW_ADDRESSES"
            )
        return None

    def _may_be_called(self, target: Target) -> bool:
        # RFC 6761: this name is loopback, whatever a resolver says.
        is_local = target.host == "localhost" or target.host.endswith(".localhost")
        try:
            address = _LOOPBACK if is_local else ip_address(target.host)
        except ValueError:
            return True
        return self._rules.allow(target.host, target.port, address)

    def of(self, url: str | None, secret: str | None, user_id: UUID) -> Callback | None:
        """What is written down of a callback without ``faults``."""
        if url is None:
            return None
        assert self._cipher is not None
        known = secret if secret is not None else self._derived(user_id)
        return Callback(url=parse_url(url).url, secret=self._cipher.encrypt(known))

    def told(self, document: Mapping[str, Json], user_id: UUID) -> str | None:
        """The secret that we made for a submission that named none: its user has to learn it from the answer."""
        if document.get("callback_url") is None or document.get("callback_secret") is not None:
            return None
        return self._derived(user_id)

    def _derived(self, user_id: UUID) -> str:
        return webhook.derived_secret(self._master, str(user_id))
