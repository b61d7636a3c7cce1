"""Nodes are seen to on a real Ray: once when they are new, then now and then, whatever becomes of them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
import ray
from uuid_utils.compat import uuid7

from rayloom.actors import node_sweeper
from rayloom.actors.node_sweeper import NodeSweeper
from rayloom.tools.sandbox.package_store import store_folder
from rayloom.tools.settings import ToolSettings

SETTINGS = ToolSettings(sandbox="bubblewrap")


@pytest.fixture(autouse=True)
def store(local_ray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is swept is what Ray's own workers see, and nobody else on this host."""
    monkeypatch.setattr("tempfile.tempdir", str(local_ray))


def half_made() -> Path:
    """What a killed installer leaves on this host."""
    left = store_folder() / f"{uuid7().hex}.new"
    left.mkdir()
    return left


async def test_a_node_is_seen_to_when_it_is_new_and_when_it_is_due(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=node_sweeper.__name__)
    sweeper = NodeSweeper(SETTINGS, look_s=7, every_s=3_600)
    first = half_made()
    assert await sweeper.step() == 7
    assert not first.exists()
    assert [each.message for each in caplog.records] == ["node.swept"]
    # Not again yet; another life of the scheduler knows nothing of that.
    second = half_made()
    await sweeper.step()
    assert second.exists()
    await NodeSweeper(SETTINGS).step()
    assert not second.exists()
    often = NodeSweeper(SETTINGS, every_s=0)
    for _ in range(2):
        left = half_made()
        await often.step()
        assert not left.exists()


async def test_why_a_node_was_not_swept_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=node_sweeper.__name__)

    def fails(_settings: ToolSettings) -> None:
        raise ValueError("the disk is full")

    sweeper = NodeSweeper(SETTINGS)
    sweeper._task = ray.remote(num_cpus=0, max_retries=0)(fails)
    await sweeper.step()
    (told,) = caplog.records
    assert (told.message, getattr(told, "reason", "")) == ("node.not_swept", "ValueError: the disk is full")


async def test_a_node_that_is_gone_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=node_sweeper.__name__)
    gone = "a" * 56
    left = half_made()
    sweeper = NodeSweeper(SETTINGS, nodes=lambda: node_sweeper.live_nodes() | {gone})
    began = time.monotonic()
    await sweeper.step()
    assert time.monotonic() - began < node_sweeper.TASK_S
    assert not left.exists()
    assert ("node.not_swept", gone) in {(each.message, getattr(each, "node", "")) for each in caplog.records}
