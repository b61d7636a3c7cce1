"""What every test of a sandbox is wrapped in: it works, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rayloom.tools.sandbox.docker import Docker
from tests.integration.tools import e2b_rig
from tests.integration.tools.sandboxes import KINDS, Kind, children, containers, eventually, sandbox_of, traces


@pytest.fixture(params=KINDS)
async def kind(request: pytest.FixtureRequest) -> AsyncIterator[Kind]:
    """Each kind of sandbox that is here, in turn."""
    kind: Kind = request.param
    sandbox = sandbox_of(kind)
    report = await sandbox.probe()
    assert report.isolated
    if isinstance(sandbox, Docker):
        # Threads that make containers for later runs look into /proc meanwhile.
        await eventually(sandbox.is_settled)
    others = children()
    before = traces(others)
    yield kind
    if isinstance(sandbox, Docker):
        # Its own containers may wait for the next run, and no other one.
        await eventually(sandbox.is_settled)

        async def only_those_that_wait() -> bool:
            return set(await containers()) == sandbox.waiting()

        await eventually(only_those_that_wait)
    if kind == "e2b":
        assert e2b_rig.machines() == {}
    # What was there before may be gone by now: whoever left it to the garbage collection did so in an earlier test.
    assert traces(others) <= before
