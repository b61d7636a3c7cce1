"""Secrets as the database keeps them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from rayloom.db.cipher import Cipher, Unreadable


def test_what_was_encrypted_is_read_with_the_same_key_alone() -> None:
    kept = Cipher(SecretStr("any text")).encrypt("whsec_x")
    assert "whsec_x" not in kept
    assert Cipher(SecretStr("any text")).decrypt(kept) == "whsec_x"
    with pytest.raises(Unreadable, match="RAYLOOM_SECRET_KEY"):
        Cipher(SecretStr("another text")).decrypt(kept)
    with pytest.raises(Unreadable):
        Cipher(SecretStr("any text")).decrypt(kept[:-2] + "xx")


def test_without_a_key_there_is_no_cipher() -> None:
    with pytest.raises(ValueError, match="no secret key"):
        Cipher(SecretStr(""))
