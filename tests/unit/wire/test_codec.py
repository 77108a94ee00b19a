from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ProtocolError
from meshnode.wire.codec import Codec, Message, message_type


class Point(Message, frozen=True, tag=1):
    x: int
    y: int = 7
    label: str = ""


class Far(Message, frozen=True, tag=200):
    name: str


class Nested(Message, frozen=True, tag=3):
    tree: object = None


CODEC = Codec(Point, Far, Nested)


@pytest.mark.parametrize(
    "message", [Point(1), Point(-5, 2**40, "é"), Far("moon"), Nested([1, [2]])]
)
def test_a_message_survives_the_round_trip_whatever_buffer_it_comes_in(message: Message) -> None:
    data = CODEC.encode(message)
    for buffer in (data, bytearray(data), memoryview(data)):
        assert CODEC.decode(buffer) == message


def test_the_type_number_is_the_first_element() -> None:
    assert msgspec.msgpack.decode(CODEC.encode(Point(4, 5, "a"))) == [1, 4, 5, "a"]


def test_fields_that_a_newer_version_appended_are_ignored() -> None:
    assert CODEC.decode(msgspec.msgpack.encode([1, 4, 5, "a", {"new": 1}, 9])) == Point(4, 5, "a")


def test_missing_trailing_fields_take_their_defaults() -> None:
    assert CODEC.decode(msgspec.msgpack.encode([1, 4])) == Point(4, 7, "")


def test_a_message_of_an_unknown_type_is_none() -> None:
    assert CODEC.decode(msgspec.msgpack.encode([99, "whatever"])) is None


@pytest.mark.parametrize(
    "value", [[1], [1, "four"], [1, 4.5], [1, None], [200, 5], [200, b"bytes"], [1, 4, 5, 6]]
)
def test_missing_required_or_wrong_fields_are_the_peers_fault(value: list[object]) -> None:
    with pytest.raises(ProtocolError, match="shape of its type"):
        CODEC.decode(msgspec.msgpack.encode(value))


def test_trailing_bytes_are_the_peers_fault() -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(CODEC.encode(Point(1)) + b"\x00")


def test_every_truncation_is_the_peers_fault() -> None:
    data = CODEC.encode(Far("somewhere"))
    for end in range(len(data)):
        with pytest.raises(ProtocolError):
            CODEC.decode(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x90",  # an empty array
        b"\x91",  # an array whose element is missing
        b"\x91\xcc",  # a number whose byte is missing
        b"\x91\xa1a",  # an array that begins with text
        b"\x91\xff",  # an array that begins with -1
        b"\x91\xcd\x01\x00",  # a number above 255
        b"\x81\x01\x02",  # a map
        b"\xdc\x00",  # a count that ends early
        b"plain text",
    ],
)
def test_bytes_that_are_no_message_are_the_peers_fault(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="type number"):
        message_type(data)
    with pytest.raises(ProtocolError):
        CODEC.decode(data)


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"\x91\x05", 5),
        (b"\x91\x7f", 127),
        (b"\x91\xcc\xc8", 200),
        (b"\xdc\x00\x01\x05", 5),
        (b"\xdd\x00\x00\x00\x01\x05", 5),
    ],
)
def test_the_type_is_read_from_every_form_of_array(data: bytes, number: int) -> None:
    assert message_type(data) == number


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff\x01",  # four billion elements
        b"\x92\xcc\xc8\xdb\xff\xff\xff\xff",  # a text of four billion bytes
        b"\x92\x03\xdd\xff\xff\xff\xff",  # a nested array of four billion elements
        b"\x92\x03\xdf\xff\xff\xff\xff",  # a map of four billion pairs
    ],
)
def test_a_huge_claimed_length_is_refused_without_believing_it(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(data)


def test_deep_nesting_is_refused_and_does_not_exhaust_the_stack() -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(b"\x92\x03" + b"\x91" * 100_000 + b"\x01")


def test_invalid_utf8_is_the_peers_fault() -> None:
    with pytest.raises(ProtocolError):
        CODEC.decode(b"\x92\xcc\xc8\xa2\xff\xfe")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x92\x01", b"\x92\xcc\xc8", b"\x92\x03"]))
def test_garbage_raises_nothing_but_a_protocol_error(garbage: bytes, start: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        CODEC.decode(start + garbage)


def test_two_messages_of_one_codec_cannot_share_a_number() -> None:
    with pytest.raises(ValueError, match="Point needs a tag of its own"):
        Codec(Point, Far, Point)


def test_a_message_needs_a_number() -> None:
    class Named(Message, frozen=True, tag="name"):
        pass

    with pytest.raises(ValueError, match="Named needs a tag"):
        Codec(Named)


def test_the_repr_counts_the_messages() -> None:
    assert repr(CODEC) == "<Codec of 3 messages>"
