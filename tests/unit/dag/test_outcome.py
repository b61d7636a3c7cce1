"""An outcome is a value: it compares, and it crosses processes."""

from __future__ import annotations

import pickle

import pytest

from rayloom.dag.errors import ErrorInfo, Transient
from rayloom.dag.outcome import Outcome


def test_an_outcome_survives_the_way_between_processes() -> None:
    outcome = Outcome(
        verdict="failed",
        error=ErrorInfo.from_exception(Transient("BUSY", "later", retry_after_s=2)),
        spans='[{"name":"EXECUTING"}]',
    )
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_an_outcome_has_nothing_that_was_not_said() -> None:
    outcome = Outcome(verdict="succeeded")
    assert (outcome.output, outcome.error, outcome.spans, outcome.stdout, outcome.tokens_used) == (
        None,
        None,
        "[]",
        "",
        0,
    )


def test_an_outcome_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        Outcome(verdict="lost").verdict = "succeeded"  # type: ignore[misc]  # that it can't is the point


def test_what_models_used_is_not_counted_again() -> None:
    assert Outcome(verdict="succeeded", tokens_used=9, model_tokens=7).tool_tokens == 2
    assert Outcome(verdict="failed", tokens_used=3, model_tokens=7).tool_tokens == 0
