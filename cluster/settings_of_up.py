"""The settings of the commands beside `rayloom up`: those of the one that runs, else those that it would have here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings, load_settings

IN_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable that every entry point of a Ray job has."""


def settings_of_up(*, environ: Mapping[str, str] | None = None, **given: object) -> Settings:
    """Read all sources as `rayloom up` did where it was started; where none runs in this home, as it would here.

    ``given`` are settings that go before everything else. Raises SettingsError, as `load_settings` does.
    """
    environ = os.environ if environ is None else environ
    # Whoever sends a job sends its folder along, which must not say where our keys go.
    here = None if IN_JOB in environ else Path.cwd()
    settings = load_settings(here, environ=environ, **given)
    running = Home(settings.home).read_run()
    if running is None or not running.folder:
        return settings
    # The same home, whatever is written there now.
    return load_settings(Path(running.folder), environ=environ, **(given | {"home": settings.home}))
