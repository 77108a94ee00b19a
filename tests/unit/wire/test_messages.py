from __future__ import annotations

import msgspec
import pytest

from meshnode.errors import ProtocolError
from meshnode.wire.messages import (
    STREAMS,
    BlobChunk,
    Failure,
    FetchBlob,
    Infer,
    LoadReport,
    Result,
    TensorHeader,
)

IMAGE = TensorHeader("image", "FP32", (1, 64), 256)
LOAD = LoadReport(3, 2, 0.5)

MESSAGES = [
    Infer(
        "digits",
        1,
        (IMAGE,),
        1500.0,
        "id-1",
        ("label",),
        {"top_k": 3, "raw": True, "t": 0.5},
        "00-x",
    ),
    Result((IMAGE,), LOAD, {"note": "x"}),
    Failure("saturated", "try later", LOAD),
    FetchBlob(b"\x01" * 32, 4096),
    BlobChunk(4096, 2**40),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_stream_message_survives_the_round_trip(message: msgspec.Struct) -> None:
    decoded = STREAMS.decode(STREAMS.encode(message))  # type: ignore[arg-type]  # all are Messages
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_newer_peer_may_append_fields_to_every_message(message: msgspec.Struct) -> None:
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert STREAMS.decode(msgspec.msgpack.encode([*fields, "from the future"])) == message


def test_the_short_forms_take_defaults() -> None:
    infer = STREAMS.decode(msgspec.msgpack.encode([3, "digits", 1, [], 10.0]))
    assert infer == Infer("digits", 1, (), 10.0)
    assert infer.parameters == {}
    assert infer.trace == ""
    assert STREAMS.decode(msgspec.msgpack.encode([5, "internal", "oops"])).load is None


def test_parts_of_messages_are_no_messages_of_a_stream() -> None:
    assert STREAMS.decode(STREAMS.encode(LOAD)) is None
    assert STREAMS.decode(STREAMS.encode(IMAGE)) is None


@pytest.mark.parametrize(
    "fields",
    [
        [3, "digits", "1", [], 10.0],
        [3, "digits", 1, [[2, 3, 2, 0.5]], 10.0],  # a LoadReport where a TensorHeader belongs
        [3, "digits", 1, [[1, "image", "FP32", [1, None], 4]], 10.0],
        [3, "digits", 1, [], 10.0, "", [], {"list": [1]}],
        [6, "text instead of bytes"],
    ],
)
def test_wrong_types_inside_a_message_are_the_peers_fault(fields: list[object]) -> None:
    with pytest.raises(ProtocolError):
        STREAMS.decode(msgspec.msgpack.encode(fields))
