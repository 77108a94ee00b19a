"""Credit, turns and the bounds of every buffer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ProtocolError, Saturated
from meshnode.limits import KIB, MAX_FRAME_DATA_BYTES, MIB
from meshnode.wire.frames import (
    DATA,
    END,
    HEADER,
    HEADER_BYTES,
    OPEN,
    PING,
    PONG,
    RESET,
    WINDOW,
    announcement_frame,
    part_header,
    token_frame,
)
from meshnode.wire.link import (
    Link,
    LinkConfig,
    PartReceived,
    StreamOpened,
    StreamReset,
    StreamWritable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.types import Buffer
    from meshnode.wire.link import LinkEvent

    Pump = Callable[..., tuple[list[LinkEvent], list[LinkEvent]]]

EMPTY = memoryview(b"")


def pair(**limits: int) -> tuple[Link, Link]:
    config = replace(LinkConfig(), **limits)
    return (
        Link(dialler=True, config=config, now=0.0),
        Link(dialler=False, config=config, now=0.0),
    )


def frames(output: list[Buffer]) -> list[tuple[int, int, int, int]]:
    """Return type, flags, stream and body length of each frame."""
    wire = b"".join(output)
    found = []
    at = 0
    while at < len(wire):
        length, _, kind, flags, stream = HEADER.unpack_from(wire, at)
        found.append((kind, flags, stream, length))
        at += HEADER_BYTES + length
    return found


def test_a_sender_stops_when_its_credit_is_used_up(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=1000)
    stream = dialler.open_stream(b"", end=False)
    for size in (450, 450, 300):
        dialler.send(stream, b"", [bytes(size)], end=False)
    _, told = pump(dialler, acceptor)
    assert [type(event) for event in told] == [StreamOpened, PartReceived, PartReceived]
    assert dialler.queued_bytes(stream) == 200, "900 were delivered, 100 are on their way"
    acceptor.consumed(stream, 399)
    assert not acceptor.has_output, "less than half the window is due"
    acceptor.consumed(stream, 1)
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_acceptor == [PartReceived(stream, b"", memoryview(bytes(300)), False)]
    assert dialler.queued_bytes(stream) == 0
    told_dialler += dialler.tick(0.0)
    assert told_dialler == [StreamWritable(stream)]


def test_a_part_that_is_incomplete_gets_its_credit_back_at_once(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=1000)
    dialler.open_stream(b"", [bytes(10_000)], end=False)
    _, told = pump(dialler, acceptor)
    assert len(told) == 1


def test_complete_parts_hold_the_credit_until_they_are_consumed(pump: Pump) -> None:
    """A part of ten windows leaves its sender with what it had; the next one waits."""
    dialler, acceptor = pair(window_bytes=1000)
    stream = dialler.open_stream(b"", [bytes(10_000)], end=False)
    dialler.send(stream, b"", [bytes(10_000)], end=False)
    _, told = pump(dialler, acceptor)
    assert len(told) == 1
    assert dialler.queued_bytes(stream) >= 9_000
    acceptor.consumed(stream, 10_000)
    _, told = pump(dialler, acceptor)
    assert len(told) == 1


def test_a_part_without_data_needs_no_credit_but_keeps_its_place(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=100)
    stream = dialler.open_stream(b"", [bytes(100)], end=False)
    dialler.send(stream, b"free", end=False)
    dialler.send(stream, b"", [bytes(100)], end=False)
    dialler.send(stream, b"behind", end=True)
    _, told = pump(dialler, acceptor)
    assert told == [
        StreamOpened(stream, b"", memoryview(bytes(100)), False),
        PartReceived(stream, b"free", EMPTY, False),
    ]
    acceptor.consumed(stream, 100)
    _, told = pump(dialler, acceptor)
    assert told == [
        PartReceived(stream, b"", memoryview(bytes(100)), False),
        PartReceived(stream, b"behind", EMPTY, True),
    ]


def test_parts_that_fit_the_credit_are_single_frames_also_when_they_waited() -> None:
    dialler, _ = pair()
    stream = dialler.open_stream(b"", [bytes(300_000)], end=False)
    dialler.send(stream, b"waits", [bytes(10)], end=True)
    assert frames(dialler.take_output())[-1] == (DATA, END, stream, 15)


def test_after_the_peers_last_part_no_credit_is_returned(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=100)
    stream = dialler.open_stream(b"", [bytes(100)])
    pump(dialler, acceptor)
    assert "buffered=100 " in repr(acceptor)
    acceptor.consumed(stream, 100)
    assert not acceptor.has_output
    assert "buffered=0 " in repr(acceptor)


@pytest.mark.parametrize("size", [-1, 101])
def test_more_than_was_delivered_cannot_be_consumed(pump: Pump, size: int) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"", [bytes(100)], end=False)
    pump(dialler, acceptor)
    with pytest.raises(ValueError, match="cannot be consumed"):
        acceptor.consumed(stream, size)
    acceptor.consumed(stream, 100)


def test_large_parts_take_turns_frame_by_frame() -> None:
    dialler, _ = pair()
    streams = [dialler.open_stream(b"", [bytes(600 * KIB)]) for _ in range(3)]
    data = [(kind, s, size) for kind, _, s, size in frames(dialler.take_output()) if kind == DATA]
    sizes = [MAX_FRAME_DATA_BYTES, MAX_FRAME_DATA_BYTES, 88 * KIB]
    assert data == [(DATA, stream, size) for size in sizes for stream in streams]


def test_a_small_part_overtakes_the_rest_of_a_large_one() -> None:
    dialler, _ = pair()
    large = dialler.open_stream(b"", [bytes(MIB)])
    first = frames(dialler.take_output(limit_bytes=1))
    assert [(kind, s) for kind, _, s, _ in first] == [(OPEN, large), (DATA, large)]
    small = dialler.open_stream(b"", [b"small"])
    second = frames(dialler.take_output(limit_bytes=MAX_FRAME_DATA_BYTES + HEADER_BYTES))
    assert [(kind, s) for kind, _, s, _ in second] == [(OPEN, small), (DATA, large)]
    assert dialler.has_output
    assert len(frames(dialler.take_output())) == 2
    assert not dialler.has_output


def test_opens_leave_in_the_order_of_their_ids_whatever_their_size() -> None:
    dialler, _ = pair(window_bytes=1000)
    sizes = [5000, 10, 100_000, 0, 2000]
    ids = [dialler.open_stream(b"", [bytes(size)]) for size in sizes]
    opens = [s for kind, _, s, _ in frames(dialler.take_output()) if kind == OPEN]
    assert opens == ids


def test_a_stream_without_credit_leaves_the_turns_to_others() -> None:
    dialler, _ = pair(window_bytes=1000)
    blocked = dialler.open_stream(b"", [bytes(1000)], end=False)
    dialler.send(blocked, b"", [bytes(1000)], end=False)
    dialler.take_output()
    assert dialler.queued_bytes(blocked) == 1000, "announced, and that is all it may"
    assert not dialler.has_output
    other = dialler.open_stream(b"", [bytes(1000)])
    assert frames(dialler.take_output()) == [(OPEN, END, other, 1000)]


def test_credit_for_a_stream_with_nothing_to_send_is_kept(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=1000)
    stream = dialler.open_stream(b"", [bytes(1000)], end=False)
    pump(dialler, acceptor)
    acceptor.consumed(stream, 1000)
    pump(dialler, acceptor)
    dialler.send(stream, b"", [bytes(1000)], end=True)
    assert frames(dialler.take_output()) == [(DATA, END, stream, 1000)]


def test_a_sender_is_told_when_all_that_waited_is_handed_out() -> None:
    dialler, _ = pair()
    stream = dialler.open_stream(b"meta", [bytes(300_000)], end=False)
    dialler.send(stream, b"next", [bytes(10)], end=False)
    assert dialler.queued_bytes(stream) == 300_000 + HEADER_BYTES + 4 + 10
    dialler.tick(0.0)
    dead_after_s = LinkConfig().dead_after_s
    assert dialler.next_tick(0.1) == dead_after_s, "no event waits, and the peer owes no answer"
    dialler.take_output()
    assert dialler.queued_bytes(stream) == 0
    assert dialler.next_tick(0.1) == 0.1, "an event waits"
    assert dialler.tick(0.1) == [StreamWritable(stream)]
    assert dialler.tick(0.1) == []


def test_a_sender_that_has_ended_needs_not_be_told() -> None:
    dialler, _ = pair()
    dialler.open_stream(b"meta", [bytes(300_000)])
    dialler.take_output()
    assert dialler.tick(0.0) == []


def test_a_queue_that_its_peer_never_drains_is_bounded() -> None:
    dialler, _ = pair(window_bytes=100, max_queued_bytes=1000)
    stream = dialler.open_stream(b"", end=False)
    dialler.send(stream, b"", [bytes(900)], end=False)
    dialler.send(stream, b"", [bytes(900)], end=False)
    with pytest.raises(Saturated, match=f"bytes wait on stream {stream}"):
        dialler.send(stream, b"", [bytes(1)], end=False)
    dialler.reset(stream)
    assert dialler.queued_bytes(stream) == 0


def test_a_driver_that_never_writes_is_not_given_more_and_loses_nothing(pump: Pump) -> None:
    dialler, acceptor = pair(max_ready_bytes=1000)
    stream = dialler.open_stream(b"", [bytes(1000)], end=False)
    with pytest.raises(Saturated):
        dialler.open_stream(b"")
    with pytest.raises(Saturated):
        dialler.send_note(b"")
    dialler.send(stream, b"waits", [b"its"], end=False)
    dialler.send(stream, b"turn", end=True)
    _, told = pump(dialler, acceptor)
    assert told == [
        StreamOpened(stream, b"", memoryview(bytes(1000)), False),
        PartReceived(stream, b"waits", memoryview(b"its"), False),
        PartReceived(stream, b"turn", EMPTY, True),
    ]


def test_a_stream_whose_last_part_waited_is_forgotten_when_it_is_sent(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor)
    acceptor.send(stream, b"answer", [bytes(500_000)], end=True)
    assert acceptor.open_streams == 1
    acceptor.take_output()
    assert acceptor.open_streams == 0


def test_the_peers_streams_are_limited_and_the_link_lives(pump: Pump) -> None:
    config = LinkConfig(max_streams=2)
    acceptor = Link(dialler=False, config=config, now=0.0)
    dialler = Link(dialler=True, config=LinkConfig(), now=0.0)
    streams = [dialler.open_stream(b"", end=False) for _ in range(4)]
    dialler.send(streams[3], b"more", [b"data"], end=True)
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert [event.stream for event in told_acceptor if isinstance(event, StreamOpened)] == [1, 3]
    limit = "the limit is 2 streams"
    assert told_dialler == [StreamReset(i, "saturated", limit) for i in (5, 7)]
    acceptor.reset(1)
    pump(dialler, acceptor)
    again = dialler.open_stream(b"again")
    _, told_acceptor = pump(dialler, acceptor)
    assert told_acceptor == [StreamOpened(again, b"again", EMPTY, True)]


def test_a_flood_of_opens_beyond_the_limit_closes_the_link() -> None:
    _, acceptor = pair(max_streams=1, max_refused_streams=10)
    opens = [part_header(OPEN, END, i, b"", 0) for i in range(1, 27, 2)]
    acceptor.receive(b"".join(opens[:11]), 0.0)
    assert acceptor.open_streams == 1
    with pytest.raises(ProtocolError, match="11 streams opened beyond the limit"):
        acceptor.receive(opens[11], 0.0)


def test_refusals_are_counted_in_a_row() -> None:
    _, acceptor = pair(max_streams=1, max_refused_streams=2)
    for first in (1, 7, 13):
        opens = [part_header(OPEN, END, first + i, b"", 0) for i in (0, 2, 4)]
        acceptor.receive(b"".join(opens), 0.0)
        acceptor.reset(first)
    assert acceptor.open_streams == 0


def test_a_peer_that_causes_answers_without_reading_them_is_cut_off() -> None:
    _, acceptor = pair(max_streams=0, max_answer_frames=5)
    opens = [part_header(OPEN, END, i, b"", 0) for i in range(1, 25, 2)]
    acceptor.receive(b"".join(opens[:5]), 0.0)
    assert len(acceptor.take_output()) == 5
    acceptor.receive(b"".join(opens[5:10]), 0.0)
    with pytest.raises(ProtocolError, match="faster than it reads"):
        acceptor.receive(opens[10], 0.0)


def test_only_the_latest_of_many_pings_is_answered() -> None:
    _, acceptor = pair()
    acceptor.receive(b"".join(token_frame(PING, token) for token in range(10_000)), 0.0)
    assert acceptor.has_output
    assert acceptor.take_output() == [token_frame(PONG, 9_999)]


def test_a_part_that_claims_too_much_is_refused_before_it_is_sent(pump: Pump) -> None:
    dialler, _ = pair()
    acceptor = Link(dialler=False, config=LinkConfig(max_part_bytes=1000), now=0.0)
    stream = dialler.open_stream(b"", [bytes(2 * MIB)])
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_dialler == [
        StreamReset(stream, "too_large", "2097152 bytes of data; the limit is 1000")
    ]
    assert told_acceptor == [], "the application never knew the stream"
    assert acceptor.idle


def test_claims_of_memory_are_bounded_over_all_streams() -> None:
    _, acceptor = pair(max_buffered_bytes=2500, max_part_bytes=1000)
    claims = [announcement_frame(OPEN, i, b"", 1000) for i in (1, 3, 5)]
    acceptor.receive(b"".join(claims), 0.0)
    assert acceptor.open_streams == 2
    assert [(kind, s) for kind, _, s, _ in frames(acceptor.take_output())] == [(RESET, 5)]
    assert "buffered=2000 " in repr(acceptor)


def test_what_is_never_consumed_is_bounded_over_all_streams(pump: Pump) -> None:
    dialler, acceptor = pair(max_buffered_bytes=250)
    streams = [dialler.open_stream(b"", [bytes(50)], end=False) for _ in range(4)]
    pump(dialler, acceptor)
    dialler.send(streams[0], b"", [bytes(100)], end=False)
    told_dialler, told_acceptor = pump(dialler, acceptor)
    sentence = "too much data waits to be consumed"
    assert told_dialler == told_acceptor == [StreamReset(streams[0], "saturated", sentence)]
    assert "buffered=150 " in repr(acceptor)
    dialler.send(streams[1], b"", [bytes(100)], end=False)
    _, told_acceptor = pump(dialler, acceptor)
    assert len(told_acceptor) == 1


def test_windows_are_sent_once_per_half_a_window_of_small_parts(pump: Pump) -> None:
    dialler, acceptor = pair(window_bytes=1000)
    stream = dialler.open_stream(b"", end=False)
    windows = 0
    for _ in range(100):
        dialler.send(stream, b"", [bytes(100)], end=False)
        for event in acceptor.receive(b"".join(dialler.take_output()), 0.0):
            if isinstance(event, PartReceived):
                acceptor.consumed(stream, 100)
        output = acceptor.take_output()
        windows += sum(kind == WINDOW for kind, *_ in frames(output))
        dialler.receive(b"".join(output), 0.0)
    assert dialler.queued_bytes(stream) == 0
    assert windows == 20
