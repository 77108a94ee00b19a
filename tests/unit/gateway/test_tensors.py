"""Tensor elements between JSON and bytes, compared with numpy."""

from __future__ import annotations

import json
import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols import tensors
from meshnode.gateway.protocols.tensors import check_data, pack_json, pack_values, unpack
from meshnode.types import DataType, Tensor

DTYPES = {
    DataType.BOOL: "?",
    DataType.UINT8: "<u1",
    DataType.UINT16: "<u2",
    DataType.UINT32: "<u4",
    DataType.UINT64: "<u8",
    DataType.INT8: "<i1",
    DataType.INT16: "<i2",
    DataType.INT32: "<i4",
    DataType.INT64: "<i8",
    DataType.FP16: "<f2",
    DataType.FP32: "<f4",
    DataType.FP64: "<f8",
}


def refusal(datatype: DataType, shape: tuple[int, ...], text: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        pack_json("x", datatype, shape, text.encode())
    return str(caught.value)


@pytest.mark.parametrize("datatype", DTYPES)
def test_numbers_of_every_type_pack_and_unpack_as_numpy_does(datatype: DataType) -> None:
    dtype = np.dtype(DTYPES[datatype])
    if dtype.kind == "f":
        array = np.array([0, -1.5, 0.1, 3], dtype)
    elif dtype.kind == "b":
        array = np.array([True, False, True, True])
    else:
        array = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max, 0, 7], dtype)
    for shape in ((4,), (2, 2), (1, 4, 1)):
        nested = json.dumps(array.reshape(shape).tolist()).encode()
        flat = json.dumps(array.tolist()).encode()
        assert pack_json("x", datatype, shape, nested) == array.tobytes()
        assert pack_json("x", datatype, shape, flat) == array.tobytes()
    tensor = Tensor("x", datatype, (4,), memoryview(array.tobytes()))
    assert list(unpack(tensor)) == array.tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127), min_size=1, max_size=20
    )
)
def test_bf16_rounds_to_nearest_ties_to_even(values: list[float]) -> None:
    expected = np.array(values, np.float32).astype(ml_dtypes.bfloat16)
    packed = pack_json("x", DataType.BF16, (len(values),), json.dumps(values).encode())
    assert packed == expected.tobytes()
    back = unpack(Tensor("x", DataType.BF16, (len(values),), packed))
    assert list(back) == expected.astype(np.float32).tolist()


def test_bf16_keeps_nan_and_infinity_but_refuses_what_rounds_to_one() -> None:
    packed = pack_values("x", DataType.BF16, (3,), [math.nan, math.inf, -math.inf])
    assert math.isnan(unpack(Tensor("x", DataType.BF16, (3,), packed))[0])
    assert unpack(Tensor("x", DataType.BF16, (3,), packed))[1:] == (math.inf, -math.inf)
    assert refusal(DataType.BF16, (2,), "[1, 3.4e38]") == (
        "input 'x', element 1: BF16 takes numbers in the range of BF16, not 3.4e+38"
    )


def test_bool_takes_booleans_zero_and_one_and_nothing_else() -> None:
    assert pack_json("x", DataType.BOOL, (4,), b"[true, 0, 1, false]") == b"\1\0\1\0"
    assert refusal(DataType.BOOL, (2,), "[true, 2]") == (
        "input 'x', element 1: BOOL takes true, false, 1 or 0, not 2"
    )
    with pytest.raises(InvalidRequest, match="element 0"):
        pack_values("x", DataType.BOOL, (1,), [2])


def test_strings_become_length_prefixed_utf8_and_come_back() -> None:
    packed = pack_json("x", DataType.BYTES, (2, 1), '[["héllo"], [""]]'.encode())
    assert packed == struct.pack("<I", 6) + "héllo".encode() + struct.pack("<I", 0)
    assert unpack(Tensor("x", DataType.BYTES, (2, 1), packed)) == ["héllo", ""]


@pytest.mark.parametrize(
    ("datatype", "text", "sentence"),
    [
        (DataType.FP32, '[1, "a"]', 'element 1: FP32 takes numbers in the range of FP32, not "a"'),
        (
            DataType.FP32,
            "[1, true]",
            "element 1: FP32 takes numbers in the range of FP32, not true",
        ),
        (
            DataType.FP32,
            "[1e39, 1]",
            "element 0: FP32 takes numbers in the range of FP32, not 1e+39",
        ),
        (
            DataType.FP16,
            "[1, 65520]",
            "element 1: FP16 takes numbers in the range of FP16, not 65520",
        ),
        (DataType.INT8, "[127, 128]", "element 1: INT8 takes integers from -128 to 127, not 128"),
        (DataType.UINT8, "[-1, 0]", "element 0: UINT8 takes integers from 0 to 255, not -1"),
        (DataType.INT32, "[1, 1.0]", "not 1.0"),
        (DataType.INT32, "[null, 1]", "element 0: INT32 takes integers from"),
        (DataType.UINT64, "[1, 18446744073709551616]", "element 1"),
        (DataType.BYTES, "[1, 2]", "element 0: BYTES takes strings, not 1"),
        (DataType.INT64, f"[{'9' * 60}, 1]", "not a very long number"),
        (DataType.FP32, '[1, {"a": 1}]', 'not {"a": 1}'),
        (DataType.BYTES, f'["a", ["{"b" * 100}"]]', '["bbb'),
    ],
)
def test_a_wrong_element_is_named_with_what_was_expected(
    datatype: DataType, text: str, sentence: str
) -> None:
    assert sentence in refusal(datatype, (2,), text)


