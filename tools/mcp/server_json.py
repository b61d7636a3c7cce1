"""The ``server.json`` of the MCP registry as what is registered here: a remote of it, or else a package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rayloom.dag.errors import Fault
from rayloom.dag.values import JsonObject

_REMOTES: Final = {"streamable-http": "http", "sse": "sse"}
_RUNNERS: Final = {"npm": "npx", "pypi": "uvx"}
_VARIABLE: Final = re.compile(r"\{([A-Za-z0-9_.-]+)\}")


class Invalid(Exception):
    """What is wrong with it, or missing beside it; each with a JSON pointer into the body."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__(faults)
        self.faults = faults


def expanded(body: JsonObject) -> JsonObject:
    """The body of a registration with what its ``server`` says in place of that. Raises Invalid.

    Values that the body gives itself, in ``env`` and ``headers``, go before defaults. A package is run by the runner of
    its registry (``npx``, ``uvx``), which fetches it: that needs ``trusted``, as the sandbox has no network.
    """
    reading = _Reading(body)
    made = reading.made()
    if reading.faults:
        raise Invalid(reading.faults)
    return made


class _Reading:
    def __init__(self, body: JsonObject) -> None:
        self.faults: list[Fault] = []
        self._rest = {name: value for name, value in body.items() if name != "server"}
        self._server = body["server"] if isinstance(body["server"], dict) else {}
        self._env, self._headers = _texts(body.get("env")), _texts(body.get("headers"))

    def made(self) -> JsonObject:
        remotes, packages = _objects(self._server.get("remotes")), _objects(self._server.get("packages"))
        for at, remote in enumerate(remotes):
            if remote.get("type") in _REMOTES and isinstance(remote.get("url"), str):
                return self._remote(remote, f"/server/remotes/{at}")
        for at, package in enumerate(packages):
            transport = package.get("transport")
            kind = transport.get("type") if isinstance(transport, dict) else "stdio"
            if package.get("registryType") in _RUNNERS and kind == "stdio":
                return self._package(package, f"/server/packages/{at}")
        self._fault("/server", "it has neither a remote nor a package of npm or PyPI that speaks over stdio")
        return self._rest

    def _remote(self, remote: Mapping[str, Any], pointer: str) -> JsonObject:
        headers = self._given(remote.get("headers"), self._headers, "headers")
        url = self._filled(remote["url"], _objects_by_name(remote.get("variables")), self._env, f"{pointer}/url")
        rest = {name: value for name, value in self._rest.items() if name != "env"}
        return {**rest, "transport": _REMOTES[remote["type"]], "url": url, "headers": headers}

    def _package(self, package: Mapping[str, Any], pointer: str) -> JsonObject:
        kind, identifier, version = package["registryType"], package.get("identifier"), package.get("version")
        if not isinstance(identifier, str) or not identifier:
            self._fault(f"{pointer}/identifier", "must be the name of a package")
            return self._rest
        separator = "@" if kind == "npm" else "=="
        exact = f"{identifier}{separator}{version}" if isinstance(version, str) and version else identifier
        runner = str(package.get("runtimeHint") or _RUNNERS[kind])
        command = [runner, *self._words(package, "runtimeArguments", pointer)]
        if runner == "npx" and not {"-y", "--yes"} & set(command):
            command.append("-y")
        command += [exact, *self._words(package, "packageArguments", pointer)]
        env = self._given(package.get("environmentVariables"), self._env, "env")
        return {**self._rest, "transport": "stdio", "command": [*command], "env": env}

    def _words(self, package: Mapping[str, Any], name: str, pointer: str) -> Iterator[str]:
        for at, argument in enumerate(_objects(package.get(name))):
            place = f"{pointer}/{name}/{at}"
            value = argument.get("value", argument.get("default"))
            if value is None and argument.get("isRequired"):
                self._fault(place, "is required, and has neither a value nor a default: write the command yourself")
                continue
            if argument.get("type") == "named" and isinstance(argument.get("name"), str):
                yield argument["name"]
            if value is not None:
                yield self._filled(str(value), _objects_by_name(argument.get("variables")), {}, place)

    def _given(self, inputs: Any, own: Mapping[str, str], field: str) -> JsonObject:
        """Values by name: those of the body, and the fixed and default ones of ``server.json``."""
        values: JsonObject = {**own}
        for each in _objects(inputs):
            name = str(each.get("name"))
            value = each.get("value", each.get("default"))
            if name in own:
                continue
            if value is not None:
                variables = _objects_by_name(each.get("variables"))
                values[name] = self._filled(str(value), variables, self._env, f"/{field}/{name}")
            elif each.get("isRequired"):
                described = each.get("description", "")
                self._fault(f"/{field}/{name}", f"is required by its server.json: {described}")
        return values

    def _filled(self, text: str, variables: Mapping[str, Any], own: Mapping[str, str], pointer: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            variable = variables.get(name, {})
            found = own.get(name, variable.get("value", variable.get("default")))
            if found is None:
                self._fault(pointer, f"needs a value for {{{name}}}")
                return ""
            return str(found)

        return _VARIABLE.sub(value, text)

    def _fault(self, pointer: str, message: str) -> None:
        self.faults.append(Fault(pointer, message))


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _objects_by_name(value: Any) -> Mapping[str, Any]:
    return {name: each for name, each in value.items() if isinstance(each, dict)} if isinstance(value, dict) else {}


def _texts(value: Any) -> dict[str, str]:
    return {name: each for name, each in value.items() if isinstance(each, str)} if isinstance(value, dict) else {}
