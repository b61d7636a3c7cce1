"""Tokens as the reference encodings count them, with no network, and texts that are meant to break the count."""

from __future__ import annotations

import gzip
import socket
import time
from pathlib import Path

import pytest

from rayloom.dag.errors import Bug
from rayloom.tools.models import tokens
from rayloom.tools.models.tokens import COUNTED_CHARS, Encoding, count, encode

BOTH: list[Encoding] = ["o200k_base", "cl100k_base"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("text", "o200k", "cl100k"),
    [
        # From the OpenAI cookbook, "How to count tokens with tiktoken".
        ("tiktoken is great!", [83, 8251, 2488, 382, 2212, 0], [83, 1609, 5963, 374, 2294, 0]),
        ("antidisestablishmentarianism", [493, 129901, 376, 160388, 21203, 2367], [519, 85342, 34500, 479, 8997, 2191]),
        ("2 + 2 = 4", [17, 659, 220, 17, 314, 220, 19], [17, 489, 220, 17, 284, 220, 19]),
        (
            "お誕生日おめでとう",
            [8930, 9697, 243, 128225, 8930, 17693, 4344, 48669],
            [33334, 45918, 243, 21990, 9080, 33334, 62004, 16556, 78699],
        ),
    ],
)
def test_the_values_of_the_cookbook(text: str, o200k: list[int], cl100k: list[int]) -> None:
    assert encode(text) == encode(text, "o200k_base") == o200k
    assert encode(text, "cl100k_base") == cl100k
    assert (count(text), count(text, "cl100k_base")) == (len(o200k), len(cl100k))


@pytest.mark.parametrize("encoding", BOTH)
@pytest.mark.parametrize(
    ("text", "least"),
    [
        ("", 0),
        ("<|endoftext|>", 3),
        ("a\ud800b", 3),
        ("\udc00\ud800", 1),
        ("a" * 1_000_000, 1_000),
        (" " * 1_000_000, 100),
        ("\t" * 1_000_000 + "x", 100),
        ("\n" * 1_000_000, 1_000),
        ("!" * 1_000_000, 1_000),
        ("\u0301" * 300_000, 1_000),
        ("😀" * 300_000, 1_000),
        ("\0" * 300_000, 1_000),
        ("aB1 " * 250_000, 500_000),
    ],
    ids=[
        *("empty", "special", "lone", "swapped", "letters", "blanks", "tabs"),
        *("lines", "marks", "accents", "faces", "nuls", "mixed"),
    ],
)
def test_any_text_is_counted(text: str, least: int, encoding: Encoding) -> None:
    assert count(text, encoding) >= least


@pytest.mark.parametrize("encoding", BOTH)
def test_a_megabyte_takes_no_time_worth_the_name(encoding: Encoding) -> None:
    count("", encoding)
    text = "The quick brown fox jumps over the lazy dog, 42 times; 敏捷的棕色狐狸。\n" * 15_000
    for hostile in (text[:1_000_000], "a" * 1_000_000):
        # What the processor does, however busy the machine is.
        started = time.process_time()
        assert count(hostile, encoding) > 100_000
        assert time.process_time() - started < 4


def test_a_text_counts_as_its_parts_do() -> None:
    text = "".join(f"line {number}: the rain in Spain\n" for number in range(50_000))
    assert abs(count(text) - len(encode(text))) <= 2
    longer = text * 4
    assert len(longer) > COUNTED_CHARS
    assert count(longer) == pytest.approx(4 * count(text), rel=0.001)


def test_a_vocabulary_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tiktoken.gz").write_bytes(gzip.compress(b"IQ== 0\n"))
    monkeypatch.setattr(tokens, "_vocabulary", lambda name: tmp_path / f"{name}.gz")
    with pytest.raises(Bug) as error:
        tokens._ranks("https://host.example/x.tiktoken", "0" * 64)
    assert error.value.code == "VOCABULARY_INVALID"


def test_a_vocabulary_that_is_missing_is_told() -> None:
    with pytest.raises(Bug) as error:
        tokens._vocabulary("none.tiktoken")
    assert error.value.code == "VOCABULARY_MISSING"
