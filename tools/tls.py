"""Whose certificates are believed: those that the packages bring, whatever the environment says."""

from __future__ import annotations

import ssl
from functools import cache

import httpx2


@cache
def trust() -> ssl.SSLContext:
    """The certificates, read once a process: that takes longer than many a request."""
    return httpx2.create_ssl_context(trust_env=False)
