"""Which tools a task or a key may use: globs of their names, and how much a tool may do."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final, Literal

from rayloom.dag.values import Json, JsonObject

Level = Literal["read", "write", "execute", "admin"]
LEVELS: Final[tuple[Level, ...]] = ("read", "write", "execute", "admin")
"""The permission levels of tools, each with more than the one before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolScope:
    """What is allowed and not denied, up to a permission level; and what the scope that it lies within takes, too."""

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    max_level: Level = "admin"
    within: ToolScope | None = None

    @classmethod
    def of(cls, rules: Json) -> ToolScope:
        """From ``{allow, deny, max_level, within}`` as it was stored; what is absent limits nothing."""
        if not isinstance(rules, dict):
            return cls()
        allow, deny, within = rules.get("allow"), rules.get("deny"), rules.get("within")
        return cls(
            allow=tuple(map(str, allow)) if isinstance(allow, list) else ("*",),
            deny=tuple(map(str, deny)) if isinstance(deny, list) else (),
            max_level=next((level for level in LEVELS if level == rules.get("max_level")), "admin"),
            within=cls.of(within) if isinstance(within, dict) else None,
        )

    def as_json(self) -> JsonObject:
        """As ``of`` reads it."""
        rules: JsonObject = {"allow": list(self.allow), "deny": list(self.deny), "max_level": self.max_level}
        return rules if self.within is None else {**rules, "within": self.within.as_json()}

    def takes(self, name: str) -> bool:
        """Whether a tool of that name may be used."""
        is_allowed = any(fnmatchcase(name, glob) for glob in self.allow)
        is_denied = any(fnmatchcase(name, glob) for glob in self.deny)
        return is_allowed and not is_denied and (self.within is None or self.within.takes(name))

    def admits(self, level: Level) -> bool:
        """Whether tools of that permission level may be used."""
        return LEVELS.index(level) <= LEVELS.index(self.max_level) and (
            self.within is None or self.within.admits(level)
        )


ALL_TOOLS: Final = ToolScope()
