"""What PostgreSQL keeps of a password, computed here, so that the password itself is never sent to a server.

RFC 5802 and RFC 7677; the form is that of ``pg_authid.rolpassword``, which CREATE ROLE and ALTER ROLE take as it is.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode
from typing import Final

ITERATIONS: Final = 4096
"""PostgreSQL's own number; what we make passwords of can't be guessed."""
_SALT_BYTES: Final = 16


def verifier(password: str, *, salt: bytes | None = None) -> str:
    """The SCRAM-SHA-256 verifier of a password, which must be ASCII: nothing is normalised. No ``salt``: a new one."""
    salt = secrets.token_bytes(_SALT_BYTES) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${ITERATIONS}:{_text(salt)}${_text(stored_key)}:{_text(server_key)}"


def _text(raw: bytes) -> str:
    return b64encode(raw).decode()
