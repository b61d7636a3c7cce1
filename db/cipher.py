"""Secrets of users as the database keeps them: encrypted with a key that is not in the database."""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64encode
from typing import Final

from cryptography.fernet import Fernet, InvalidToken
from pydantic import SecretStr

_PURPOSE: Final = b"rayloom: secrets of users in the database"


class Unreadable(Exception):
    """What is kept was encrypted with another key, or changed since."""


class Cipher:
    """Encrypts and decrypts with a key derived from ``RAYLOOM_SECRET_KEY``, which may be any text."""

    def __init__(self, secret_key: SecretStr) -> None:
        text = secret_key.get_secret_value()
        if not text:
            raise ValueError("there is no secret key")
        # Of its own for this purpose: what else is made from the same secret key tells nothing of it.
        self._fernet = Fernet(urlsafe_b64encode(hmac.digest(text.encode(), _PURPOSE, hashlib.sha256)))

    def encrypt(self, secret: str) -> str:
        """What may be kept of a secret."""
        return self._fernet.encrypt(secret.encode()).decode()

    def decrypt(self, kept: str) -> str:
        """The secret. Raises Unreadable."""
        try:
            return self._fernet.decrypt(kept.encode()).decode()
        except InvalidToken as error:
            raise Unreadable("it was encrypted with another RAYLOOM_SECRET_KEY") from error
