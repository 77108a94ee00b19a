from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ProtocolError
from meshnode.limits import MAX_FRAME_BYTES
from meshnode.wire.frames import (
    AMOUNT,
    END,
    GOAWAY_FRAME,
    HEADER,
    HEADER_BYTES,
    MORE,
    NOTE,
    OPEN,
    PING,
    RESET,
    TOTAL,
    WINDOW,
    WIRE_VERSIONS,
    Reset,
    announcement_frame,
    note_frame,
    part_header,
    read_number,
    read_reset,
    reset_frame,
    token_frame,
    window_frame,
)
from meshnode.wire.reader import Frame, FrameReader


def test_the_header_is_twelve_bytes_little_endian() -> None:
    assert HEADER_BYTES == 12
    assert part_header(OPEN, END, 0x01020304, b"ab", 0x500) == (
        b"\x02\x05\x00\x00\x02\x00\x01\x01\x04\x03\x02\x01ab"
    )


def test_each_frame_says_its_own_length() -> None:
    frames = [
        announcement_frame(OPEN, 1, b"meta", 2**33),
        window_frame(1, 2**31 - 1),
        reset_frame(1, "cancelled", "the client hung up"),
        token_frame(PING, 2**63),
        note_frame(b"note"),
        GOAWAY_FRAME,
    ]
    for frame in frames:
        length, meta, *_ = HEADER.unpack_from(frame)
        assert HEADER_BYTES + length == len(frame)
        assert meta <= length
    assert frames[0][-8:] == TOTAL.pack(2**33)
    assert HEADER.unpack_from(frames[0])[3] == MORE
    assert [HEADER.unpack_from(frame)[2] for frame in frames[1:5]] == [WINDOW, RESET, PING, NOTE]


def test_versions_are_lowest_and_highest() -> None:
    assert WIRE_VERSIONS == (1, 1)


def test_a_reset_carries_code_and_sentence_and_cuts_what_is_too_long() -> None:
    meta = memoryview(reset_frame(1, "saturated", "try later"))[HEADER_BYTES:]
    assert read_reset(meta) == Reset("saturated", "try later")
    meta = memoryview(reset_frame(1, "c" * 1000, "m" * 70_000))[HEADER_BYTES:]
    assert read_reset(meta) == Reset("c" * 64, "m" * 1024)


def test_a_peers_overlong_reset_is_cut_too() -> None:
    meta = memoryview(msgspec.msgpack.encode([8, "c" * 1000, "m" * 5000, "future"]))
    assert read_reset(meta) == Reset("c" * 64, "m" * 1024)


def test_a_reset_of_an_unknown_type_still_resets() -> None:
    assert read_reset(memoryview(msgspec.msgpack.encode([120, 1]))) == Reset("cancelled", "")


def test_a_reset_that_is_no_message_is_the_peers_fault() -> None:
    with pytest.raises(ProtocolError):
        read_reset(memoryview(b"no"))


def test_a_number_may_be_followed_by_more_but_not_cut() -> None:
    assert read_number(AMOUNT, memoryview(b"\x05\x00\x00\x00future"), "a WINDOW") == 5
    with pytest.raises(ProtocolError, match="a WINDOW has 3 bytes of data instead of 4"):
        read_number(AMOUNT, memoryview(b"\x05\x00\x00"), "a WINDOW")


class Recorder:
    """Keeps the frames that a reader cuts, with copies of their bodies."""

    def __init__(self) -> None:
        self.frames: list[tuple[Frame, bytes]] = []
        self.reader = FrameReader(self.on_frame, lambda _: None)

    def on_frame(self, frame: Frame, view: memoryview, at: int) -> None:
        self.frames.append((frame, view[at : at + frame[0]].tobytes()))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bodies=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=8),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_frames_are_the_same_wherever_chunks_end(
    bodies: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    wire = b"".join(HEADER.pack(len(b), len(b) // 2, kind, 0, kind) + b for kind, b in bodies)
    expected = [((len(b), len(b) // 2, kind, 0, kind), b) for kind, b in bodies]
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    whole, cut_up, by_byte = Recorder(), Recorder(), Recorder()
    whole.reader.feed(memoryview(wire))
    for start, end in pairwise(edges):
        cut_up.reader.feed(memoryview(wire[start:end]))
    for i in range(len(wire)):
        by_byte.reader.feed(memoryview(wire[i : i + 1]))
    assert whole.frames == cut_up.frames == by_byte.frames == expected
    assert repr(whole.reader) == "<FrameReader 0 bytes of a header>"


def test_a_body_is_read_into_the_place_that_its_owner_names() -> None:
    place = bytearray(4)
    seen: list[object] = []
    reader = FrameReader(
        lambda _, view, at: seen.append((view.obj, at)), lambda _: memoryview(place)
    )
    wire = HEADER.pack(4, 0, 2, 0, 1) + b"data"
    reader.feed(memoryview(wire[:14]))
    assert repr(reader) == "<FrameReader 2 of 4 bytes of a body>"
    reader.feed(memoryview(wire[14:]))
    assert place == b"data"
    assert seen == [(place, 0)]
    assert seen[0][0] is place  # type: ignore[index]  # a tuple, as appended above


@pytest.mark.parametrize("length_and_meta", [(MAX_FRAME_BYTES + 1, 0), (2**32 - 1, 0), (3, 4)])
@pytest.mark.parametrize("step", [1, 12])
def test_a_bad_length_is_refused_when_the_header_is_there(
    length_and_meta: tuple[int, int], step: int
) -> None:
    length, meta = length_and_meta
    header = HEADER.pack(length, meta, 250, 0, 1)
    recorder = Recorder()
    for i in range(0, HEADER_BYTES - step, step):
        recorder.reader.feed(memoryview(header[i : i + step]))
    with pytest.raises(ProtocolError, match=f"a frame of {length} bytes with {meta} of meta"):
        recorder.reader.feed(memoryview(header[-step:]))
    assert recorder.frames == []
