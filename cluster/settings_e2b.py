"""The settings of sandboxes at an E2B service, a part of `Settings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from rayloom.cluster.spellings import HttpUrl
from rayloom.tools.settings import E2bSettings

_KEY: Final = {"e2b_api_key": "E2B_API_KEY"}
_PLACES: Final = {
    "e2b_domain": "E2B_DOMAIN",
    "e2b_api_url": "E2B_API_URL",
    "e2b_sandbox_url": "E2B_SANDBOX_URL",
}


class E2bFields(BaseSettings):
    """Where the service is, and our key for it: ``RAYLOOM_E2B_<…>``. Read only where ``RAYLOOM_SANDBOX`` is ``e2b``."""

    e2b_api_key: SecretStr = Field(default=SecretStr(""), description="empty: E2B_API_KEY")
    e2b_domain: str = Field(
        default="e2b.app", pattern=r"^[A-Za-z0-9.-]+(:\d+)?$", description="of a service of one's own; or E2B_DOMAIN"
    )
    e2b_api_url: HttpUrl = Field(default="", description="empty: https://api.<domain>, or E2B_API_URL")
    e2b_sandbox_url: HttpUrl = Field(
        default="", description="one address for all sandboxes; empty: that of each, or E2B_SANDBOX_URL"
    )
    e2b_template: str = Field(default="base", min_length=1, description="what sandboxes are made of; with a python3")

    @property
    def e2b(self) -> E2bSettings:
        """The E2B service that sandboxes may run at."""
        return E2bSettings(
            api_key=self.e2b_api_key,
            domain=self.e2b_domain,
            api_url=self.e2b_api_url,
            sandbox_url=self.e2b_sandbox_url,
            template=self.e2b_template,
        )


def from_e2b(environ: Mapping[str, str], given: Mapping[str, object]) -> dict[str, str]:
    """What E2B's own variables say where our settings (``given``, by field) say nothing; of places all or none.

    Nothing unless sandboxes are to be there: they are set for something else.
    """
    if str(given.get("sandbox", "")) != "e2b":
        return {}
    placed = any(given.get(name) for name in _PLACES)
    names = _KEY if placed else _KEY | _PLACES
    return {field: environ[name] for field, name in names.items() if environ.get(name) and not given.get(field)}
