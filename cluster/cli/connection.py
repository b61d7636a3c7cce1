"""The API that the commands talk to: its address and key come from the settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayloom.dag.errors import UserError

STREAM_PATIENCE_S = 120.0
"""An API that goes away while it is being watched or followed is waited for at least so long: a restart takes less."""

BULK_TIMEOUT_S = 660.0
"""How long to wait for the answer to what the API gives itself up to 600 s: a large plan, or many letters."""

if TYPE_CHECKING:
    from rayloom.cluster.settings import Settings
    from rayloom.serve.client import Client


def connect(*, patience_s: float = 0.0, connections: int = 8, timeout_s: float | None = 30.0) -> Client:
    """A client for the API with the user's key, both from the settings; the present folder has no say in them.

    ``patience_s`` is how long an API that does not answer is waited for; ``timeout_s`` how long for one answer (None:
    without end). Raises SettingsError when the settings are wrong, UserError (``NO_API_KEY``) when there is no key.
    """
    # Both imports cost time that `rayloom --help` must not pay.
    from rayloom.cluster.settings_of_up import settings_of_up
    from rayloom.serve.client import Client

    settings = settings_of_up()
    url, key = address(settings), api_key(settings)
    return Client(
        url,
        key,
        timeout_s=timeout_s,
        patience_s=patience_s,
        stream_patience_s=max(patience_s, STREAM_PATIENCE_S),
        connections=connections,
    )


def address(settings: Settings) -> str:
    """``RAYLOOM_URL``; else where the rayloom that owns this home says that it serves; else host and port."""
    from rayloom.cluster.home import Home

    if settings.url:
        return settings.url
    running = Home(settings.home).read_run()
    return running.url if running is not None and running.url else settings.api_url


def api_key(settings: Settings) -> str:
    """``RAYLOOM_API_KEY``, or the key that the first start left in the home. Raises UserError (``NO_API_KEY``)."""
    from rayloom.cluster.home import Home, HomeError

    given = settings.api_key.get_secret_value()
    if given:
        return given
    try:
        key = Home(settings.home).read_secret("api_key")
    except HomeError as error:
        raise UserError("NO_API_KEY", str(error)) from error
    if key is None:
        missing = settings.home / "api_key"
        raise UserError("NO_API_KEY", f"no API key: {missing} is made by `rayloom up`; or set RAYLOOM_API_KEY")
    return key
