"""The settings of a model on this machine, a part of `Settings`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class LocalModelFields(BaseSettings):
    """Which model, if any. Nothing is downloaded for it before its licence is accepted."""

    local_model: Literal["", "small", "coder"] = Field(
        default="", description="small or coder: serve a model on this machine; empty: none"
    )
    local_model_licence: Literal["", "accept"] = Field(
        default="", description="accept: its licence is accepted, and nobody is asked before the download"
    )
