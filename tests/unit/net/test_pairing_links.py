"""Devices that ask to join over real sockets, and a machine between them and the member."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError, LinkLost
from meshnode.net import hello_phase
from meshnode.net.clock import RealClock
from meshnode.net.links import LinkHub
from meshnode.net.tls import ServerTls, client_tls, server_tls
from meshnode.trust.chain import VerifiedMember, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.pairing import ANY_MESH, Asking
from meshnode.trust.pairing_hello import ApprovingHello, AskingHello
from meshnode.trust.reasons import Reason, TrustError
from meshnode.trust.roster import Roster
from meshnode.types import Address, NodeId
from meshnode.wire.config import LinkConfig
from meshnode.wire.frames import WIRE_VERSIONS
from tests.unit.net.conftest import LOOPBACK, WALL_S, User, eventually, seed_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshnode.net.connection import Connection
    from meshnode.trust.records import MeshId
    from tests.unit.net.conftest import MeshMaker


class Desk:
    """Takes every request, unless it is told to refuse."""

    def __init__(self) -> None:
        self.refuses: TrustError | None = None
        self.asked: list[tuple[NodeId, Address]] = []
        self.waiting: list[Connection] = []

    def pairing_asked(self, device: NodeId, remote: Address) -> bytes:
        self.asked.append((device, remote))
        if self.refuses is not None:
            raise self.refuses
        return os.urandom(32)

    def pairing_begun(self, connection: Connection) -> None:
        self.waiting.append(connection)

    def pairing_ended(self, connection: Connection) -> None:
        self.waiting.remove(connection)

    @property
    def codes(self) -> list[str]:
        return [each.pairing.code for each in self.waiting if each.pairing is not None]


class Host:
    """A member that takes requests, or a device that asks; with an address of its own."""

    def __init__(
        self, name: str, tls: ServerTls, member: VerifiedMember | None, mesh_id: MeshId = ANY_MESH
    ) -> None:
        self.identity = Identity(seed_of(name))
        self.name = name
        self.member = member
        self.mesh_id = mesh_id
        self.tls = tls
        self.user, self.desk = User(), Desk()
        self.address = LOOPBACK
        self.hub = LinkHub(
            me=self.identity.node_id, clock=RealClock(), user=self.user, tls=tls,
            dial_hello=self._dial_hello, accept_hello=self._accept_hello, config=LinkConfig(),
            pairing=self.desk,
        )  # fmt: skip
        self.asks: list[asyncio.Task[Connection]] = []
        self.shown: list[str] = []
        self.waits_s: list[int] = []

    async def listen(self) -> Host:
        self.address = await self.hub.listen(LOOPBACK)
        self.hub.start_accepting()
        return self

    def ask(self, address: Address, expect: NodeId | None = None) -> asyncio.Task[Connection]:
        asking = asyncio.ensure_future(self.hub.ask(address, expect, self._show))
        self.asks.append(asking)
        return asking

    def _show(self, connection: Connection) -> None:
        assert connection.pairing is not None
        self.shown.append(connection.pairing.code)
        self.waits_s.append(connection.pairing_waits_s)

    def _dial_hello(self, certificate_hash: bytes, expect: NodeId | None) -> AskingHello:
        return AskingHello(
            identity=self.identity, asking=Asking(self.mesh_id, self.name), boot=2,
            nonce=os.urandom(32), pairing_nonce=os.urandom(32), certificate_hash=certificate_hash,
            versions=WIRE_VERSIONS, expect=expect,
        )  # fmt: skip

    def _accept_hello(self) -> ApprovingHello:
        assert self.member is not None
        roster = Roster(self.member.mesh_id)
        roster.add(self.member.chain)
        return ApprovingHello(
            identity=self.identity, member=self.member, roster=roster, boot=1,
            nonce=os.urandom(32), certificate_hash=self.tls.certificate_hash,
            versions=WIRE_VERSIONS, wall_s=WALL_S,
        )  # fmt: skip


class Hosts:
    def __init__(self, mesh: MeshMaker, tls: ServerTls) -> None:
        self._mesh = mesh
        self._tls = tls
        self.all: list[Host] = []

    async def member(self, name: str, tls: ServerTls | None = None, **at: VerifiedMember) -> Host:
        member = at.get("member") or self._mesh.member(name)
        host = Host(name, tls or self._tls, member)
        self.all.append(host)
        return await host.listen()

    def device(self, name: str, mesh_id: MeshId = ANY_MESH) -> Host:
        host = Host(name, self._tls, None, mesh_id)
        self.all.append(host)
        return host


@pytest.fixture
async def hosts(mesh: MeshMaker, tls: ServerTls) -> AsyncIterator[Hosts]:
    hosts = Hosts(mesh, tls)
    yield hosts
    for host in hosts.all:
        await host.hub.close()
        for asking in host.asks:
            asking.cancel()
        await asyncio.gather(*host.asks, return_exceptions=True)


async def test_a_device_waits_for_its_approval_and_the_same_connection_becomes_the_link(
    hosts: Hosts, mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far beyond the time that a hello has: a person is on the way."""
    monkeypatch.setattr("meshnode.net.outgoing.HANDSHAKE_TIMEOUT_S", 0.2)
    monkeypatch.setattr("meshnode.net.outgoing.ADDRESS_TIMEOUT_S", 0.2)
    alpha, device = await hosts.member("founder"), hosts.device("device")
    asking = device.ask(alpha.address, alpha.identity.node_id)
    await eventually(lambda: alpha.desk.waiting and device.shown)
    assert device.shown == alpha.desk.codes
    (waiting,) = alpha.desk.waiting
    assert alpha.desk.asked == [(device.identity.node_id, waiting.remote)]
    await asyncio.sleep(0.4)
    waiting.remind(77.0)
    await eventually(lambda: device.waits_s == [300, 77])
    assert alpha.user.established == []
    assert repr(alpha.hub) == "<LinkHub 0 links, 0 in hello>"
    assert alpha.member is not None
    waiting.approve(alpha.member, mesh.invite("device"), WALL_S)
    connection = await asyncio.wait_for(asking, 5)
    assert connection.hello is not None
    assert connection.hello.admitted is not None
    assert connection.hello.admitted.node_id == device.identity.node_id
    assert alpha.user.established == [waiting]
    assert alpha.desk.waiting == []
    assert waiting.pairing is None
    assert waiting.established
    assert connection.usable


