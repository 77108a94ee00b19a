"""Streams as an application sees them: opened, answered, cancelled, ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from meshnode.errors import LinkLost, Saturated, TooLarge
from meshnode.limits import MAX_FRAME_DATA_BYTES, MAX_META_BYTES, MIB
from meshnode.wire.frames import GOAWAY_FRAME, HEADER, NOTE
from meshnode.wire.link import (
    GoingAway,
    Link,
    LinkConfig,
    NoteReceived,
    PartReceived,
    StreamOpened,
    StreamReset,
    StreamWritable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.wire.link import LinkEvent

    Pump = Callable[..., tuple[list[LinkEvent], list[LinkEvent]]]

EMPTY = memoryview(b"")


def pair(config: LinkConfig | None = None) -> tuple[Link, Link]:
    config = config or LinkConfig()
    return (
        Link(dialler=True, config=config, now=0.0),
        Link(dialler=False, config=config, now=0.0),
    )


def test_a_unary_request_is_one_frame_each_way_and_leaves_nothing_behind(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request", [b"tensor"])
    output = dialler.take_output()
    assert len(output) == 1
    (opened,) = acceptor.receive(bytes(output[0]), 0.0)
    assert opened == StreamOpened(stream, b"request", memoryview(b"tensor"), True)
    acceptor.send(stream, b"answer", [b"label"], end=True)
    assert acceptor.open_streams == 0
    told, _ = pump(dialler, acceptor)
    assert told == [PartReceived(stream, b"answer", memoryview(b"label"), True)]
    assert dialler.idle
    assert acceptor.idle


def test_streams_of_parts_flow_both_ways_in_order(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"0", end=False)
    dialler.send(stream, b"1", [b"x", b"y"], end=False)
    dialler.send(stream, b"2", end=True)
    _, told = pump(dialler, acceptor)
    assert told == [
        StreamOpened(stream, b"0", EMPTY, False),
        PartReceived(stream, b"1", memoryview(b"xy"), False),
        PartReceived(stream, b"2", EMPTY, True),
    ]
    acceptor.send(stream, b"a", end=False)
    acceptor.send(stream, b"b", end=True)
    told, _ = pump(dialler, acceptor)
    assert told == [
        PartReceived(stream, b"a", EMPTY, False),
        PartReceived(stream, b"b", EMPTY, True),
    ]
    assert dialler.idle
    assert acceptor.idle


def test_an_answer_may_end_before_its_request(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request", end=False)
    pump(dialler, acceptor)
    acceptor.send(stream, b"refused", end=True)
    pump(dialler, acceptor)
    assert dialler.open_streams == acceptor.open_streams == 1
    dialler.send(stream, b"too late", end=True)
    pump(dialler, acceptor)
    assert dialler.open_streams == acceptor.open_streams == 0


def test_both_sides_open_streams_at_once_with_ids_of_their_own(pump: Pump) -> None:
    dialler, acceptor = pair()
    ours = [dialler.open_stream(b"d") for _ in range(3)]
    theirs = [acceptor.open_stream(b"a") for _ in range(3)]
    assert ours == [1, 3, 5]
    assert theirs == [2, 4, 6]
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_dialler == [StreamOpened(i, b"a", EMPTY, True) for i in theirs]
    assert told_acceptor == [StreamOpened(i, b"d", EMPTY, True) for i in ours]
    assert dialler.open_streams == acceptor.open_streams == 6


def test_a_small_part_is_delivered_as_a_view_of_the_chunk() -> None:
    dialler, acceptor = pair()
    dialler.open_stream(b"meta", [b"data"])
    dialler.open_stream(b"meta", [b"more"])
    chunk = b"".join(dialler.take_output())
    for event in acceptor.receive(chunk, 0.0):
        assert isinstance(event, StreamOpened)
        assert event.data.obj is chunk


@pytest.mark.parametrize("size", [5_000, 64 * 1024, 64 * 1024 + 1, 340_000])
def test_large_data_leaves_as_views_of_the_callers_buffers(size: int) -> None:
    dialler, _ = pair()
    first, second, third = bytes(size), bytearray(size), bytes(size)
    stream = dialler.open_stream(b"a", [first], end=False)
    dialler.send(stream, b"b", [memoryview(second), third], end=True)
    views = [buffer for buffer in dialler.take_output() if isinstance(buffer, memoryview)]
    for buffer in (first, second, third):
        assert sum(view.nbytes for view in views if view.obj is buffer) == size
    assert all(any(view.obj is b for b in (first, second, third)) for view in views)


def test_data_below_a_page_is_joined_with_its_header() -> None:
    dialler, _ = pair()
    dialler.open_stream(b"meta", [b"x" * 2048, b"y" * 2048])
    assert len(dialler.take_output()) == 1
    dialler.open_stream(b"meta", [b"x" * 4097])
    assert len(dialler.take_output()) == 2


def test_arrays_of_any_type_and_shape_are_sent_as_their_bytes(pump: Pump) -> None:
    for shape in [(4, 3), (60, 50, 2), (300, 300), (0, 7), ()]:
        dialler, acceptor = pair()
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        dialler.open_stream(b"", [array.data, b"tail"])
        _, (opened,) = pump(dialler, acceptor)
        assert isinstance(opened, StreamOpened)
        assert opened.data.tobytes() == array.tobytes() + b"tail"


def test_a_part_larger_than_the_window_arrives_whole(pump: Pump) -> None:
    dialler, acceptor = pair()
    data = np.random.default_rng(1).bytes(5 * MIB + 17)
    stream = dialler.open_stream(b"meta", [data[:MIB], data[MIB:]])
    _, told = pump(dialler, acceptor)
    assert told == [StreamOpened(stream, b"meta", memoryview(data), True)]


@pytest.mark.parametrize("step", [1_000, 65_536, MAX_FRAME_DATA_BYTES, 700_000])
def test_a_large_part_is_whole_wherever_chunks_end(step: int) -> None:
    dialler, acceptor = pair()
    data = np.random.default_rng(2).bytes(700_001)
    dialler.open_stream(b"meta", [data], end=False)
    wire = b"".join(dialler.take_output())
    told = []
    for i in range(0, len(wire), step):
        told += acceptor.receive(wire[i : i + step], 0.0)
    assert told == [StreamOpened(1, b"meta", memoryview(data), False)]


def test_a_cancelled_stream_is_gone_on_both_sides(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor)
    dialler.reset(stream, "cancelled", "the client hung up")
    assert dialler.open_streams == 0
    _, told = pump(dialler, acceptor)
    assert told == [StreamReset(stream, "cancelled", "the client hung up")]
    acceptor.send(stream, b"answer", end=True)
    acceptor.consumed(stream, 5)
    acceptor.reset(stream)
    assert not acceptor.has_output
    assert acceptor.open_streams == 0
    assert acceptor.queued_bytes(stream) == 0


def test_the_answering_side_may_cancel_too_and_what_is_underway_is_ignored(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request", end=False)
    pump(dialler, acceptor)
    dialler.send(stream, b"late", [bytes(100_000)], end=False)
    acceptor.reset(stream, "saturated")
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_dialler == [StreamWritable(stream), StreamReset(stream, "saturated", "")]
    assert told_acceptor == []
    assert dialler.idle
    assert acceptor.idle


def test_when_both_sides_cancel_at_once_nobody_is_told(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"request")
    pump(dialler, acceptor)
    dialler.reset(stream)
    acceptor.reset(stream)
    assert pump(dialler, acceptor) == ([], [])


def test_a_cancelled_part_stops_where_it_is_and_others_go_on(pump: Pump) -> None:
    dialler, acceptor = pair()
    large = dialler.open_stream(b"large", [bytes(MIB)])
    small = dialler.open_stream(b"small", [bytes(100_000)])
    acceptor.receive(b"".join(dialler.take_output(limit_bytes=200_000)), 0.0)
    dialler.reset(large)
    _, told = pump(dialler, acceptor)
    assert told == [StreamOpened(small, b"small", memoryview(bytes(100_000)), True)]
    assert acceptor.open_streams == 1
    assert "buffered=100000 " in repr(acceptor)


def test_a_reset_of_a_stream_whose_first_part_never_became_whole_is_no_event(pump: Pump) -> None:
    dialler, acceptor = pair()
    stream = dialler.open_stream(b"large", [bytes(3 * MIB)])
    acceptor.receive(b"".join(dialler.take_output()), 0.0)
    assert acceptor.open_streams == 1
    dialler.reset(stream)
    assert pump(dialler, acceptor) == ([], [])
    assert acceptor.open_streams == 0
    assert "buffered=0 " in repr(acceptor)


def test_sending_after_the_end_is_misuse() -> None:
    dialler, _ = pair()
    small = dialler.open_stream(b"all")
    large = dialler.open_stream(b"all", [bytes(MIB)])
    for stream in (small, large):
        with pytest.raises(ValueError, match="has ended"):
            dialler.send(stream, b"more", end=False)


def test_notes_travel_outside_of_streams(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.send_note(b"gossip")
    dialler.send_note(b"")
    acceptor.send_note(b"x" * MAX_META_BYTES)
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_dialler == [NoteReceived(b"x" * MAX_META_BYTES)]
    assert told_acceptor == [NoteReceived(b"gossip"), NoteReceived(b"")]


def test_nothing_is_sent_of_what_is_too_large() -> None:
    dialler, _ = pair(LinkConfig(max_part_bytes=1000))
    stream = dialler.open_stream(b"", end=False)
    dialler.take_output()
    meta = bytes(MAX_META_BYTES + 1)
    with pytest.raises(TooLarge, match="65536 bytes; the limit is 65535"):
        dialler.open_stream(meta)
    with pytest.raises(TooLarge):
        dialler.send(stream, meta, end=True)
    with pytest.raises(TooLarge):
        dialler.send_note(meta)
    with pytest.raises(TooLarge, match="1001 bytes of data; the limit is 1000"):
        dialler.open_stream(b"", [bytes(500), bytes(501)])
    assert not dialler.has_output
    assert dialler.open_streams == 1
    assert dialler.open_stream(b"") == stream + 2


@pytest.mark.parametrize("size", [100, 20_000, 200_000])
def test_buffers_that_are_not_contiguous_are_refused_and_nothing_is_sent(size: int) -> None:
    dialler, _ = pair()
    stream = dialler.open_stream(b"", end=False)
    dialler.take_output()
    gaps = memoryview(bytes(size))[::2]
    with pytest.raises((TypeError, BufferError)):
        dialler.open_stream(b"", [gaps])
    with pytest.raises((TypeError, BufferError)):
        dialler.send(stream, b"", [gaps], end=True)
    assert dialler.open_streams == 1
    assert not dialler.has_output
    dialler.send(stream, b"", end=True)


def test_who_goes_away_is_asked_nothing_new_and_running_streams_finish(pump: Pump) -> None:
    dialler, acceptor = pair()
    running = dialler.open_stream(b"request")
    pump(dialler, acceptor)
    acceptor.go_away()
    acceptor.go_away()
    underway = dialler.open_stream(b"opened before it was heard")
    told_dialler, told_acceptor = pump(dialler, acceptor)
    assert told_dialler == [GoingAway()]
    assert told_acceptor == [StreamOpened(underway, b"opened before it was heard", EMPTY, True)]
    assert dialler.going_away
    assert acceptor.going_away
    assert dialler.spent
    with pytest.raises(LinkLost, match="going away"):
        dialler.open_stream(b"new")
    for stream in (running, underway):
        acceptor.send(stream, b"answer", end=True)
    told_dialler, _ = pump(dialler, acceptor)
    assert len(told_dialler) == 2
    assert dialler.idle
    assert acceptor.idle
    assert "dialler going away streams=0 (0 ours)" in repr(dialler)


def test_who_goes_away_may_still_ask_until_the_peer_goes_away_too(pump: Pump) -> None:
    dialler, acceptor = pair()
    acceptor.go_away()
    pump(dialler, acceptor)
    assert not acceptor.spent
    last = acceptor.open_stream(b"for a last client")
    told_dialler, _ = pump(dialler, acceptor)
    assert told_dialler == [StreamOpened(last, b"for a last client", EMPTY, True)]
    dialler.send(last, b"answer", end=True)
    dialler.go_away()
    _, told_acceptor = pump(dialler, acceptor)
    assert told_acceptor == [PartReceived(last, b"answer", EMPTY, True), GoingAway()]
    with pytest.raises(LinkLost, match="going away"):
        acceptor.open_stream(b"new")


def test_both_sides_may_go_away(pump: Pump) -> None:
    dialler, acceptor = pair()
    acceptor.go_away()
    pump(dialler, acceptor)
    dialler.go_away()
    assert dialler.take_output() == [GOAWAY_FRAME]
    assert acceptor.receive(GOAWAY_FRAME * 2, 0.0) == [GoingAway()]


def test_when_ids_run_out_the_link_goes_away(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler._next_id = 2**32 - 1
    assert dialler.open_stream(b"last") == 2**32 - 1
    _, told_acceptor = pump(dialler, acceptor)
    assert told_acceptor == [StreamOpened(2**32 - 1, b"last", EMPTY, True), GoingAway()]
    with pytest.raises(LinkLost):
        dialler.open_stream(b"one more")


def test_our_own_streams_are_limited(pump: Pump) -> None:
    dialler, acceptor = pair(LinkConfig(max_streams=2))
    first = dialler.open_stream(b"1")
    dialler.open_stream(b"2")
    with pytest.raises(Saturated, match="2 streams are open"):
        dialler.open_stream(b"3")
    pump(dialler, acceptor)
    acceptor.send(first, b"answer", end=True)
    pump(dialler, acceptor)
    dialler.open_stream(b"3")
    assert acceptor.open_stream(b"the other side has its own count") == 2
    pump(dialler, acceptor)
    assert dialler.open_streams == 3


def test_the_repr_tells_the_state(pump: Pump) -> None:
    dialler, acceptor = pair()
    dialler.open_stream(b"request", [b"12345"])
    assert repr(dialler) == (
        "<Link dialler streams=1 (1 ours) buffered=0 "
        "<Outbox ready=24 bytes, 0 streams in turn> <Liveness quiet rtt=unknown>>"
    )
    pump(dialler, acceptor)
    assert repr(acceptor) == (
        "<Link acceptor streams=1 (0 ours) buffered=5 "
        "<Outbox ready=0 bytes, 0 streams in turn> <Liveness quiet rtt=unknown>>"
    )
    assert repr(dialler._streams[1]) == (
        "<Stream 1 receiving credit=1048571 granted=1048576 held=0 >"
    )


def test_an_empty_note_is_a_bare_header() -> None:
    dialler, _ = pair()
    dialler.send_note(b"")
    assert dialler.take_output() == [HEADER.pack(0, 0, NOTE, 0, 0)]
