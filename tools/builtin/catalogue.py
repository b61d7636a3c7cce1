"""Every tool that ships with rayloom, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rayloom.tools.builtin import code, core, files, http, sql, text
from rayloom.tools.tool import Tool

_ALL: Final[tuple[Tool, ...]] = (
    core.NOOP,
    core.ECHO,
    core.SLEEP,
    core.FAIL,
    text.TEMPLATE,
    text.QUERY,
    http.REQUEST,
    http.FETCH_TEXT,
    sql.QUERY,
    files.WRITE,
    files.READ,
    files.LIST,
    code.PYTHON_RUN,
    code.SHELL_RUN,
)

BUILTINS: Final[Mapping[str, Tool]] = MappingProxyType({tool.spec.name: tool for tool in _ALL})
