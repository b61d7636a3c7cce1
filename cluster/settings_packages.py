"""The settings of the packages that sandboxed programs may ask for."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from rayloom.cluster.spellings import SecretHttpUrl


class PackageFields(BaseSettings):
    """A part of `Settings`: where packages come from, if from anywhere, and how large a set of them may become."""

    sandbox_packages_dir: Path | None = Field(default=None, description="wheels that programs may ask for")
    sandbox_packages_index_url: SecretHttpUrl = Field(
        default=SecretStr(""), description="a simple package index that programs may ask, by its address; empty: none"
    )
    sandbox_packages_max_mb: int = Field(default=512, ge=1, description="what one set of packages may take")
