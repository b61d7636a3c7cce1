"""The gRPC port of a replica is bound to the address of its node, whatever Ray asks for."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import ray
from ray.serve._private import replica as replica_module

from rayloom.serve import replica_port
from rayloom.serve.replica_port import stay_on_node_address

replica: Any = replica_module
asked: list[str] = []


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(_server: object, address: str) -> int:
        asked.append(address)
        return 4711

    monkeypatch.setattr(replica, replica_port.BINDER, bind)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "10.1.2.3")
    asked.clear()


def test_all_interfaces_become_the_node() -> None:
    stay_on_node_address()
    assert replica.add_port_to_grpc_server(None, "[::]:0") == 4711
    assert replica.add_port_to_grpc_server(None, "0.0.0.0:7") == 4711
    assert asked == ["10.1.2.3:0", "10.1.2.3:7"]


def test_an_address_that_was_chosen_stays() -> None:
    stay_on_node_address()
    replica.add_port_to_grpc_server(None, "10.9.9.9:7")
    assert asked == ["10.9.9.9:7"]


def test_a_second_replica_of_a_process_changes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_on_node_address()
    once = replica.add_port_to_grpc_server
    stay_on_node_address()
    assert replica.add_port_to_grpc_server is once


def test_a_node_with_an_ipv6_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "fd00::7")
    stay_on_node_address()
    replica.add_port_to_grpc_server(None, "[::]:0")
    assert asked == ["[fd00::7]:0"]


def test_another_ray_is_told_of_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delattr(replica, replica_port.BINDER)
    stay_on_node_address()
    assert [(each.levelno, each.message[:17]) for each in caplog.records] == [(logging.ERROR, "replica.port_open")]
    assert not hasattr(replica, replica_port.BINDER)
    monkeypatch.setattr(replica_port, "MODULE", "ray.serve._private.moved_away")
    stay_on_node_address()
    assert "ray.serve._private.moved_away" in caplog.records[-1].getMessage()
