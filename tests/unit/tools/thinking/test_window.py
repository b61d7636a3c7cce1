"""Input that is too long for a model: in pieces, summarised, and never cut in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rayloom.dag.errors import Transient, UserError
from rayloom.dag.model import ModelRequest, ModelView
from rayloom.dag.values import Json
from rayloom.tools.thinking import window as module
from rayloom.tools.thinking.asking import together
from rayloom.tools.thinking.pieces import head_of, pieces_of
from rayloom.tools.thinking.window import AT_ONCE, Window
from tests.fakes.scripted_models import Answer, ScriptedModels
from tests.unit.tools.context import KeptLog


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    "value",
    [
        "\n\n".join(f"paragraph {n} with some words in it." for n in range(200)),
        " ".join(map(str, range(5_000))),
        "x" * 3_000 + " " + " ".join(["y"] * 3_000),
        [f"item {n} " + "word " * n for n in range(60)],
        {"a": ["b c d " * 200]},
    ],
)
def test_pieces_are_the_whole_and_none_is_too_large(value: Json) -> None:
    pieces = pieces_of(value, 50, words)
    assert len(pieces) > 1
    assert max(map(words, pieces)) <= 50
    if isinstance(value, str):
        assert "".join(pieces) == value


def test_a_list_is_divided_between_its_items() -> None:
    assert pieces_of(["a b c", "d e f", {"g": 1}], 9, words) == ["a b c\nd e f", '{"g":1}']
    assert pieces_of([], 9, words) == []


def test_what_has_no_breaks_is_divided_all_the_same() -> None:
    pieces = pieces_of("x" * 1_000, 100, len)
    assert "".join(pieces) == "x" * 1_000
    assert max(map(len, pieces)) <= 100
    assert pieces_of("xy", 1, lambda text: len(text) * 5) == ["x", "y"]


def test_a_head_says_what_it_leaves_out() -> None:
    assert head_of("a b c", 3, words) == "a b c"
    assert head_of("a " * 100, 40, words).endswith("more characters are left out here)")


def says(text: str) -> Callable[[ModelRequest], str]:
    return lambda _request: text


def window(*answers: Answer, context: int = 600, log: KeptLog | None = None) -> tuple[Window, ScriptedModels]:
    models = ScriptedModels(
        answers, views={"cheap": ModelView(name="c", model="c", context_tokens=context, answer_tokens=100)}
    )
    return Window(models, log or KeptLog(), "Find the number."), models


async def test_what_fits_goes_as_it_is() -> None:
    made, models = window()
    assert await made.fitted({"a": [1, "x y"]}, 10) == '{"a":[1,"x y"]}'
    assert models.asked == []


async def test_the_long_input_is_summarised_and_the_short_one_kept() -> None:
    log = KeptLog()
    made, models = window(*[says("the gist")] * 20, log=log)
    text = await made.fitted({"short": "keep me", "long": "word " * 2_000}, 400)
    assert '"short":"keep me"' in text
    assert '"shortened_from_tokens":2000' in text
    assert "the gist\\nthe gist" in text
    assert 3 <= len(models.asked) < 20
    first = models.asked[0]
    assert (first.role, first.purpose) == ("cheap", "summarise")
    assert first.messages[1].text.startswith("THE TASK:\nFind the number.\n\nTHE PART:\nword word")
    assert any("'long' has 2,000 tokens" in line for _, line in log.lines)


async def test_summaries_that_are_too_long_are_summarised_again() -> None:
    answers = [says("word " * 90)] * 5 + [says("brief")] * 5
    made, models = window(*answers)
    assert "brief" in await made.fitted({"long": "word " * 1_500}, 200)
    assert len(models.asked) > 5


async def test_a_model_that_never_gets_to_the_point_is_given_up() -> None:
    made, _ = window(*[says("word " * 500)] * 500)
    with pytest.raises(UserError) as failed:
        await made.fitted({"long": "word " * 2_000}, 200)
    assert failed.value.code == "CONTEXT_TOO_LONG"


async def test_what_would_take_too_many_calls_is_refused_before_the_first() -> None:
    made, models = window()
    with pytest.raises(UserError, match="calls to shorten"):
        await made.fitted({"long": "word " * 400_000}, 200)
    assert models.asked == []


async def test_calls_are_bounded_for_all_inputs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLS", 8)
    one: Json = "word " * 2_000
    made, models = window(*[says("the gist")] * 40)
    assert "the gist" in await made.fitted({"a": one}, 400)
    assert made.calls == len(models.asked) <= 8
    made, models = window(*[says("the gist")] * 40)
    with pytest.raises(UserError, match="calls to shorten"):
        await made.fitted({"a": one, "b": one, "c": one}, 400)
    # None is paid for where all together can't be.
    assert models.asked == []
    # Nor are summaries of summaries free.
    made, models = window(*[says("word " * 90)] * 40)
    with pytest.raises(UserError, match="to shorten"):
        await made.fitted({"a": "word " * 1_900}, 200)
    assert len(models.asked) <= 8


async def test_no_room_at_all_is_said_so() -> None:
    made, _ = window(context=180)
    with pytest.raises(UserError, match="too small a context"):
        await made.fitted({"long": "word " * 500}, 200)
    with pytest.raises(UserError, match="leave no room"):
        await made.fitted({"long": "word " * 500}, 20)


async def test_a_model_that_is_away_ends_it_as_it_is() -> None:
    made, _ = window(says("a"), Transient("MODEL_UNAVAILABLE", "away"), *[says("b")] * 9)
    with pytest.raises(Transient):
        await made.fitted({"long": "word " * 2_000}, 400)


async def test_only_so_many_at_once_and_none_goes_on_after_a_failure() -> None:
    now = most = 0
    ends = asyncio.Event()

    async def work() -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            if now == AT_ONCE:
                ends.set()
            await ends.wait()
            await asyncio.sleep(0)
            return 1
        finally:
            now -= 1

    assert await together([work] * 9, at_once=AT_ONCE) == [1] * 9
    assert most == AT_ONCE

    async def fails() -> int:
        raise Transient("AWAY", "away")

    async def hangs() -> int:
        nonlocal now
        now += 1
        try:
            await asyncio.Event().wait()
        finally:
            now -= 1
        return 0

    with pytest.raises(Transient):
        await together([hangs, hangs, fails, hangs, hangs], at_once=3)
    assert now == 0