def test_a_string_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="element 0"):
        pack_values("x", DataType.BYTES, (1,), ["\ud800"])
    with pytest.raises(InvalidRequest, match="data cannot be read"):
        pack_json("x", DataType.BYTES, (1,), b'["\xff"]')


@pytest.mark.parametrize(
    ("shape", "text", "sentence"),
    [
        ((2, 2), "[[1, 2], [3]]", "arrays of 2 elements are expected at depth 2"),
        ((2, 2), "[[1, 2]]", "arrays of 2 elements are expected at depth 1"),
        ((2, 2), "[[1, 2], 3]", "depth 2"),
        ((4,), "[[1, 2, 3, 4]]", "depth 1"),
        ((2, 2), "[1, 2, 3]", "4 elements are expected, not 3"),
        ((1,), "[[1]]", "not [1]"),
        ((2,), "3", "data must be an array, not 3"),
        ((1,), "[" * 5000 + "]" * 5000, "data cannot be read"),
    ],
)
def test_data_must_be_flat_or_nested_as_its_shape(
    shape: tuple[int, ...], text: str, sentence: str
) -> None:
    assert sentence in refusal(DataType.INT32, shape, text)


def test_empty_and_scalar_tensors_are_tensors() -> None:
    assert pack_json("x", DataType.INT32, (0, 3), b"[]") == b""
    assert pack_json("x", DataType.INT32, (2, 0), b"[[], []]") == b""
    assert pack_json("x", DataType.INT32, (), b"[5]") == struct.pack("<i", 5)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((2, -1), "every dimension must be 0 or more"),
        ((-2, -2), "every dimension must be 0 or more"),
        ((2**62, 4), "more than the"),
        ((0, 2**62), "more than the"),
        ((1,) * 33, "33 dimensions"),
        ((0,) * 33, "33 dimensions"),
        ((10**400,), "more than the"),
    ],
)
def test_absurd_shapes_are_refused(shape: tuple[int, ...], sentence: str) -> None:
    assert sentence in refusal(DataType.FP32, shape, "[]")


def test_binary_truth_values_are_0_and_1_alone() -> None:
    check_data("x", DataType.BOOL, (2,), b"\0\1")
    check_data("x", DataType.BOOL, (2,), memoryview(b"\0\1"))
    with pytest.raises(InvalidRequest, match="has the byte 255; elements of BOOL are the bytes 0"):
        check_data("x", DataType.BOOL, (3,), memoryview(b"\1\xff\2"))


def test_binary_data_must_have_the_size_that_the_shape_says() -> None:
    check_data("x", DataType.FP32, (2,), bytes(8))
    with pytest.raises(InvalidRequest, match="8 bytes are expected, not 7"):
        check_data("x", DataType.FP32, (2,), bytes(7))
    check_data("x", DataType.BYTES, (2,), b"\1\0\0\0a\0\0\0\0")
    for data, sentence in (
        (b"\1\0\0\0a", "2 BYTES elements are expected, not 1"),
        (b"\1\0\0", "within an element's length"),
        (b"\xff\0\0\0a", "longer than the data"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            check_data("x", DataType.BYTES, (2,), data)


def test_outputs_that_json_cannot_carry_are_explained() -> None:
    with pytest.raises(InvalidRequest, match='"binary_data": true'):
        unpack(Tensor("y", DataType.BYTES, (1,), b"\1\0\0\0\xff"))
    with pytest.raises(InferenceFailed, match="does not have the size"):
        unpack(Tensor("y", DataType.FP32, (2,), bytes(4)))
    with pytest.raises(InferenceFailed, match="1 elements instead of 2"):
        unpack(Tensor("y", DataType.BYTES, (2,), b"\0\0\0\0"))
    with pytest.raises(InferenceFailed, match="longer than the data"):
        unpack(Tensor("y", DataType.BYTES, (2,), b"\x09\0\0\0"))


def test_every_datatype_has_a_name() -> None:
    assert set(tensors.DATATYPES) == {str(datatype) for datatype in DataType}
