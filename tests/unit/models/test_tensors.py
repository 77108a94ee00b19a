from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InvalidRequest
from meshnode.models.tensors import DTYPES, from_numpy, pack_strings, to_numpy
from meshnode.types import DataType, Tensor


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name is not DataType.BYTES])
def test_numbers_share_memory_both_ways(datatype: DataType) -> None:
    data = bytearray(np.arange(512).astype(DTYPES[datatype]).tobytes() * 4)
    tensor = Tensor("x", datatype, (4, 512), data)
    array = to_numpy(tensor)
    assert array.shape == (4, 512)
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    back = from_numpy("x", array)
    assert (back.datatype, back.shape, bytes(back.data)) == (datatype, (4, 512), bytes(data))
    if array.nbytes > 1024:
        assert np.shares_memory(np.frombuffer(back.data, np.uint8), array)


def test_a_view_that_begins_at_an_odd_address_is_aligned() -> None:
    """A tensor inside a received frame begins wherever its header ended."""
    data = memoryview(bytes(9))[1:]
    array = to_numpy(Tensor("x", DataType.FP64, (1,), data))
    assert array.flags.aligned


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("x", DataType.FP32, (2,), bytes(7)),
        Tensor("x", DataType.FP32, (2,), bytes(12)),
        Tensor("x", DataType.BF16, (1,), bytes(2)),
    ],
)
def test_bytes_that_do_not_fill_the_shape_are_refused(tensor: Tensor) -> None:
    with pytest.raises(InvalidRequest, match="which is no"):
        to_numpy(tensor)


def test_empty_and_scalar_arrays_have_tensors() -> None:
    assert to_numpy(Tensor("x", DataType.FP32, (0, 3), b"")).shape == (0, 3)
    assert from_numpy("x", np.zeros((0, 3), np.float32)).data == b""
    scalar = from_numpy("x", np.array(1.0))
    assert (scalar.shape, scalar.size_bytes) == ((), 8)


def test_an_array_with_strides_is_copied_into_order() -> None:
    array = np.arange(1024, dtype=np.int32).reshape(32, 32).T
    assert bytes(from_numpy("x", array).data) == array.tobytes()


def test_strings_of_every_numpy_kind_become_bytes_elements() -> None:
    expected = struct.pack("<I", 1) + b"a" + struct.pack("<I", 2) + "é".encode()
    for array in (np.array(["a", "é"], dtype=object), np.array(["a", "é"])):
        tensor = from_numpy("s", array)
        assert (tensor.datatype, tensor.data) == (DataType.BYTES, expected)
    assert pack_strings([b"\xff"]) == b"\x01\x00\x00\x00\xff"


def test_a_type_without_a_name_in_the_protocol_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="complex128"):
        from_numpy("x", np.zeros(1, np.complex128))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=20), max_size=8))
def test_strings_come_back_as_they_went(values: list[str]) -> None:
    packed = pack_strings(list(values))
    assert to_numpy(Tensor("s", DataType.BYTES, (len(values),), packed)).tolist() == values


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"\x01\x00\x00\x00", 1),  # content missing
        (b"\x01\x00\x00", 1),  # half a length
        (b"\xff\xff\xff\xffa", 1),  # a length far beyond the end
        (b"\x00\x00\x00\x00" * 2, 1),  # one too many
        (b"\x00\x00\x00\x00", 2),  # one too few
    ],
)
def test_damaged_strings_are_refused(data: bytes, count: int) -> None:
    with pytest.raises(InvalidRequest, match=f"does not hold {count} BYTES elements"):
        to_numpy(Tensor("s", DataType.BYTES, (count,), data))


def test_strings_must_be_utf_8() -> None:
    with pytest.raises(InvalidRequest, match="element 1 of tensor 's' is not UTF-8"):
        to_numpy(Tensor("s", DataType.BYTES, (2,), pack_strings([b"ok", b"\xff"])))
