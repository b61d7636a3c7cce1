"""Orders and outcomes cross processes as bytes, and come out as they went in."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from rayloom.actors import parcel
from rayloom.actors.order import AttemptOrder, Thought
from rayloom.dag.errors import ErrorInfo
from rayloom.dag.outcome import Outcome

TEXT = st.text(st.characters(codec=None), max_size=20)
THOUGHTS = st.builds(
    Thought, task_type=TEXT, instruction=TEXT, skills=st.lists(TEXT, max_size=3).map(tuple), rules=TEXT, key_id=TEXT,
)  # fmt: skip
ORDERS = st.builds(AttemptOrder, **{field.name: st.nothing() for field in fields(AttemptOrder)} | {
    "sub_task_id": TEXT, "task_id": TEXT, "user_id": TEXT, "key": TEXT, "tool": TEXT,
    "registry_version": st.integers(0), "attempt": st.integers(1), "timeout_s": st.floats(0, 1e6), "input": TEXT,
    "referred": st.lists(TEXT, max_size=3).map(tuple), "running": st.booleans(), "handed_at": st.floats(0, 1e12),
    "cacheable": st.booleans(), "input_blob": TEXT,
    "alternative": TEXT, "breaker_wait_s": st.floats(0, 1e6), "thought": st.none() | THOUGHTS,
})  # fmt: skip
ERRORS = st.builds(
    ErrorInfo, code=TEXT, error_class=st.sampled_from(["user", "transient", "bug"]), message=TEXT,
    retryable=st.booleans(), attempt=st.none() | st.integers(1, 9), retry_after_s=st.none() | st.floats(0, 60),
)  # fmt: skip
OUTCOMES = st.builds(
    Outcome, verdict=st.sampled_from(["succeeded", "failed", "timed_out", "cancelled", "lost"]),
    output=st.none() | TEXT, output_size=st.integers(0), output_blob=TEXT, error=st.none() | ERRORS,
    started_at=st.floats(0, 1e12), finished_at=st.floats(0, 1e12), stdout=TEXT, stderr=TEXT, log=TEXT,
    tokens_used=st.integers(), spans=TEXT, worker_id=TEXT, node_id=TEXT, ray_task_id=TEXT,
    called=st.booleans(),
)  # fmt: skip


@given(ORDERS)
def test_an_order_is_unpacked_as_it_was_packed(order: AttemptOrder) -> None:
    assert AttemptOrder.unpack(order.pack()) == order


@given(OUTCOMES)
def test_an_outcome_is_unpacked_as_it_was_packed(outcome: Outcome) -> None:
    assert parcel.unpack(parcel.pack(outcome)) == outcome


def test_only_plain_values_cross() -> None:
    error = ErrorInfo(code="X", error_class="bug", message="x", retryable=False)
    outcome = Outcome(verdict="failed", error=error)
    for packed in (parcel.pack(outcome), parcel.pack(replace(outcome, error=None, output="1"))):
        assert b"rayloom" not in packed
        assert isinstance(pickle.loads(packed), tuple)


def test_the_ray_task_of_an_attempt_is_named_after_what_it_calls() -> None:
    order = AttemptOrder(
        sub_task_id="s", task_id="0197", user_id="u", key="fetch.one", tool="t", registry_version=1, attempt=1,
        timeout_s=1.0, input="{}", referred=(), running=True, handed_at=0.0,
    )  # fmt: skip
    assert order.ray_name == "t"
    assert replace(order, alternative="other").ray_name == "other"
    thought = Thought(task_type="REASONING", instruction="Think.")
    assert replace(order, tool="", thought=thought).ray_name == "REASONING"
