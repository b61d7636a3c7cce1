"""Dead letters: written by the statement that blocks, grouped by cause, settled, mirrored and forgotten."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from rayloom.dag.errors import ErrorInfo
from rayloom.db import attempts, letters, retries, task_moves
from rayloom.db.letters import LetterFilter
from tests.integration.db.spine import Spine, outcome

OPEN = LetterFilter(statuses=("open",))


async def block(spine: Spine, *errors: tuple[str, str]) -> UUID:
    """A task whose subtasks are BLOCKED, each by an error of this code and message."""
    made = await spine.submit({f"s{n}": [] for n in range(len(errors))})
    claimed = await spine.claim(made.task_id)
    endings = []
    for n, (code, message) in enumerate(errors):
        error = ErrorInfo(code=code, error_class="user", message=message, retryable=False)
        endings.append(spine.ending(claimed[f"s{n}"], outcome(error=error)))
    await attempts.complete(spine.engine, endings)
    return made.task_id


async def listed(spine: Spine, wanted: LetterFilter = OPEN, limit: int = 100) -> list[Any]:
    return await letters.list_letters(spine.engine, user_id=spine.user_id, wanted=wanted, after=None, limit=limit)


async def test_a_blocked_subtask_is_a_letter_that_says_why(spine: Spine) -> None:
    task_id = await block(spine, ("BOOM", "it went wrong"))
    (letter,) = await listed(spine)
    assert (letter.task_id, letter.subtask, letter.tool, letter.code) == (task_id, "s0", "t", "BOOM")
    assert letter.error["message"] == "it went wrong"
    assert (letter.attempts, letter.status, letter.input) == (1, "open", {})
    found = await letters.letter_with_attempts(spine.engine, letter.id, spine.user_id)
    assert found is not None
    assert [attempt.error["code"] for attempt in found[1]] == ["BOOM"]
    assert await letters.letter_with_attempts(spine.engine, letter.id, UUID(int=7)) is None


SAME = [
    ("host 10.0.0.17:5432 is away", "host 10.0.3.4:5433 is away"),
    ("no file '/tmp/x' here", "no file '/var/y' here"),
    ('no key "a" and `b`', 'no key "c d" and `e`'),
    (
        "row 019b2c5e-0000-7000-8000-00000000abcd is gone",
        "row 3f2504e0-4f89-11d3-9a0c-0305e82c3301 is gone",
    ),
    ("https://a.example/x?y=1 answered 503", "http://b.example:8080/ answered 502"),
    ("object at 0x7f3a and deadbeef01 1.5 s", "object at 0xffff and 0123abcdef 20,000 s"),
    ("mail to me@a.example failed", "mail to you.too@b.example failed"),
    ("can't do  that in 3 s", "can't do\nthat in 4 s"),
]
OTHER = [
    ("it went wrong", "it went right"),
    ("can't read it, don't try", "can't write it, don't try"),
    ("the facade fell", "the deadline fell"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
async def test_what_differs_from_case_to_case_makes_no_other_cause(spine: Spine, one: str, two: str) -> None:
    await block(spine, ("C", one), ("C", two))
    assert len({letter.fingerprint for letter in await listed(spine)}) == 1


@pytest.mark.parametrize(("one", "two"), OTHER)
async def test_other_words_are_another_cause(spine: Spine, one: str, two: str) -> None:
    await block(spine, ("C", one), ("C", two), ("D", one))
    assert len({letter.fingerprint for letter in await listed(spine)}) == 3


async def test_long_messages_with_many_quotes_take_no_time(spine: Spine) -> None:
    await block(spine, ("C", " '" * 100_000), ("C", '"`' * 100_000), ("C", "a" * 1_000_000))
    assert len(await listed(spine)) == 3


async def test_letters_are_filtered_and_paged(spine: Spine) -> None:
    first = await block(spine, ("A", "a"), ("B", "b"))
    second = await block(spine, ("A", "a"))
    assert {row.subtask for row in await listed(spine, LetterFilter(code="B"))} == {"s1"}
    assert {row.task_id for row in await listed(spine, LetterFilter(task_id=second))} == {second}
    assert len(await listed(spine, LetterFilter(tool="t"))) == 3
    assert not await listed(spine, LetterFilter(tool="u"))
    assert not await listed(spine, LetterFilter(labels=(("a", "b"),)))
    assert not await listed(spine, LetterFilter(created_after=datetime.now(UTC)))
    assert len(await listed(spine, LetterFilter(created_before=datetime.now(UTC)))) == 3
    seen: list[UUID] = []
    after: letters.Place | None = None
    while True:
        page = await letters.letter_places(spine.engine, user_id=spine.user_id, wanted=OPEN, after=after, limit=2)
        seen += [id_ for _, id_ in page]
        if len(page) < 2:
            break
        after = page[-1]
    assert seen == [row.id for row in await listed(spine)]
    assert len(set(seen)) == 3
    groups = await letters.group_letters(spine.engine, user_id=spine.user_id, wanted=OPEN, after=None, limit=10)
    assert [group.count for group in groups] == [2, 1]
    assert groups[0].sample.task_id == second
    assert groups[1].sample.task_id == first
    beyond = (groups[0].count, groups[0].fingerprint)
    rest = await letters.group_letters(spine.engine, user_id=spine.user_id, wanted=OPEN, after=beyond, limit=10)
    assert [group.fingerprint for group in rest] == [groups[1].fingerprint]


async def test_large_inputs_are_shown_one_by_one(spine: Spine) -> None:
    await block(spine, ("A", "a"))
    (row,) = await listed(spine)
    for large in ("x" * (letters.LISTED_INPUT_CHARS + 1), "".join(chr(33 + n * n % 7919) for n in range(60_000))):
        await spine.rows(
            "UPDATE sub_tasks SET input_context = jsonb_build_object('v', $2::text) WHERE id = $1", row.id, large
        )
        assert (await listed(spine))[0].input is None
        found = await letters.letter_with_attempts(spine.engine, row.id, spine.user_id)
        assert found is not None
        assert found[0].input == {"v": large}


async def test_a_letter_is_retried_and_opened_again(spine: Spine) -> None:
    task_id = await block(spine, ("A", "a"))
    await spine.retry(task_id)
    assert not await listed(spine)
    assert [row.status for row in await listed(spine, LetterFilter())] == ["retried"]
    await spine.fail(*(await spine.claim(task_id)).values())
    (letter,) = await listed(spine)
    assert (letter.code, letter.attempts) == ("BROKEN", 2)


async def test_only_letters_of_which_nothing_can_come_are_forgotten(spine: Spine) -> None:
    retried, discarded, waits, cancelled = [await block(spine, ("A", "a"), ("B", "b")) for _ in range(4)]
    await spine.retry(retried, "s0")
    first, _ = await listed(spine, LetterFilter(task_id=discarded))
    assert await retries.discard_letters(spine.engine, [first.id]) == 1
    await spine.retry(cancelled, "s0")
    await task_moves.end_task(spine.engine, cancelled, status="CANCELLED", error=None, reason="no more")
    assert await letters.forget_settled(spine.engine, older_than_s=3600) == 0
    assert await letters.forget_settled(spine.engine, older_than_s=0, limit=2) == 2
    assert await letters.forget_settled(spine.engine, older_than_s=0) == 2
    assert await letters.forget_settled(spine.engine, older_than_s=0) == 0
    left = await listed(spine, LetterFilter(), limit=10)
    assert sorted(str(row.task_id) for row in left) == sorted(map(str, [retried, discarded, waits, waits]))
    # The rules of the record want a letter for each that is BLOCKED: what is forgotten is, for the audit, let go.
    await spine.rows("DELETE FROM tasks WHERE id = ANY ($1)", [discarded, cancelled])


async def test_letters_go_with_their_task(spine: Spine) -> None:
    task_id = await block(spine, ("A", "a"))
    await spine.rows("DELETE FROM tasks WHERE id = $1", task_id)
    assert not await listed(spine, LetterFilter())
