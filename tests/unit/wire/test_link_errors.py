"""What a peer must not send, and what it may although it means nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_FRAME_BYTES, MAX_FRAME_DATA_BYTES, MIB
from meshnode.wire.frames import (
    AMOUNT,
    DATA,
    END,
    GOAWAY,
    HEADER,
    MORE,
    NOTE,
    OPEN,
    PING,
    PONG,
    RESET,
    TOTAL,
    WINDOW,
    announcement_frame,
    part_header,
    reset_frame,
    token_frame,
    window_frame,
)
from meshnode.wire.link import Link, LinkConfig, NoteReceived, PartReceived, StreamOpened


def frame(kind: int, stream: int, meta: bytes = b"", data: bytes = b"", flags: int = 0) -> bytes:
    return part_header(kind, flags, stream, meta, len(data)) + data


def acceptor() -> Link:
    """An acceptor that opened stream 2."""
    link = Link(dialler=False, config=LinkConfig(window_bytes=1000), now=0.0)
    link.open_stream(b"ours", end=False)
    link.take_output()
    return link


OPENED = frame(OPEN, 5, b"meta")
ENDED = frame(OPEN, 5, b"meta", flags=END)
BEGUN = announcement_frame(OPEN, 5, b"", 100)

FORBIDDEN = {
    "a frame that is too long": HEADER.pack(MAX_FRAME_BYTES + 1, 0, DATA, 0, 2),
    "an unknown frame that is too long": HEADER.pack(2**32 - 1, 0, 99, 0, 0),
    "meta longer than its frame": HEADER.pack(5, 6, DATA, 0, 2) + b"12345",
    "an open with stream 0": frame(OPEN, 0),
    "an open with an id of our parity": frame(OPEN, 4),
    "an open with an id used before": OPENED + frame(OPEN, 5),
    "an open with a lower id": OPENED + frame(OPEN, 3),
    "data for stream 0": frame(DATA, 0),
    "data for a stream of the peer's that was never opened": frame(DATA, 1),
    "data for a stream above the highest": OPENED + frame(DATA, 7),
    "data for a stream of ours that was never opened": frame(DATA, 4),
    "credit for a stream that was never opened": window_frame(4, 1),
    "a reset of a stream that was never opened": reset_frame(1, "cancelled", ""),
    "data after the end": ENDED + frame(DATA, 5),
    "data beyond the credit": OPENED + frame(DATA, 5, data=bytes(1001)),
    "data beyond the credit in two frames": OPENED + frame(DATA, 5, data=bytes(501)) * 2,
    "data beyond the credit when opening": frame(OPEN, 5, data=bytes(1001)),
    "an announcement of nothing": announcement_frame(OPEN, 5, b"", 0),
    "an announcement without a total": frame(OPEN, 5, b"meta", b"1234567", flags=MORE),
    "an announcement with an end": frame(OPEN, 5, b"", TOTAL.pack(10), flags=MORE | END),
    "a part within a part": BEGUN + frame(DATA, 5, b"meta", b"x"),
    "an empty piece": BEGUN + frame(DATA, 5),
    "a piece beyond the total": BEGUN + frame(DATA, 5, data=bytes(101)),
    "an end before the total": BEGUN + frame(DATA, 5, data=bytes(99), flags=END),
    "a credit of nothing": window_frame(2, 0),
    "a credit that is cut": frame(WINDOW, 2, data=b"\x01"),
    "a credit above the limit": window_frame(2, 2**31 - 1000),
    "a reset that is no message": frame(RESET, 2, b"no message"),
    "a reset without a message": frame(RESET, 2),
    "a ping that is cut": frame(PING, 0, data=b"\x01"),
    "a pong that is cut": frame(PONG, 0, data=b"\x01"),
}


def feed(link: Link, wire: bytes, step: int) -> None:
    for i in range(0, len(wire), step):
        link.receive(wire[i : i + step], 0.0)


@pytest.mark.parametrize("wire", FORBIDDEN.values(), ids=FORBIDDEN.keys())
@pytest.mark.parametrize("step", [10**6, 1, 13], ids=["whole", "by byte", "by 13"])
def test_a_peer_must_not_send(wire: bytes, step: int) -> None:
    with pytest.raises(ProtocolError):
        feed(acceptor(), wire, step)


def test_a_frame_of_more_data_than_allowed_is_refused_whatever_the_window() -> None:
    link = Link(dialler=False, config=LinkConfig(), now=0.0)
    assert MAX_FRAME_DATA_BYTES < MIB
    with pytest.raises(ProtocolError, match="262145 bytes of data"):
        link.receive(frame(OPEN, 1, data=bytes(MAX_FRAME_DATA_BYTES + 1)), 0.0)


def test_frames_of_unknown_types_and_unknown_flags_are_skipped() -> None:
    link = acceptor()
    wire = (
        frame(99, 0, b"meta", b"data", flags=255)
        + frame(0, 12345)
        + frame(200, 1, bytes(60_000), bytes(MAX_FRAME_DATA_BYTES))
        + frame(NOTE, 7, b"note", b"unknown data", flags=0xF0)
    )
    assert link.receive(wire, 0.0) == [NoteReceived(b"note")]


def test_bytes_behind_the_known_fields_are_ignored() -> None:
    link = acceptor()
    link.receive(frame(WINDOW, 2, b"meta", AMOUNT.pack(500) + b"future"), 0.0)
    link.receive(frame(PING, 0, data=TOTAL.pack(5) + b"future"), 0.0)
    link.receive(frame(GOAWAY, 0, b"future", b"future"), 0.0)
    assert link.take_output() == [token_frame(PONG, 5)]
    assert link.going_away
    assert "credit=1500" in repr(link._streams[2])


def test_late_frames_of_streams_that_are_gone_are_ignored() -> None:
    link = acceptor()
    link.receive(OPENED, 0.0)
    link.reset(5)
    link.reset(2)
    link.take_output()
    late = b"".join(
        frame(DATA, stream, b"late", bytes(900), flags=END)
        + window_frame(stream, 5)
        + reset_frame(stream, "cancelled", "")
        for stream in (2, 5, 3)
    )
    assert link.receive(late, 0.0) == []
    assert link.idle


def test_a_stream_that_is_reset_while_its_frame_arrives_stays_gone() -> None:
    link = acceptor()
    wire = BEGUN + frame(DATA, 5, data=bytes(100))
    assert link.receive(wire[:-50], 0.0) == []
    link.reset(5)
    assert link.receive(wire[-50:], 0.0) == []
    assert "buffered=0 " in repr(link)


def test_pieces_arrive_in_place_wherever_they_are_cut() -> None:
    body = bytes(range(100))
    wire = BEGUN + frame(DATA, 5, data=body[:40]) + frame(DATA, 5, data=body[40:], flags=END)
    for cut in range(len(wire) + 1):
        link = acceptor()
        told = link.receive(wire[:cut], 0.0) + link.receive(wire[cut:], 0.0)
        assert told == [StreamOpened(5, b"", memoryview(body), True)]


def test_a_piece_that_straddles_chunks_is_read_straight_into_its_part() -> None:
    link = acceptor()
    link.receive(BEGUN + frame(DATA, 5, data=b"x" * 60)[:-1], 0.0)
    incoming = link._streams[5].incoming
    assert repr(incoming) == "<Incoming 0 of 100 bytes>"
    assert incoming is not None
    assert incoming.data[:60] == b"x" * 59 + b"\x00"


def test_nothing_received_is_no_sign_of_life() -> None:
    link = acceptor()
    assert link.receive(b"", 14.0) == []
    link.tick(15.0)
    assert link.next_tick(15.0) is None


def test_a_first_answer_is_a_part_of_our_stream() -> None:
    told = acceptor().receive(frame(DATA, 2, b"answer", b"data", flags=END), 0.0)
    assert told == [PartReceived(2, b"answer", memoryview(b"data"), True)]


HEADERS = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 6),
    st.binary(max_size=20),
    st.one_of(st.binary(max_size=40), st.integers(0, 2**40).map(TOTAL.pack)),
    st.integers(0, 3),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.binary(max_size=60), HEADERS), max_size=12), st.integers(1, 80))
def test_garbage_raises_nothing_but_a_protocol_error_and_costs_bounded_memory(
    pieces: list[bytes], step: int
) -> None:
    """Random bytes, and random frames that are nearly right, in chunks of any size."""
    config = LinkConfig(max_part_bytes=4000, max_buffered_bytes=8000, max_streams=3)
    link = Link(dialler=False, config=config, now=0.0)
    link.open_stream(b"", end=False)
    wire = b"".join(pieces)
    try:
        for i in range(0, len(wire), step):
            link.receive(wire[i : i + step], 0.0)
            assert link.open_streams <= 4
            assert sum(s.buffered_bytes for s in link._streams.values()) == link._buffered_bytes
            assert link._buffered_bytes <= 8000
            link.take_output()
    except ProtocolError:
        pass
