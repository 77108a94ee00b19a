"""Multicast DNS on a hostile network: floods, poisoned records, somebody else's name and address."""

from __future__ import annotations

import asyncio
import secrets
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo

from meshnode.daemon.local_network import LocalNetwork
from meshnode.errors import HandshakeError
from meshnode.limits import MAX_MDNS_ANNOUNCEMENTS, MAX_MDNS_DIALS, MAX_MDNS_LOOKUPS
from meshnode.membership.addresses import Kind
from meshnode.net import mdns
from meshnode.net.mdns import SERVICE_TYPE, Announcement, Discovery
from meshnode.net.tls import server_tls
from meshnode.types import Address, NodeId
from tests.unit.net.conftest import MeshMaker, eventually

if TYPE_CHECKING:
    from pathlib import Path

MESH = secrets.token_hex(16)
LETTERS = "abcdefghijklmnopqrstuvwxyz234567"


def node_id(number: int) -> NodeId:
    return NodeId("".join(LETTERS[number >> shift & 31] for shift in (0, 5, 10, 15)).ljust(32, "a"))


class Victim:
    """Stands for the driver of a member that hears all this."""

    mesh_id = MESH

    def __init__(self) -> None:
        self.dialled: list[tuple[Address, ...]] = []
        self.membership = SimpleNamespace(members={})
        self.node = SimpleNamespace(me=node_id(0), membership=self.membership)
        self.hub: Any = type("Hub", (), {"peers": staticmethod(tuple)})

    def dial_heard(self, addresses: tuple[Address, ...], node: NodeId) -> None:
        self.dialled.append(addresses)


async def test_thousands_of_announced_nodes_fill_no_memory_and_cause_few_dials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All claim to be of the mesh, at the address of a third party."""

    async def answer(info: AsyncServiceInfo, *_: object) -> bool:
        info.port = 8471
        info.addresses = [bytes([203, 0, 113, 99])]
        info._decoded_properties = {"mesh": MESH, "name": "innocent"}
        return True

    monkeypatch.setattr(AsyncServiceInfo, "async_request", answer)
    victim: Any = Victim()
    network = LocalNetwork(victim, ("127.0.0.1",))
    async with Discovery(network._announced, ["127.0.0.1"]) as discovery:
        network.discovery = discovery
        for number in range(1, 3 * MAX_MDNS_ANNOUNCEMENTS):
            discovery._look_up(f"{node_id(number)}.{SERVICE_TYPE}")
            if number % MAX_MDNS_LOOKUPS == 0:
                await asyncio.sleep(0)  # the attacker answers at once
                await asyncio.sleep(0)
        assert len(discovery.heard) == MAX_MDNS_ANNOUNCEMENTS
        assert MAX_MDNS_DIALS <= len(victim.dialled) <= MAX_MDNS_DIALS + 2
        network.dial(discovery.heard)
        assert len(victim.dialled) <= 2 * MAX_MDNS_DIALS + 2


async def test_who_answers_at_an_announced_address_must_be_the_node_and_a_member(
    tmp_path: Path,
) -> None:
    mesh = MeshMaker(server_tls(tmp_path))
    foreign = MeshMaker(server_tls(tmp_path))
    try:
        one, member = mesh.build("one"), await mesh.start("two")
        with pytest.raises(HandshakeError, match="answered where"):
            await one.hub.connect((member.address,), mesh.build("three").id)
        impostor = await foreign.start("impostor")
        with pytest.raises(HandshakeError, match="answered where"):
            await one.hub.connect((impostor.address,), member.id)
        assert list(one.hub.peers()) == []
    finally:
        for node in [*mesh.nodes, *foreign.nodes]:
            await node.hub.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "::1"])
async def test_an_announced_address_never_leads_to_the_machine_itself_or_to_metadata(
    tmp_path: Path, host: str
) -> None:
    """A node that listens elsewhere dials no loopback and no link-local address that it heard."""
    mesh = MeshMaker(server_tls(tmp_path))
    one, two = mesh.build("one"), await mesh.start("two")
    one.hub.dial((Address(host, two.address.port),), two.id, frozenset({Kind.ROUTED}))
    await eventually(lambda: not one.hub._dials)
    (failure,) = one.user.failures()
    assert "may not lead" in failure.reason
    for node in mesh.nodes:
        await node.hub.close()


def test_names_of_the_announced_hold_nothing_that_a_terminal_obeys() -> None:
    name = f"{node_id(1)}.{SERVICE_TYPE}"
    for shown in ("\x1b[2J", "a\nb", "\u202eabc", "a" * 64, ""):
        found = mdns.announcement_of(name, 1, {"mesh": MESH, "name": shown}, ["192.0.2.1"])
        assert found is None
    for url in (
        "http://\x1b[2J:1",
        "http://a@192.0.2.1:1",
        "ftp://192.0.2.1:1",
        "http://x.example:1",
    ):
        told = {"mesh": MESH, "name": "a", "gateway": url}
        heard = mdns.announcement_of(name, 1, told, ["192.0.2.1"])
        assert heard is not None
        assert heard.gateway == ""
    good = mdns.announcement_of(name, 1, {"mesh": MESH, "name": "a-1.b_c"}, ["192.0.2.1"])
    assert good == Announcement(node_id(1), MESH, "a-1.b_c", (Address("192.0.2.1", 1),))