async def test_strangers_that_say_nothing_do_not_push_out_a_device_that_waits(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.net.incoming.MAX_LINKS_UNAUTHENTICATED", 1)
    alpha, device = await hosts.member("founder"), hosts.device("device")
    device.ask(alpha.address)
    await eventually(lambda: alpha.desk.waiting)
    writers = [(await asyncio.open_connection(*alpha.address))[1] for _ in range(4)]
    await asyncio.sleep(0.05)
    assert len(alpha.desk.waiting) == 1
    for writer in writers:
        writer.close()


async def test_a_refused_request_reads_why_and_counts_as_a_refused_link(hosts: Hosts) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    alpha.desk.refuses = TrustError(Reason.THROTTLED, "too many; in 9 s again")
    with pytest.raises(TrustError, match="the other node refused: too many; in 9 s") as caught:
        await device.ask(alpha.address)
    assert caught.value.reason is Reason.THROTTLED
    assert device.shown == []
    await eventually(lambda: alpha.hub.refused == 1)


async def test_a_request_can_be_refused_after_the_wait(hosts: Hosts) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    asking = device.ask(alpha.address)
    (waiting,) = await eventually(lambda: alpha.desk.waiting)
    waiting.turn_away(TrustError(Reason.UNAPPROVED, "nobody came"))
    with pytest.raises(TrustError, match="nobody came"):
        await asking
    assert alpha.desk.waiting == []


async def test_a_device_that_gives_up_is_gone_at_once(hosts: Hosts) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    asking = device.ask(alpha.address)
    (waiting,) = await eventually(lambda: alpha.desk.waiting)
    asking.cancel()
    await eventually(lambda: not alpha.desk.waiting)
    assert alpha.member is not None
    with pytest.raises(LinkLost, match="the device has gone"):
        waiting.approve(alpha.member, hosts._mesh.invite("device"), WALL_S)


async def test_a_member_that_falls_silent_is_given_up(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hello_phase, "JOIN_SILENCE_S", 0.1)
    alpha, device = await hosts.member("founder"), hosts.device("device")
    with pytest.raises(LinkLost, match="silent for too long"):
        await asyncio.wait_for(device.ask(alpha.address), 5)
    assert len(device.shown) == 1


async def test_a_member_that_stops_tells_the_devices_that_wait(hosts: Hosts) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    asking = device.ask(alpha.address)
    await eventually(lambda: alpha.desk.waiting)
    alpha.hub.go_away()
    with pytest.raises(TrustError, match="the node is stopping"):
        await asking


async def test_a_node_without_a_desk_takes_no_requests(hosts: Hosts, mesh: MeshMaker) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    alpha.hub._pairing = None
    with pytest.raises(TrustError, match="takes no requests"):
        await device.ask(alpha.address)


async def test_a_link_that_cannot_be_taken_after_the_approval_is_closed(
    hosts: Hosts, mesh: MeshMaker
) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    asking = device.ask(alpha.address)
    (waiting,) = await eventually(lambda: alpha.desk.waiting)
    alpha.user.refuses = ConfigError("the disk is full")
    assert alpha.member is not None
    with pytest.raises(ConfigError, match="the disk is full"):
        waiting.approve(alpha.member, mesh.invite("device"), WALL_S)
    await asyncio.gather(asking, return_exceptions=True)
    assert alpha.hub.peers() == ()
    assert alpha.desk.waiting == []


async def test_silence_at_the_address_is_no_endless_wait(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.net.outgoing.ADDRESS_TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(LinkLost, match=f"127.0.0.1:{port}"):
            await hosts.device("device").ask(Address("127.0.0.1", port))


# A machine in between


async def test_a_machine_that_talks_to_both_sides_shows_two_codes(
    hosts: Hosts, tmp_path: Path
) -> None:
    """It ends TLS with certificates and keys of its own, plays the member to the device and the device
    to the member, and would have its own device approved by the code that the person reads.
    """
    alpha, device = await hosts.member("founder"), hosts.device("device")
    its_key = Identity(seed_of("between"))
    its_mesh = found_mesh(its_key, seed_of("its own root"), WALL_S)
    towards_device = await hosts.member("between", server_tls(tmp_path), member=its_mesh)
    towards_member = hosts.device("its-device")
    towards_member.ask(alpha.address)
    await eventually(lambda: alpha.desk.waiting)
    device.ask(towards_device.address)
    await eventually(lambda: device.shown)
    assert device.shown != alpha.desk.codes
    assert towards_member.shown == alpha.desk.codes
    assert alpha.desk.asked[0][0] == towards_member.identity.node_id


async def test_a_machine_that_passes_everything_on_behind_its_own_certificate_is_found_out(
    hosts: Hosts, tmp_path: Path
) -> None:
    alpha, device = await hosts.member("founder"), hosts.device("device")
    between = server_tls(tmp_path)
    outward: ssl.SSLContext = client_tls()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_alpha = await asyncio.open_connection(*alpha.address, ssl=outward)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65536):
                    target.write(data)
            except OSError:
                pass
            target.close()

        await asyncio.gather(copy(reader, to_alpha[1]), copy(to_alpha[0], writer))

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=between.context)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(TrustError, match="somebody stands in between") as caught:
        await device.ask(Address("127.0.0.1", port))
    assert caught.value.reason is Reason.SIGNATURE
    assert device.shown == alpha.desk.codes == []
    server.close()
    await server.wait_closed()
