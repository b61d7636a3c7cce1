"""Where packages come from is an address that may hold a password, and is checked as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayloom.cluster.settings import SettingsError, load_settings


def test_a_package_index_has_an_address_whose_password_shows_nowhere(tmp_path: Path) -> None:
    environ = {
        "RAYLOOM_HOME": str(tmp_path),
        "RAYLOOM_SANDBOX_PACKAGES_INDEX_URL": "https://me:hidden@pypi.example.com/simple/",
    }
    settings = load_settings(environ=environ)
    assert settings.tools.sandbox_packages_index_url.get_secret_value() == "https://me:hidden@pypi.example.com/simple"
    assert settings.tools.sandbox_packages_max_bytes == 512 * 1024 * 1024
    assert "hidden" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={**environ, "RAYLOOM_SANDBOX_PACKAGES_INDEX_URL": "me:hidden@pypi.example.com"})
    (line,) = caught.value.lines
    assert "RAYLOOM_SANDBOX_PACKAGES_INDEX_URL" in line
    assert "hidden" not in line
