"""What runs on a connection: large and small parts, credit, cancellation, errors, its end."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import (
    HandshakeError,
    InvalidRequest,
    LinkLost,
    MeshError,
    NotServing,
    PeerError,
    Saturated,
    TooLarge,
)
from meshnode.limits import MAX_PEER_MESSAGE_LENGTH, MIB
from meshnode.net import connection as connection_module
from meshnode.net.clock import RealClock
from meshnode.net.connection import Connection, peer_error
from meshnode.wire.config import LinkConfig
from tests.unit.net.conftest import Echo, Mute, eventually

if TYPE_CHECKING:
    from tests.unit.net.conftest import MeshMaker, Node


class Collector:
    """Takes the parts of one stream; returns credit when told to."""

    def __init__(self) -> None:
        self.parts: list[tuple[bytes, memoryview, bool]] = []
        self.error: MeshError | None = None

    def part(self, meta: bytes, data: memoryview, end: bool) -> None:
        self.parts.append((meta, data, end))

    def lost(self, error: MeshError) -> None:
        self.error = error

    def has(self, count: int) -> bool:
        return len(self.parts) >= count

    @property
    def ended(self) -> bool:
        return bool(self.parts) and self.parts[-1][2]

    @property
    def size_bytes(self) -> int:
        return sum(data.nbytes for _, data, _ in self.parts)


def other_end(node: Node, of: Node) -> Connection:
    connection = node.hub.connection(of.id)
    assert connection is not None
    return connection


async def test_large_parts_travel_both_ways_at_once(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    back = other_end(two, one)
    payloads = [bytes([index]) * (5 * MIB + index) for index in range(4)]
    collectors = [Collector() for _ in payloads]
    for index, payload in enumerate(payloads):
        (connection, back)[index % 2].open(b"large", [payload], collectors[index])
    await eventually(lambda: all(each.ended for each in collectors))
    assert [bytes(each.parts[0][1]) for each in collectors] == payloads


async def test_a_small_request_overtakes_large_ones(mesh: MeshMaker) -> None:
    _, two, connection = await mesh.pair()
    order: list[str] = []

    class Noting(Echo):
        def opened(
            self, connection: Connection, stream: int, meta: bytes, data: memoryview
        ) -> None:
            order.append(meta.decode())

    two.user.serve = Noting()
    for _ in range(8):
        connection.open(b"large", [bytes(8 * MIB)], Collector())
    connection.open(b"small", [b"x"], Collector())
    await eventually(lambda: "large" in order)
    assert order[0] == "small"


async def test_what_a_full_socket_does_not_take_waits_in_the_link(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    back = other_end(two, one)
    assert back._transport is not None
    assert connection._transport is not None
    back._transport.pause_reading()
    for _ in range(12):
        connection.open(b"large", [bytes(MIB)], Collector())
    await eventually(lambda: connection._paused)
    buffered = connection._transport.get_write_buffer_size()
    assert buffered <= 3 * connection_module.FLUSH_BYTES
    back._transport.resume_reading()
    await eventually(lambda: connection._link is not None and not connection._link.open_streams)
    assert not connection._paused


async def test_a_request_holds_its_memory_until_it_is_answered(mesh: MeshMaker) -> None:
    config = LinkConfig(max_part_bytes=MIB, max_buffered_bytes=2 * MIB)
    one, two, connection = await mesh.pair(config=config)
    mute = Mute()
    two.user.serve = mute
    answers = [Collector() for _ in range(3)]
    streams = [connection.open(b"x", [bytes(MIB)], each) for each in answers]
    await eventually(lambda: answers[2].error is not None)
    assert isinstance(answers[2].error, Saturated)
    other_end(two, one).reply(streams[0], b"done", end=True)
    await eventually(lambda: answers[0].ended)
    late = Collector()
    connection.open(b"x", [bytes(MIB)], late)
    await eventually(lambda: len(mute.asked) == 3)
    assert late.error is None


async def test_credit_comes_back_when_the_reader_is_done_with_the_data(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair(config=LinkConfig(window_bytes=64 * 1024))
    mute = Mute()
    two.user.serve = mute
    collector = Collector()
    stream = connection.open(b"x", [], collector)
    await eventually(lambda: mute.asked)
    back = other_end(two, one)
    sent = 0

    async def send() -> None:
        nonlocal sent
        for index in range(20):
            back.reply(stream, b"p", [bytes(32 * 1024)], end=index == 19)
            sent += 1
            await back.drained(stream)

    sending = asyncio.ensure_future(send())
    # What the reader holds, one window of credit, one window that waits here.
    await eventually(lambda: sent == 4 and len(collector.parts) == 2)
    assert not sending.done()
    for index in range(20):
        await eventually(partial(collector.has, index + 1))
        connection.consumed(stream, 32 * 1024)
    await sending
    assert collector.ended
    connection.consumed(stream, 1)  # it is gone: nothing happens


async def test_cancelling_stops_the_work_over_there(mesh: MeshMaker) -> None:
    _, two, connection = await mesh.pair()
    mute = Mute()
    two.user.serve = mute
    stream = connection.open(b"x", [], Collector())
    await eventually(lambda: mute.asked)
    connection.cancel(stream)
    connection.cancel(stream)
    await eventually(lambda: mute.cancels == [stream])


async def test_waiting_for_room_ends_when_the_stream_is_cancelled_or_the_link_breaks(
    mesh: MeshMaker,
) -> None:
    one, two, connection = await mesh.pair()
    mute = Mute()
    two.user.serve = mute
    streams = [connection.open(b"x", [], Collector()) for _ in range(2)]
    await eventually(lambda: len(mute.asked) == 2)
    back = other_end(two, one)
    waiting = []
    for stream in streams:
        for _ in range(4):
            back.reply(stream, b"p", [bytes(MIB)], end=False)
        waiting += [asyncio.ensure_future(back.drained(stream)) for _ in range(2)]
    connection.cancel(streams[0])
    await asyncio.wait_for(asyncio.gather(*waiting[:2]), 5)
    assert not waiting[2].done()
    connection.abort()
    await asyncio.wait_for(asyncio.gather(*waiting[2:]), 5)
    await back.drained(streams[1])


async def test_an_error_crosses_with_its_code(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    mute = Mute()
    two.user.serve = mute
    collectors = [Collector(), Collector()]
    streams = [connection.open(b"x", [], each) for each in collectors]
    await eventually(lambda: len(mute.asked) == 2)
    back = other_end(two, one)
    back.refuse(streams[0], NotServing("not here"))
    back.refuse(streams[1], Saturated("later"))
    await eventually(lambda: all(each.error for each in collectors))
    assert [type(each.error) for each in collectors] == [NotServing, Saturated]
    assert str(collectors[0].error) == "not here"


def test_a_peers_message_is_made_safe_for_a_terminal() -> None:
    error = peer_error("model", "bad\x1b[2J\nmodel" + "x" * 1000)
    assert str(error).startswith("bad [2J modelxxx")
    assert len(str(error)) == MAX_PEER_MESSAGE_LENGTH
    assert type(peer_error("what", "x")) is PeerError


async def test_a_request_of_several_parts_is_refused(mesh: MeshMaker) -> None:
    _, two, connection = await mesh.pair()
    mute = Mute()
    two.user.serve = mute
    collector = Collector()
    assert connection._link is not None
    stream = connection._link.open_stream(b"x", [], end=False)
    connection._handlers[stream] = collector
    connection._schedule_flush()
    await eventually(lambda: collector.error)
    assert collector.error is not None
    assert collector.error.code == InvalidRequest.code
    assert mute.asked == []


async def test_parts_for_a_handler_that_cancelled_are_dropped(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    mute = Mute()
    two.user.serve = mute

    class Impatient(Collector):
        def part(self, meta: bytes, data: memoryview, end: bool) -> None:
            super().part(meta, data, end)
            connection.cancel(stream)

    collector = Impatient()
    stream = connection.open(b"x", [], collector)
    await eventually(lambda: mute.asked)
    back = other_end(two, one)
    for _ in range(3):  # they arrive as one chunk
        back.reply(stream, b"p", [b"data"], end=False)
    await eventually(lambda: mute.cancels)
    assert len(collector.parts) == 1


async def test_nothing_is_taken_from_a_chunk_after_its_first_part_closed_the_link(
    mesh: MeshMaker,
) -> None:
    _, two, connection = await mesh.pair()

    class Closing(Mute):
        def opened(
            self, connection: Connection, stream: int, meta: bytes, data: memoryview
        ) -> None:
            super().opened(connection, stream, meta, data)
            connection.close(LinkLost("enough"))

    two.user.serve = closing = Closing()
    for _ in range(3):
        connection.open(b"x", [], Collector())
    await eventually(connection.lost.is_set)
    assert len(closing.asked) == 1


async def test_notes_arrive_in_order_and_are_dropped_where_nobody_reads(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair(config=LinkConfig(max_ready_bytes=1000))
    for index in range(5):
        one.hub.note(two.id, b"note %d" % index)
    await eventually(lambda: len(two.user.notes) == 5)
    assert two.user.notes[4] == (one.id, b"note 4")
    connection.note(bytes(70_000))
    for _ in range(10):
        connection.note(bytes(500))
    assert connection.dropped_notes == 9
    await eventually(lambda: len(two.user.notes) == 7)


async def test_a_part_beyond_the_limit_is_refused_here(mesh: MeshMaker) -> None:
    _, _, connection = await mesh.pair(config=LinkConfig(max_part_bytes=1000))
    with pytest.raises(TooLarge):
        connection.open(b"x", [bytes(1001)], Collector())


async def test_a_closed_connection_takes_nothing(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    connection.close()
    connection.close()
    connection.abort()
    connection.go_away()
    connection.note(b"x")
    connection.reply(2, b"x", end=True)
    connection.consumed(1, 1)
    connection.refuse(2, NotServing("x"))
    connection.retire(0.0, 0.0)
    connection.resume_writing()
    connection.data_received(b"late")
    with pytest.raises(LinkLost, match="there is no link"):
        connection.open(b"x", [], Collector())
    assert "closed" in repr(connection)
    await eventually(connection.lost.is_set)
    await eventually(two.user.downs)
    assert one.user.downs()[0].reason == "closed by the peer"


async def test_what_was_said_before_closing_arrives(mesh: MeshMaker) -> None:
    _, two, connection = await mesh.pair()
    connection.note(b"goodbye")
    connection.close()
    await eventually(lambda: two.user.notes)


async def test_a_broken_socket_says_what_broke(mesh: MeshMaker) -> None:
    one, two, connection = await mesh.pair()
    collector = Collector()
    two.user.serve = Mute()
    connection.open(b"x", [], collector)
    connection.connection_lost(OSError("cable cut"))
    assert "cable cut" in str(collector.error)
    assert "cable cut" in one.user.downs()[0].reason
    connection.abort()


async def test_a_connection_that_was_given_up_during_tls_is_dropped_when_it_stands(
    mesh: MeshMaker,
) -> None:
    one = mesh.build("one")
    two = await mesh.start("two")
    loop = asyncio.get_running_loop()
    connection = Connection(
        one.hub, lambda _: pytest.fail("no hello"), RealClock(), config=LinkConfig()
    )
    connection.abort(HandshakeError("too late"))
    await loop.create_connection(
        lambda: connection,
        *two.address,
        ssl=one.hub.outgoing.tls,
        server_hostname="",
    )
    await eventually(lambda: two.hub.refused == 1)
