"""A model endpoint beside a rayloom: each file that shares the two says what the model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.integration.models.endpoint import Asked, Endpoint, Reply
from tests.integration.ports import free_ports

Says = Callable[[Asked], Reply]


def good(_: Asked) -> Reply:
    """Answer whatever is asked."""
    return Reply(text="Good.")


@dataclass
class Rig:
    """The endpoint. It can go and come back. ``replies`` are given before ``says`` is asked."""

    says: Says = good
    replies: list[Reply] = field(default_factory=list)
    endpoint: Endpoint = field(init=False)
    port: int = field(default_factory=lambda: free_ports(1)[0])

    def start(self) -> None:
        """Listen."""
        self.endpoint = Endpoint(self._reply, port=self.port)
        self.endpoint.__enter__()

    def stop(self) -> None:
        """Listen no more."""
        self.endpoint.__exit__(None, None, None)

    @contextmanager
    def saying(self, says: Says) -> Iterator[Rig]:
        """Answer like this for the length of the block."""
        self.says, self.replies = says, []
        yield self
        self.says, self.replies = good, []

    def _reply(self, asked: Asked) -> Reply:
        return self.replies.pop(0) if self.replies else self.says(asked)


@contextmanager
def rigged() -> Iterator[Rig]:
    """Give an endpoint that listens."""
    made = Rig()
    made.start()
    try:
        yield made
    finally:
        made.stop()
