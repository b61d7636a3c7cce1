"""The verifier of a password, by the example of RFC 7677."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode

from rayloom.db.scram import verifier

SALT = b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
EXCHANGED = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={NONCE},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={NONCE}".encode()
PROOF = b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
SERVER_SIGNATURE = b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def test_it_verifies_the_example_of_the_standard() -> None:
    mechanism, parameters, keys = verifier("pencil", salt=SALT).split("$")
    assert (mechanism, parameters) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    stored, server = (b64decode(key) for key in keys.split(":"))
    assert b64encode(hmac.digest(server, EXCHANGED, "sha256")) == SERVER_SIGNATURE
    signature = hmac.digest(stored, EXCHANGED, "sha256")
    client = bytes(a ^ b for a, b in zip(PROOF, signature, strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_two_verifiers_of_a_password_differ() -> None:
    assert verifier("pencil") != verifier("pencil")
