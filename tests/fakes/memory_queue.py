"""The ready queue in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from redis.exceptions import ConnectionError as RedisConnectionError

from rayloom.db.queue import Popped, Queued, ReadyQueue


class MemoryQueue(ReadyQueue):
    """``ReadyQueue``, without a Redis. ``away``: it does not answer. ``told``: tasks that something happened to."""

    def __init__(self) -> None:
        self.away = False
        self.told: list[str] = []
        self._shapes: dict[str, dict[tuple[str, str], float]] = {}

    async def push(self, items: Iterable[Queued], *, wake: bool = True, tasks: Iterable[str] = ()) -> None:
        """See `ReadyQueue`."""
        self._answer()
        self.told += tasks
        for item in items:
            self._shapes.setdefault(item.shape, {})[item.sub_task_id, item.user_id] = item.score

    async def pop(self, room: Mapping[str, int]) -> Popped:
        """See `ReadyQueue`."""
        self._answer()
        items = []
        for shape, count in room.items():
            members = self._shapes.get(shape, {})
            best = sorted(members, key=lambda member: (members[member], f"{member[0]}:{member[1]}"))[: max(count, 0)]
            items += [Queued(id_, user_id, shape, members.pop((id_, user_id))) for id_, user_id in best]
        items.sort(key=lambda item: (item.score, item.sub_task_id))
        return Popped(tuple(items), {shape: len(members) for shape, members in self._shapes.items() if members})

    def _answer(self) -> None:
        if self.away:
            raise RedisConnectionError("away")
