"""Messages and tensors on their way between a node and a process that may say anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, ProtocolError
from meshnode.limits import MAX_WORKER_MESSAGE_BYTES
from meshnode.models.tensors import from_numpy
from meshnode.models.workers import protocol as say
from meshnode.models.workers.placing import array_of, find, inline, needed_bytes, place, tensors_of
from meshnode.types import DataType, Tensor


def test_tensors_that_were_placed_are_found_again() -> None:
    tensors = [
        from_numpy("a", np.arange(7, dtype=np.int16)),
        from_numpy("b", np.zeros((0, 3), np.float64)),
        from_numpy("c", np.array([[1.5, np.nan]], np.float32)),
    ]
    memory = memoryview(bytearray(4096))
    placed, end = place(tensors, memory, 1024)
    assert end == 1024 + needed_bytes(tensors)
    assert all(each.offset % 64 == 0 for each in placed)
    found = list(find(placed, memory[1024:], 1024))
    assert [bytes(data) for _, data in found] == [bytes(each.data) for each in tensors]
    assert [bytes(data) for _, data in find(inline(tensors), None, 0)] == [
        bytes(each.data) for each in tensors
    ]


@pytest.mark.parametrize(
    "tensor",
    [
        say.WireTensor("a", DataType.FP32, (2,), 0, 8),  # before the region
        say.WireTensor("a", DataType.FP32, (2,), 4096 + 60, 8),  # beyond its end
        say.WireTensor("a", DataType.FP32, (2,), 4096, -8),
        say.WireTensor("a", DataType.FP32, (3,), 4096, 8),
        say.WireTensor("a", DataType.FP32, (-1, -2), 4096, 8),
        say.WireTensor("a", DataType.FP32, (2,), -1, 8, b"1234"),
    ],
)
def test_a_tensor_that_lies_elsewhere_or_has_other_bytes_is_refused(
    tensor: say.WireTensor,
) -> None:
    with pytest.raises(InferenceFailed):
        list(find([tensor], memoryview(bytes(64)), 4096))
    if tensor.offset >= 0:
        with pytest.raises(InferenceFailed):
            list(find([tensor], None, 4096))


def test_strings_bfloats_and_foreign_byte_orders_are_understood() -> None:
    arrays: dict[str, Any] = {
        "text": np.array([["é", b"\xff"]], dtype=object),
        "fixed": np.array(["ab", "c"]),
        "bf": np.array([0x3F80], np.uint16),
        "big": np.array([1, 2], ">i4"),
        "list": [1.0, 2.0],
        "dropped": np.zeros(1),
    }
    made = tensors_of(arrays, {"bf": DataType.BF16}, ("text", "fixed", "bf", "big", "list"))
    found = {wire.name: array_of(wire, bytes(data)) for wire, data in find(inline(made), None, 0)}
    assert found["text"].tolist() == [["é".encode(), b"\xff"]]
    assert found["fixed"].tolist() == [b"ab", b"c"]
    assert (str(found["bf"].dtype), made[2].datatype) == ("uint16", DataType.BF16)
    assert found["big"].tolist() == [1, 2]
    assert found["list"].dtype == np.float64
    assert "dropped" not in found


def test_strings_that_claim_more_than_there_is_are_refused() -> None:
    for data in (b"", b"\x05\0\0\0ab", b"\x05\0\0"):
        wire = say.WireTensor("t", DataType.BYTES, (1,), -1, len(data), data)
        with pytest.raises(InvalidRequest, match="does not hold 1 BYTES elements"):
            array_of(wire, data)


def test_a_view_with_strides_is_sent_as_it_reads() -> None:
    (tensor,) = tensors_of({"t": np.arange(12.0).reshape(3, 4).T}, {})
    assert isinstance(tensor, Tensor)
    assert np.frombuffer(tensor.data)[:3].tolist() == [0.0, 4.0, 8.0]


def test_messages_are_read_whole_and_byte_by_byte() -> None:
    sent = [say.Ping(7), say.Interrupt(3, "cancelled"), say.Room(1, -1, 0)]
    data = b"".join(map(say.encode, sent))
    assert list(say.Reader(from_process=False).feed(data)) == sent
    reader = say.Reader(from_process=False)
    assert [each for byte in data for each in reader.feed(bytes([byte]))] == sent


@pytest.mark.parametrize(
    "data",
    [
        (MAX_WORKER_MESSAGE_BYTES + 1).to_bytes(4, "little"),
        b"\x01\0\0\0\xc1",
        b"\x02\0\0\0\x91\x63",  # an unknown number
        say.encode(say.Ping(1)),  # what only the node says
    ],
)
def test_what_is_no_message_of_a_process_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(say.Reader(from_process=True).feed(data))


def test_a_message_that_is_too_long_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="exceeds"):
        say.encode(say.Refused("model", "x" * (MAX_WORKER_MESSAGE_BYTES + 1)))
