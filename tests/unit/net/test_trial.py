"""Trying addresses over real sockets: each way to fail is told apart, and nothing comes of any."""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import pytest

from meshnode.membership.addresses import Kind
from meshnode.net import sockets, trial
from meshnode.net.trial import is_near, own_networks, trial_hello, try_addresses
from meshnode.observations import Outcome, Trial
from meshnode.trust.chain import VerifiedMember, found_mesh
from meshnode.trust.identity import Identity
from meshnode.trust.reasons import Reason
from meshnode.types import Address, NodeId
from tests.unit.net.conftest import WALL_S, eventually, seed_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshnode.trust.invite import Invite
    from tests.unit.net.conftest import MeshMaker

STRANGER = Identity(seed_of("stranger"))


class Late:
    """A clock that is wrong."""

    def __init__(self, behind_s: float = 0.0) -> None:
        self.behind_s = behind_s

    def now(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return WALL_S - self.behind_s


async def one_trial(
    address: Address,
    credential: VerifiedMember | Invite,
    *,
    identity: Identity = STRANGER,
    expect: NodeId | None = None,
    behind_s: float = 0.0,
) -> Trial:
    begin = trial_hello(identity, credential, 7, expect)
    (found,) = await try_addresses([address], begin, Late(behind_s))
    return found


@pytest.fixture
def closed() -> Iterator[Address]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield Address("127.0.0.1", held.getsockname()[1])


async def test_a_member_that_would_be_taken_gets_no_link(mesh: MeshMaker) -> None:
    node = await mesh.start("node")
    identity = Identity(seed_of("other"))
    found = await one_trial(node.address, mesh.member("other"), identity=identity, expect=node.id)
    assert (found.outcome, found.is_near) == (Outcome.ANSWERED, True)
    assert found.node == node.id
    await eventually(lambda: node.hub.trials == 1, "the connection is closed")
    assert node.hub.refused == 0
    assert node.user.established == []
    assert node.user.events == []


async def test_an_invite_that_would_be_taken_admits_nobody(mesh: MeshMaker) -> None:
    node = await mesh.start("founder")
    found = await one_trial(node.address, mesh.invite("joiner"))
    assert found.outcome is Outcome.ANSWERED
    assert STRANGER.node_id not in node.roster
    assert node.user.established == []


async def test_the_clock_over_there_is_compared_with_this_one(mesh: MeshMaker) -> None:
    node = await mesh.start("founder")
    found = await one_trial(node.address, mesh.invite("joiner"), behind_s=600)
    assert found.ahead_s == 600


async def test_a_refusal_says_why(mesh: MeshMaker) -> None:
    node, founder = await mesh.start("node"), await mesh.start("founder")
    other_mesh = found_mesh(STRANGER, seed_of("another root"), WALL_S)
    foreign = await one_trial(node.address, other_mesh)
    assert (foreign.outcome, foreign.reason) == (Outcome.REFUSED, Reason.WRONG_MESH)
    own = Identity(seed_of("node"))
    wrong = await one_trial(
        founder.address, mesh.member("node"), identity=own, expect=NodeId("a" * 32)
    )
    assert (wrong.outcome, wrong.reason) == (Outcome.REFUSED, Reason.WRONG_NODE)
    begin = trial_hello(own, mesh.member("node"), 1, None)
    (itself,) = await try_addresses([node.address], begin, Late())
    assert itself.reason == Reason.SELF
    (twin,) = await try_addresses(
        [node.address], trial_hello(own, mesh.member("node"), 2, None), Late()
    )
    assert twin.reason == Reason.TWIN


async def test_a_copied_identity_is_found_out_by_asking_the_run_that_has_a_link(
    mesh: MeshMaker,
) -> None:
    """The copy never joins: trying is enough, so a doctor on either machine can say so."""
    node, original = await mesh.start("node"), await mesh.start("original")
    await original.join(node)
    copy = Identity(seed_of("original"))
    found = await one_trial(node.address, mesh.member("original"), identity=copy)
    assert (found.outcome, found.reason) == (Outcome.REFUSED, Reason.TWIN)
    assert original.hub.connection(node.id) is not None


async def test_a_trial_of_the_run_that_has_a_link_disturbs_nothing(mesh: MeshMaker) -> None:
    node, other = await mesh.start("node"), await mesh.start("other")
    connection = await other.join(node)
    begin = trial_hello(other.identity, mesh.member("other"), other.boot, node.id)
    (found,) = await try_addresses([node.address], begin, Late())
    assert found.outcome is Outcome.ANSWERED
    assert connection.usable
    assert len(node.user.established) == 1


async def test_a_node_of_another_protocol_version_is_told(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await mesh.start("node")
    monkeypatch.setattr(trial, "WIRE_VERSIONS", (8, 9))
    found = await one_trial(node.address, mesh.member("other"), identity=Identity(seed_of("other")))
    assert found.reason == Reason.VERSION
    assert "8 to 9" in found.says


async def test_a_closed_port_is_told_from_one_that_says_nothing(
    mesh: MeshMaker, closed: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = mesh.member("other")
    assert (await one_trial(closed, member)).outcome is Outcome.CLOSED
    monkeypatch.setattr(trial, "HANDSHAKE_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = Address("127.0.0.1", mute.getsockname()[1])
        assert (await one_trial(address, member)).outcome is Outcome.MUTE


async def test_what_speaks_something_else_is_told(mesh: MeshMaker) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        await writer.drain()
        writer.close()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    speakers = {talk: Outcome.OTHER_PROTOCOL, hang_up: Outcome.HUNG_UP}
    for speaker, outcome in speakers.items():
        server = await asyncio.start_server(speaker, "127.0.0.1", 0)
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        found = await one_trial(address, mesh.member("other"))
        assert found.outcome is outcome
        server.close()
        await server.wait_closed()


async def test_a_web_server_with_tls_is_not_taken_for_a_node(mesh: MeshMaker) -> None:
    """It speaks TLS, and closes when it is told hello."""

    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(bye, "127.0.0.1", 0, ssl=mesh.build("web").tls.context)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    found = await one_trial(address, mesh.member("other"))
    assert found.outcome in (Outcome.HUNG_UP, Outcome.OTHER_PROTOCOL)
    server.close()
    await server.wait_closed()


async def test_a_server_whose_answer_over_tls_is_no_hello_speaks_something_else(
    mesh: MeshMaker,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        while await reader.read(1000):  # it is the other end that closes
            pass
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=mesh.build("web").tls.context)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    found = await one_trial(address, mesh.member("other"))
    assert (found.outcome, found.reason) == (Outcome.OTHER_PROTOCOL, "")
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    ("failure", "outcome"),
    [
        (TimeoutError(), Outcome.NO_ANSWER),
        (OSError(errno.ENETUNREACH, "no route"), Outcome.NO_ROUTE),
        (OSError(errno.EHOSTUNREACH, "no host"), Outcome.NO_ROUTE),
        (PermissionError(errno.EPERM, "forbidden"), Outcome.BLOCKED_HERE),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), Outcome.UNKNOWN_NAME),
        (socket.gaierror(socket.EAI_AGAIN, "no server"), Outcome.NO_NAME_SERVER),
    ],
)
async def test_what_the_system_says_of_a_connection_that_it_cannot_make_is_kept(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch, failure: OSError, outcome: Outcome
) -> None:
    async def fail(*_: object) -> socket.socket:
        raise failure

    monkeypatch.setattr(sockets, "connect", fail)
    found = await one_trial(Address("192.0.2.7", 8471), mesh.member("other"))
    assert (found.outcome, found.address) == (outcome, "192.0.2.7:8471")


async def test_an_address_that_leads_to_this_machine_is_not_dialled_for_another_node(
    mesh: MeshMaker,
) -> None:
    begin = trial_hello(STRANGER, mesh.member("stranger"), 1, None)
    addresses = [Address("127.0.0.1", 1), Address("169.254.169.254", 80)]
    found = await try_addresses(addresses, begin, Late(), {Kind.ROUTED})
    assert [each.outcome for each in found] == [Outcome.NOT_DIALLED] * 2


async def test_many_addresses_are_tried_at_once_and_reported_in_their_order(
    mesh: MeshMaker, closed: Address
) -> None:
    node = await mesh.start("node")
    begin = trial_hello(Identity(seed_of("other")), mesh.member("other"), 1, node.id)
    found = await try_addresses([closed, node.address] * 5, begin, Late())
    assert [each.outcome for each in found] == [Outcome.CLOSED, Outcome.ANSWERED] * 5


def test_the_networks_of_this_machine_hold_its_own_addresses() -> None:
    networks = own_networks()
    assert is_near("127.0.0.1", networks)
    assert not is_near("240.0.0.1", networks)
    assert not is_near("minipc.example", networks)
