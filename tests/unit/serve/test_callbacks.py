"""Where the end of a task may be told."""

from __future__ import annotations

import base64
from uuid import UUID

import pytest
from pydantic import SecretStr

from rayloom.dag import webhook
from rayloom.db.cipher import Cipher
from rayloom.serve.callbacks import Callbacks
from rayloom.serve.settings import ServeSettings

MASTER = SecretStr("master")
SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()
ALLOWED = ("10.1.0.0/16", "127.0.0.1:8080", "localhost:9090")
ANN, BOB = UUID(int=1), UUID(int=2)


@pytest.fixture
def callbacks() -> Callbacks:
    return Callbacks(ServeSettings(secret_key=MASTER, allow_addresses=ALLOWED))


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.org/hook?token=1", "http://example.org", "http://93.184.216.34/", "http://10.1.2.3:5/"),
        *("http://127.0.0.1:8080/", "http://localhost:9090/", "http://localhost:8080/", "http://[2606:4700::1111]/"),
    ],
)
def test_what_may_be_called(callbacks: Callbacks, url: str) -> None:
    assert callbacks.faults(url, None) == []


@pytest.mark.parametrize(
    "url",
    [
        *("", "nonsense", "ftp://example.org/", "https://user:pw@example.org/", "https://exa mple.org/", "file:///etc"),
        *("http://127.0.0.1/", "http://localhost/", "http://a.localhost:8081/", "http://10.0.0.1/", "http://[::1]/"),
        *("http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/", "http://0x7f.1/", "http://192.168.1.1/"),
        "http://0.0.0.0:8080/",
    ],
)
def test_what_may_not_be_called(callbacks: Callbacks, url: str) -> None:
    assert [fault.pointer for fault in callbacks.faults(url, None)] == ["/callback_url"]


def test_a_secret_is_one_of_standard_webhooks_or_another_text(callbacks: Callbacks) -> None:
    for right in (SECRET, "hunter2-and-more", "ein Schlüssel"):
        assert callbacks.faults("https://example.org", right) == []
    for wrong in ("", "hunter2", "whsec_", "whsec_" + base64.b64encode(bytes(8)).decode()):
        (fault,) = callbacks.faults("https://example.org", wrong)
        assert fault.pointer == "/callback_secret"
        assert "hunter2" not in fault.message
    assert [fault.pointer for fault in callbacks.faults(None, SECRET)] == ["/callback_secret"]
    assert len(callbacks.faults("nonsense", "hunter2")) == 2
    assert callbacks.faults(None, None) == []


def test_what_is_written_down_holds_no_secret_in_the_clear(callbacks: Callbacks) -> None:
    made = callbacks.of("https://EXAMPLE.org./a?b#c", SECRET, ANN)
    assert made is not None
    assert made.url == "https://example.org/a?b"
    assert Cipher(MASTER).decrypt(made.secret) == SECRET
    assert SECRET not in repr(made)
    assert callbacks.of(None, None, ANN) is None


def test_without_a_secret_the_user_gets_one_that_stays_and_is_told(callbacks: Callbacks) -> None:
    asked = {"callback_url": "https://example.org"}
    told = callbacks.told(asked, ANN)
    assert told is not None
    assert webhook.secret_bytes(told) is not None
    made = callbacks.of("https://example.org", None, ANN)
    assert made is not None
    assert Cipher(MASTER).decrypt(made.secret) == told
    assert callbacks.told(asked, BOB) != told
    assert callbacks.told({**asked, "callback_secret": SECRET}, ANN) is None
    assert callbacks.told({"callback_url": None}, ANN) is None


def test_without_a_key_nothing_can_be_signed() -> None:
    (fault,) = Callbacks(ServeSettings()).faults("https://example.org", None)
    assert (fault.pointer, "RAYLOOM_SECRET_KEY" in fault.message) == ("/callback_url", True)
