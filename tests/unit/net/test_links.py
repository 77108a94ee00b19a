"""Links between nodes in one process, over real sockets, on both event loops."""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError, HandshakeError, LinkLost, MeshError
from meshnode.events import LinkUp
from meshnode.limits import MAX_SPARE_LINKS
from meshnode.membership.addresses import Kind
from meshnode.net import connection as connection_module
from meshnode.net import incoming, links, outgoing
from meshnode.trust.chain import found_mesh
from meshnode.trust.identity import Identity
from meshnode.types import Address, NodeId
from tests.unit.net.conftest import FAST, LOOPBACK, WALL_S, Mute, eventually, seed_of

if TYPE_CHECKING:
    from meshnode.net.connection import Connection
    from tests.unit.net.conftest import MeshMaker, Node


class Answer:
    """The answer on one stream."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        assert end
        self.done.set_result((meta, bytes(data)))

    def lost(self, error: MeshError) -> None:
        self.done.set_exception(error)


async def ask(
    connection: Connection, meta: bytes = b"hello", data: bytes = b"", limit_s: float = 5.0
) -> bytes:
    answer = Answer()
    connection.open(meta, [data] if data else [], answer)
    return (await asyncio.wait_for(answer.done, limit_s))[1]


def only_links(one: Node, two: Node) -> bool:
    """Whether each has exactly one connection to the other, and it is the same one."""
    first, second = one.hub._all(), two.hub._all()
    return (
        len(first) == len(second) == 1
        and first[0].dialler != second[0].dialler
        and first[0].usable
        and second[0].usable
    )


# Coming up


async def test_two_members_link_and_each_can_ask_the_other(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    assert one.user.events == [LinkUp(two.id, two.address)]
    assert two.user.ups() == [one.id]
    assert await ask(connection, data=b"ping") == b"ping"
    back = two.hub.connection(one.id)
    assert back is not None
    assert await ask(back, data=b"pong") == b"pong"
    assert two.hub.remote_address(one.id) == back.remote
    assert back.remote.host == "127.0.0.1"
    assert repr(one.hub) == "<LinkHub 1 links, 0 in hello>"
    assert "to 127.0.0.1" in repr(connection)
    assert "link" in repr(connection)


async def test_a_joiner_is_admitted_by_its_invite(mesh: MeshMaker) -> None:
    founder = await mesh.start("founder")
    joiner = mesh.build("joiner", credential=mesh.invite("joiner"))
    connection = await joiner.hub.connect((founder.address,), None)
    assert connection.hello is not None
    assert connection.hello.admitted is not None
    assert connection.hello.admitted.node_id == joiner.id


async def test_a_node_of_another_mesh_is_refused_and_reads_why(mesh: MeshMaker) -> None:
    one = await mesh.start("one")
    stranger = Identity(seed_of("stranger"))
    other = mesh.build("stranger", credential=found_mesh(stranger, seed_of("r2"), WALL_S))
    with pytest.raises(HandshakeError, match="the other node refused: this node belongs to anoth"):
        await other.hub.connect((one.address,), None)
    await eventually(lambda: one.hub.refused == 1)
    assert one.user.events == []


async def test_another_node_than_the_one_that_was_dialled_is_refused(mesh: MeshMaker) -> None:
    one, two = await mesh.start("one"), await mesh.start("two")
    three = mesh.build("three")
    three.hub.dial((two.address,), one.id)
    failed = await eventually(three.user.failures)
    assert failed[0].expect == one.id
    assert f"{two.id} answered where {one.id} was dialled" in failed[0].reason


async def test_a_node_that_dials_itself_finds_out(mesh: MeshMaker) -> None:
    one = await mesh.start("one")
    with pytest.raises(HandshakeError, match="its own address"):
        await one.hub.connect((one.address,), None)
    assert one.hub.peers() == ()


async def test_an_address_that_answers_is_found_behind_ones_that_do_not(mesh: MeshMaker) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = Address("127.0.0.1", closed.getsockname()[1])
        connection = await one.hub.connect((dead, two.address), two.id)
    assert connection.usable


async def test_every_address_that_fails_says_how(mesh: MeshMaker) -> None:
    one = mesh.build("one")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = Address("127.0.0.1", closed.getsockname()[1])
        with pytest.raises(LinkLost, match=rf"{dead}: .*refused"):
            await one.hub.connect((dead,), None)
    with pytest.raises(LinkLost, match="no address is known"):
        await one.hub.connect((), None)


async def test_a_server_that_speaks_no_tls_is_named(mesh: MeshMaker) -> None:
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.0\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(LinkLost, match=rf"127.0.0.1:{port}: it does not speak"):
        await mesh.build("one").hub.connect((Address("127.0.0.1", port),), None)
    server.close()
    await server.wait_closed()


async def test_an_address_from_elsewhere_is_checked_after_it_is_resolved(mesh: MeshMaker) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    named = Address("localhost", two.address.port)
    for address in (named, two.address):
        one.hub.dial((address,), two.id, {Kind.ROUTED})
        await eventually(lambda: not one.hub._dials)
    assert [failed.expect for failed in one.user.failures()] == [two.id, two.id]
    assert "may not lead" in one.user.failures()[0].reason
    one.hub.dial((named,), two.id, {Kind.ROUTED, Kind.LOOPBACK})
    await eventually(one.user.ups)


async def test_a_dial_that_never_ends_is_given_up(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    address = Address("127.0.0.1", silent.getsockname()[1])
    one = mesh.build("one")
    monkeypatch.setattr(outgoing, "HANDSHAKE_TIMEOUT_S", 0.05)
    with pytest.raises(LinkLost, match="no answer in time"):
        await one.hub.connect((address,), None)
    monkeypatch.setattr(outgoing, "HANDSHAKE_TIMEOUT_S", 5.0)
    monkeypatch.setattr(links, "DIAL_TIMEOUT_S", 0.05)
    one.hub.dial((address,), None)
    assert (await eventually(one.user.failures))[0].reason == "no answer in time"
    silent.close()


async def test_a_node_is_dialled_once_at_a_time_and_not_when_it_is_linked(mesh: MeshMaker) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    one.hub.dial((two.address,), two.id)
    one.hub.dial((two.address,), two.id)
    assert len(one.hub._dials) == 1
    await eventually(lambda: one.user.ups() and not one.hub._dials)
    one.hub.dial((two.address,), two.id)
    assert not one.hub._dials
    assert one.user.ups() == [two.id]


async def test_a_link_that_the_node_cannot_keep_is_closed_and_the_reason_raised(
    mesh: MeshMaker,
) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    one.user.refuses = ConfigError("the disk is full")
    with pytest.raises(ConfigError, match="the disk is full"):
        await one.hub.connect((two.address,), two.id)
    await eventually(two.user.downs)
    assert one.hub.peers() == ()


# Two at once


async def test_of_two_simultaneous_links_one_stays_and_what_runs_on_the_other_finishes(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RETIRE_AFTER_S", 0.02)
    one, two = await mesh.start("one"), await mesh.start("two")
    mute = Mute()
    one.user.serve = two.user.serve = mute
    answers: dict[Connection, Answer] = {}
    streams: dict[Connection, int] = {}

    async def connect_and_ask(near: Node, far: Node) -> Connection:
        """Ask at once: what loses is soon parted with."""
        connection = await near.hub.connect((far.address,), far.id)
        answers[connection] = Answer()
        streams[connection] = connection.open(b"slow", [], answers[connection])
        return connection

    first, second = await asyncio.gather(connect_and_ask(one, two), connect_and_ask(two, one))
    await eventually(lambda: len(one.user.established) == len(two.user.established) == 2)
    await eventually(lambda: len(mute.asked) == 2)
    stays = first if one.id < two.id else second
    loser = second if stays is first else first
    await eventually(lambda: loser.going_away)
    assert not loser.lost.is_set()
    for node in (one, two):
        for connection in node.user.established:
            if connection not in (first, second):
                other = loser if connection.dialler is False and connection.going_away else stays
                connection.reply(streams[other], b"done", end=True)
    assert await answers[loser].done == (b"done", b"")
    assert await answers[stays].done == (b"done", b"")
    await eventually(lambda: only_links(one, two))
    assert one.hub.connection(two.id) is (stays if stays is first else one.hub.connection(two.id))
    assert one.user.downs() == two.user.downs() == []


@pytest.mark.parametrize("attempt", range(3))
async def test_dialling_each_other_at_once_leaves_one_link(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    monkeypatch.setattr(links, "RETIRE_AFTER_S", 0.02)
    one, two = await mesh.start("one"), await mesh.start("two")
    one.hub.dial((two.address,), two.id)
    two.hub.dial((one.address,), one.id)
    await eventually(lambda: len(one.user.established) + len(two.user.established) >= 2)
    await eventually(lambda: only_links(one, two), "one link is left")
    connection = one.hub.connection(two.id)
    assert connection is not None
    assert await ask(connection, data=b"x") == b"x"


async def test_a_link_that_the_peer_lost_is_replaced_by_the_one_it_dials(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RETIRE_AFTER_S", 0.0)
    monkeypatch.setattr(links, "SIMULTANEOUS_S", 0.0)
    one, two = await mesh.start("one"), await mesh.start("two")
    smaller, greater = (one, two) if one.id < two.id else (two, one)
    await smaller.join(greater)
    newer = await greater.hub.connect((smaller.address,), smaller.id)
    await eventually(lambda: only_links(one, two))
    assert greater.hub.connection(smaller.id) is newer


async def test_a_second_link_from_the_same_side_replaces_the_first(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RETIRE_AFTER_S", 0.0)
    one, two, _ = await mesh.pair()
    newer = await one.hub.connect((two.address,), two.id)
    await eventually(lambda: only_links(one, two))
    assert one.hub.connection(two.id) is newer
    assert two.user.downs() == one.user.downs() == []


async def test_a_peer_that_opens_link_upon_link_keeps_few(mesh: MeshMaker) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    one.hub._part_with = lambda former, new: None  # type: ignore[method-assign]  # a peer that misbehaves
    opened = [await one.hub.connect((two.address,), two.id) for _ in range(6)]
    await eventually(lambda: len(two.user.established) == 6)
    assert len(two.hub._all()) == 1 + MAX_SPARE_LINKS
    await eventually(lambda: sum(each.lost.is_set() for each in opened) == 3)
    for connection in opened:
        connection.abort()


# Going down


async def test_a_peer_that_vanishes_fails_what_is_in_flight_at_once(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    two.user.serve = Mute()
    answers = [Answer() for _ in range(3)]
    for answer in answers:
        connection.open(b"x", [], answer)
    await eventually(lambda: len(two.user.serve.asked) == 3)  # type: ignore[attr-defined]  # a Mute
    began = asyncio.get_running_loop().time()
    two.hub.connection(one.id)._transport.abort()  # type: ignore[union-attr]  # it is there
    for answer in answers:
        with pytest.raises(LinkLost):
            await asyncio.wait_for(answer.done, 5)
    assert asyncio.get_running_loop().time() - began < 0.5
    assert [down.peer for down in one.user.downs()] == [two.id]
    assert one.hub.connection(two.id) is None
    assert one.hub.remote_address(two.id) is None
    one.hub.note(two.id, b"nobody")


async def test_closing_a_link_tells_both_sides_why_it_is_down(mesh: MeshMaker) -> None:
    one, two, _ = await mesh.pair()
    one.hub.close_link(two.id, "evicted")
    one.hub.close_link(NodeId("nobody"), "no link")
    assert one.user.downs()[0].reason == "evicted"
    await eventually(two.user.downs)


async def test_a_link_that_is_to_close_only_if_idle_stays_while_a_request_runs(
    mesh: MeshMaker,
) -> None:
    one, two, link = await mesh.pair()
    two.user.serve = Mute()
    waiting = Answer()
    stream = link.open(b"x", [], waiting)
    one.hub.close_link(two.id, "not needed", if_idle=True)
    assert one.user.downs() == []
    link.cancel(stream)
    await eventually(lambda: link.idle)
    one.hub.close_link(two.id, "not needed", if_idle=True)
    assert one.user.downs()[0].reason == "not needed"


async def test_a_usable_duplicate_takes_over_when_the_link_breaks(mesh: MeshMaker) -> None:
    one, two, first = await mesh.pair()
    second = await one.hub.connect((two.address,), two.id)
    assert one.hub.connection(two.id) is second
    second.abort(LinkLost("cut"))
    assert one.hub.connection(two.id) is first
    assert one.user.downs() == []


async def test_a_duplicate_that_is_going_away_is_no_link(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "RETIRE_AFTER_S", 0.0)
    one, two, first = await mesh.pair()
    two.user.serve = Mute()
    waiting = Answer()
    first.open(b"x", [], waiting)
    second = await one.hub.connect((two.address,), two.id)
    await eventually(lambda: first.going_away)
    second.abort(LinkLost("cut"))
    assert [down.reason for down in one.user.downs()] == ["cut"]
    assert two.id not in one.hub.peers()
    assert not first.lost.is_set()
    first.close()
    with pytest.raises(LinkLost):
        await waiting.done
    assert len(one.user.downs()) == 1


async def test_a_link_whose_ids_run_out_is_replaced_and_no_request_is_lost(
    mesh: MeshMaker,
) -> None:
    one, two, first = await mesh.pair()
    assert first._link is not None
    first._link._next_id = 2**32 - 1
    assert await ask(first, data=b"last") == b"last"
    second = await eventually(lambda: one.hub.connection(two.id), "the link is replaced")
    assert second is not first
    assert await ask(second, data=b"first") == b"first"
    await eventually(first.lost.is_set)
    await eventually(lambda: only_links(one, two))
    assert one.user.downs() == two.user.downs() == []


async def test_ids_that_run_out_on_the_accepting_side_make_the_dialler_replace_the_link(
    mesh: MeshMaker,
) -> None:
    one, two, first = await mesh.pair()
    back = two.hub.connection(one.id)
    assert back is not None
    assert back._link is not None
    back._link._next_id = 2**32 - 2
    assert await ask(back, data=b"x") == b"x"
    await eventually(lambda: two.hub.connection(one.id) not in (None, back))
    assert one.hub.connection(two.id) is not first


async def test_a_node_that_leaves_takes_nothing_new_finishes_what_runs_and_may_still_ask(
    mesh: MeshMaker,
) -> None:
    one, two, connection = await mesh.pair()
    two.user.serve = mute = Mute()
    waiting = Answer()
    stream = connection.open(b"x", [], waiting)
    await eventually(lambda: mute.asked)
    back = two.hub.connection(one.id)
    assert back is not None
    two.hub.go_away()
    await eventually(lambda: one.user.health[two.id] == (None, False))
    assert one.hub.connection(two.id) is None
    with pytest.raises(LinkLost, match="going away"):
        connection.open(b"y", [], Answer())
    back.reply(stream, b"done", end=True)
    assert await waiting.done == (b"done", b"")
    assert two.hub.connection(one.id) is back
    assert await ask(back, data=b"for a last client") == b"for a last client"
    assert one.user.downs() == []
    two.hub.dial((one.address,), one.id)
    assert not two.hub._dials


async def test_a_retired_link_is_closed_at_the_end_of_its_grace_whatever_runs(
    mesh: MeshMaker,
) -> None:
    _, two, connection = await mesh.pair()
    two.user.serve = Mute()
    waiting = Answer()
    connection.open(b"x", [], waiting)
    connection.retire(0.0, 0.05)
    connection.retire(0.0, 5.0)
    with pytest.raises(LinkLost, match="was closed"):
        await asyncio.wait_for(waiting.done, 2)


async def test_closing_a_hub_leaves_no_socket_and_no_task(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    half_open = socket.create_connection((one.address.host, one.address.port))
    await eventually(lambda: one.hub.incoming.connections)
    one.hub.dial((Address("127.0.0.1", 9),), NodeId("x" * 32))
    await one.hub.close()
    await two.hub.close()
    assert connection.lost.is_set()
    assert not one.hub.incoming.connections
    assert not one.hub._dials
    half_open.close()
    current = asyncio.current_task()
    others = [task for task in asyncio.all_tasks() if task is not current]
    assert [task for task in others if "Link" in repr(task)] == []


async def test_a_peer_that_does_not_close_its_side_does_not_hold_the_hub_up(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "LINK_CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(connection_module, "LINK_CLOSE_TIMEOUT_S", 0.2)
    one, two, connection = await mesh.pair()
    back = two.hub.connection(one.id)
    assert back is not None
    back._transport.pause_reading()  # type: ignore[union-attr]  # it is there
    await asyncio.wait_for(one.hub.close(), 1)
    await eventually(connection.lost.is_set, "it is dropped in the end")


# Strangers


async def test_silent_connections_make_room_for_a_peer_that_talks(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "MAX_LINKS_UNAUTHENTICATED", 4)
    one, two = await mesh.start("one"), mesh.build("two")
    silent = [socket.create_connection((one.address.host, one.address.port)) for _ in range(10)]
    await eventually(lambda: one.hub.refused == 6)
    assert len(one.hub.incoming.connections) == 4
    await two.join(one)
    for each in silent:
        each.close()
    await eventually(lambda: not one.hub.incoming.connections)


async def test_a_stranger_that_says_nothing_is_dropped_in_time(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "HANDSHAKE_TIMEOUT_S", 0.1)
    one = await mesh.start("one")
    reader, writer = await asyncio.open_connection(*one.address)
    writer.write(b"\x16\x03\x01")  # the beginning of a TLS record that never goes on
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert one.hub.refused == 1
    writer.close()


async def test_a_stranger_that_speaks_tls_and_then_slowly_is_dropped_in_time(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await mesh.start("one")
    monkeypatch.setattr(connection_module.Connection.__init__, "__kwdefaults__", {
        "dialled": None, "remote": None, "relay": None, "hello_timeout_s": 0.15,
    })  # fmt: skip
    reader, writer = await asyncio.open_connection(
        *one.address, ssl=one.hub.outgoing.tls, server_hostname=""
    )
    writer.write(b"\x00")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert one.hub.refused == 1
    writer.close()


@pytest.mark.parametrize(
    "garbage", [b"", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 20, b"\x16\x03\x01\xff\xff"]
)
async def test_garbage_instead_of_tls_is_counted_and_the_node_goes_on(
    mesh: MeshMaker, garbage: bytes
) -> None:
    one, two = await mesh.start("one"), mesh.build("two")
    with socket.create_connection((one.address.host, one.address.port)) as stranger:
        stranger.sendall(garbage)
    await eventually(lambda: one.hub.refused == 1)
    await two.join(one)


async def test_garbage_instead_of_a_hello_is_refused(mesh: MeshMaker) -> None:
    one = await mesh.start("one")
    reader, writer = await asyncio.open_connection(
        *one.address, ssl=one.hub.outgoing.tls, server_hostname=""
    )
    writer.write(b"\x00\x00\x00\x02\x91\x05")
    assert b"do not follow the handshake" in await asyncio.wait_for(reader.read(), 5)
    await eventually(lambda: one.hub.refused == 1)
    writer.close()


async def test_bytes_that_break_the_protocol_close_the_link(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    assert connection._transport is not None
    connection._transport.write(b"\xff" * 64)
    down = await eventually(two.user.downs)
    assert "frame" in down[0].reason
    await eventually(one.user.downs)


async def test_an_accept_that_fails_is_tried_again(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "_ACCEPT_PAUSE_S", 0.0)
    loop = asyncio.get_running_loop()
    failures: list[OSError] = [ConnectionAbortedError(), OSError(24, "Too many open files")]

    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(loop, name)

        async def sock_accept(self, listener: socket.socket) -> object:
            if failures:
                raise failures.pop(0)
            return await loop.sock_accept(listener)

    monkeypatch.setattr("meshnode.net.links.asyncio.get_running_loop", Failing)
    one = await mesh.start("one")
    await eventually(lambda: not failures)
    monkeypatch.undo()
    two = mesh.build("two")
    await two.join(one)


async def test_an_address_can_be_given_up_and_taken_again(mesh: MeshMaker) -> None:
    one = mesh.build("one")
    bound = await one.hub.listen(LOOPBACK)
    one.hub.unlisten()
    assert await one.hub.listen(bound) == bound
    with pytest.raises(OSError, match="in use"):
        await mesh.build("two").hub.listen(bound)


async def test_a_silent_peer_is_found_and_the_link_recovers(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, connection = await mesh.pair(config=FAST)
    back = two.hub.connection(one.id)
    assert back is not None
    hear = back.data_received
    heard: list[bytes] = []
    monkeypatch.setattr(back, "data_received", heard.append)  # frozen: it reads nothing
    waiting = Answer()
    connection.open(b"x", [], waiting)
    began = asyncio.get_running_loop().time()
    with pytest.raises(LinkLost, match="stopped answering"):
        await asyncio.wait_for(waiting.done, 5)
    assert asyncio.get_running_loop().time() - began < 1.0
    assert one.hub.is_stalled(two.id)
    assert one.hub.connection(two.id) is None
    assert one.user.health[two.id][1] is False
    monkeypatch.undo()  # thawed
    for data in heard:
        hear(data)
    await eventually(lambda: one.hub.connection(two.id) is connection)
    assert await ask(connection, data=b"again") == b"again"
    assert one.user.health[two.id][1] is True


async def test_a_peer_that_stays_silent_is_given_up(mesh: MeshMaker) -> None:
    one, two, _ = await mesh.pair(config=FAST)
    back = two.hub.connection(one.id)
    assert back is not None
    back.data_received = lambda data: None  # type: ignore[method-assign]  # frozen for good
    await eventually(lambda: one.user.downs() and two.user.downs())
    reasons = one.user.downs()[0].reason + two.user.downs()[0].reason
    assert "silent for too long" in reasons  # who notices first closes the other's end


async def test_health_can_be_asked_for_again(mesh: MeshMaker) -> None:
    one, two, _ = await mesh.pair(config=FAST)
    await eventually(lambda: one.user.health[two.id][0] is not None, "a round trip was measured")
    one.user.health.clear()
    one.hub.tell_health()
    assert one.user.health[two.id][1] is True


async def test_a_link_is_pinged_in_time_and_not_only_when_it_is_nearly_given_up(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await mesh.start("one", config=replace(FAST, dead_after_s=60.0))
    two = await mesh.start("two", config=replace(FAST, ping_interval_s=60.0, dead_after_s=60.0))
    measured: list[float | None] = []
    monkeypatch.setattr(one.user, "link_health", lambda _, rtt_s, usable: measured.append(rtt_s))
    await one.join(two)
    await eventually(lambda: len(measured) > 3, "round trips were measured")


async def test_who_speaks_no_tls_is_named_in_the_log(
    mesh: MeshMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one = await mesh.start("one")
    _, writer = await asyncio.open_connection(*one.address)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await eventually(lambda: one.hub.refused == 1)
    assert "a connection from 127.0.0.1 was refused: no TLS" in caplog.text
    writer.close()


async def test_a_hub_tells_which_start_of_a_peer_it_is_linked_to(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    assert connection.hello is not None
    assert one.hub.boot(two.id) == connection.hello.peer_boot
    assert one.hub.boot(one.id) is None
