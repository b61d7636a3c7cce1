"""The settings of the commands beside `rayloom up`: those of the one that runs.

The present folder may be anybody's, such as a repository that was just cloned. It must not say where our keys go: its
``.env`` and ``rayloom.toml`` count for what sends none, and for `rayloom up` itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rayloom.cluster.home import Home
from rayloom.cluster.settings import Settings, load_settings
from rayloom.cluster.sources import from_environment, from_folder, home_of

IN_JOB: Final = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The variable that every entry point of a Ray job has."""


def settings_of_up(home: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Settings:
    """All sources as the `rayloom up` that runs in ``home`` read them; where none runs, the environment and that home.

    ``home`` None: the environment's, or the default. Raises SettingsError, as `load_settings` does.
    """
    environ = os.environ if environ is None else environ
    home = _home(None, environ) if home is None else home
    running = Home(home).read_run()
    folder = Path(running.folder) if running is not None and running.folder else None
    # The same home, whatever is written there now.
    return load_settings(folder, environ=environ, home=home)


def settings_here(*, environ: Mapping[str, str] | None = None) -> Settings:
    """The same of the home that the present folder means; where no `up` runs in it, what one would read here.

    For commands that concern the present folder and send no API key. Raises SettingsError, as `load_settings` does.
    """
    environ = os.environ if environ is None else environ
    home = home_here(environ=environ)
    running = Home(home).read_run()
    if IN_JOB in environ or (running is not None and running.folder):
        return settings_of_up(home, environ=environ)
    return load_settings(Path.cwd(), environ=environ)


def home_here(*, environ: Mapping[str, str] | None = None) -> Path:
    """The home of an `up` in the present folder, whatever else is set there. Raises SettingsError."""
    environ = os.environ if environ is None else environ
    # Whoever sends a job sends its folder along.
    return _home(None if IN_JOB in environ else Path.cwd(), environ)


def _home(folder: Path | None, environ: Mapping[str, str]) -> Path:
    sources = [from_environment(environ, Settings.model_fields)]
    if folder is not None:
        sources += from_folder(folder, ("home",), strict=False)
    return home_of(sources)
