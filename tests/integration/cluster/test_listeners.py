"""Nothing of an instance can be reached from another machine."""

from __future__ import annotations

from tests.integration.instance import Instance
from tests.integration.listeners import listeners_of


def test_every_listening_socket_is_on_loopback(instance: Instance) -> None:
    with instance.http() as http:
        assert http.get("/tasks").status_code == 200
    found = [(process.title, each) for process in instance.processes() for each in listeners_of(process.pid)]
    replicas = {title for title, _ in found if "ServeReplica" in title}
    assert len(replicas) == 2, "the API's and the parser's are looked at"
    assert [(title, str(each)) for title, each in found if not each.address.is_loopback] == []
