"""What the subtasks of an answer are called here, by what a model calls them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rayloom.dag.planning.names import clean_id, numbered
from rayloom.dag.planning.written import needed
from rayloom.dag.values import Json, JsonObject


class Ids:
    """The ids of one answer. ``meant``: for each name that a model may use, what it means.

    ``before``: ids that there are already. ``given_up``: those of them that gave nothing, so that nobody can mean one
    where a new subtask has the same id. ``ahead``: the subtasks of the whole answer, where it is known.
    """

    def __init__(
        self, before: Collection[str] = (), *, given_up: Collection[str] = (), ahead: Iterable[Json] = ()
    ) -> None:
        self.meant = {id_: id_ for id_ in before}
        self._used = set(before)
        self._ahead = {clean_id(said_of(each)) for each in ahead if isinstance(each, dict)}
        self._given_up, self._kept = set(given_up), set(before).difference(given_up)
        self._doubtful: set[str] = set()

    def add(self, said: str, place: int) -> str:
        """The id of the subtask that a model calls ``said``: that, as far as it can be one and is free.

        Where it is empty, the place gives one.
        """
        name = clean_id(said) or f"s{place + 1}"
        id_ = numbered(name, self._used | self._ahead if name in self._used else self._used)
        self._used.add(id_)
        # The first that has an id is the one that others mean by it.
        self.meant.setdefault(said or id_, id_)
        self.meant.setdefault(id_, id_)
        for each in {said, name} if said else ():
            if each in self._given_up:
                self._given_up.discard(each)
                self.meant[each] = id_
            elif each in self._kept:
                self._doubtful.add(each)
        return id_

    def doubts(self, subtask: JsonObject) -> list[str]:
        """What is wrong with it as it may mean what is done, or a new subtask of that id."""
        said = "`%s` is done, and a new subtask has that id, too: give the new one another id"
        return [said % name for name in needed(subtask, self._doubtful)]


def said_of(fields: JsonObject) -> str:
    """The id that a model gave a subtask; empty where it gave none."""
    written = fields.get("id")
    return written if isinstance(written, str) else "" if written is None or isinstance(written, bool) else str(written)
