"""Names that members advertise, for datagrams."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from meshnode.daemon import names
from meshnode.daemon.names import Names
from meshnode.limits import MAX_NAME_LOOKUPS, NAME_LIFETIME_S
from meshnode.types import Address
from tests.unit.daemon.conftest import eventually
from tests.unit.daemon.routers import Network, Node

if TYPE_CHECKING:
    import pytest


class NameServer:
    """What names stand for, and who asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.hosts: dict[str, list[str]] = {}
        self.silent = asyncio.Event()
        self.silent.set()
        self.names = Names(cast("Any", SimpleNamespace(now=lambda: self.now)))
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, port: None, *, type: int) -> list[Any]:  # noqa: A002 - as it is
        self.asked.append(host)
        await self.silent.wait()
        if host not in self.hosts:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(socket.AF_INET, type, 17, "", (each, 0)) for each in self.hosts[host] * 2]

    async def ask(self, name: str) -> tuple[str, ...]:
        self.names.literals(name)
        await eventually(lambda: name not in self.names._lookups)
        return self.names.literals(name)


async def test_a_name_is_looked_up_once_and_again_when_it_is_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = NameServer(monkeypatch)
    server.hosts["node.example"] = ["192.0.2.1", "2001:db8::1"]
    assert server.names.literals("node.example") == ()
    assert await server.ask("node.example") == ("192.0.2.1", "2001:db8::1")
    assert len(server.asked) == 1
    server.hosts["node.example"] = ["192.0.2.2"]
    server.now = NAME_LIFETIME_S
    assert server.names.literals("node.example") == ("192.0.2.1", "2001:db8::1")  # meanwhile
    assert await server.ask("node.example") == ("192.0.2.2",)
    assert len(server.asked) == 2
    assert repr(server.names) == "<Names: 1 known, 0 looked up>"


async def test_while_a_name_cannot_be_looked_up_it_stands_for_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = NameServer(monkeypatch)
    assert await server.ask("nobody.example") == ()
    server.hosts["node.example"] = ["192.0.2.1"]
    await server.ask("node.example")
    server.hosts.clear()
    server.now = NAME_LIFETIME_S
    assert await server.ask("node.example") == ("192.0.2.1",)


async def test_lookups_and_what_is_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "MAX_NAMES", 20)
    server = NameServer(monkeypatch)
    server.silent.clear()
    for number in range(100):
        server.names.literals(f"n{number}.example")
    await asyncio.sleep(0)
    assert len(server.asked) == MAX_NAME_LOOKUPS
    server.silent.set()
    for number in range(30):
        await server.ask(f"n{number}.example")
    assert len(server.names._known) == 20


async def test_a_member_known_by_name_alone_gets_datagrams_without_a_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = NameServer(monkeypatch)
    server.hosts["cloud.example"] = ["203.0.113.7"]
    server.hosts["rogue.example"] = ["127.0.0.1", "169.254.169.254"]
    network = Network()
    one, cloud = (
        Node(network, "one", Address("198.51.100.1", 1), 1),
        Node(network, "cloud", Address("203.0.113.7", 8471), 2),
    )
    cloud.knows(one)
    one.knows(cloud, Address("cloud.example", 8471))
    one.send(cloud, b"first")  # the name is not known yet; a probe may be lost
    await eventually(lambda: one.datagrams._names.literals("cloud.example"))
    one.send(cloud, b"second")
    assert cloud.heard == [b"second"]
    cloud.send(one, b"back")
    assert one.datagrams.paths.moved == 0  # it is where its name says
    one.knows(cloud, Address("rogue.example", 80))
    one.send(cloud)
    await eventually(lambda: one.datagrams._names.literals("rogue.example"))
    before = len(network.sent)
    one.send(cloud)
    assert len(network.sent) == before
