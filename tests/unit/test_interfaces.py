"""The interface on which gloo listens. tests/distributed/test_hosts.py trains over the one that is chosen."""

import socket
from collections import namedtuple

import psutil
import pytest

from pipeline.training import interfaces

Entry = namedtuple("Entry", "address")
LAN = "10.7.0.2"


@pytest.fixture
def host(monkeypatch):
    """A host with two interfaces, which knows itself as 127.0.1.1."""
    monkeypatch.setenv(interfaces.VARIABLE, "")  # so that what is chosen is taken back
    monkeypatch.delenv(interfaces.VARIABLE)
    monkeypatch.setattr(interfaces, "source_address", lambda host, port: "127.0.0.1" if host == "localhost" else LAN)
    addresses = {"lo": [Entry("127.0.0.1")], "ib0": [Entry("fe80::1"), Entry(LAN)]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    known_as(monkeypatch, "127.0.1.1")
    return monkeypatch


def known_as(monkeypatch, address: str) -> None:
    """What the host's own name leads to."""
    monkeypatch.setattr(interfaces.socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0))])


def chosen(master: str) -> str | None:
    interfaces.choose(master, 1)
    return interfaces.os.environ.get(interfaces.VARIABLE)


def test_the_interface_on_the_way_to_rank_0(host):
    assert chosen("n0") == "ib0"


@pytest.mark.parametrize("address", ["10.7.0.2", "fe80::2%ib0"])
def test_a_name_that_others_reach_is_left_to_torch(host, address):
    known_as(host, address)
    assert chosen("n0") is None


def test_a_name_that_leads_nowhere(host):
    def unknown(*_, **__):
        raise socket.gaierror("unknown")

    host.setattr(interfaces.socket, "getaddrinfo", unknown)
    assert chosen("n0") == "ib0"


def test_one_host_alone_uses_loopback(host):
    assert chosen("localhost") is None


def test_what_the_user_has_set_stays(host):
    host.setenv(interfaces.VARIABLE, "eth7")
    assert chosen("n0") == "eth7"


def test_an_address_of_no_interface(host):
    host.setattr(psutil, "net_if_addrs", dict)
    assert chosen("n0") is None


def test_the_address_on_the_way(monkeypatch):
    assert interfaces.source_address("127.0.0.1", 1) == "127.0.0.1"
    assert interfaces.source_address("no-such-host.invalid", 1) is None
