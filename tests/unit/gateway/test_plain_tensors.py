"""Plain JSON values as tensors, and what Triton's classification makes of outputs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols.classification import classified
from meshnode.gateway.protocols.plain_tensors import nested, plain, scalar_or_list, tensor_of
from meshnode.types import DataType, Tensor
from tests.unit.gateway.conftest import spec

if TYPE_CHECKING:
    from meshnode.models.manifest import Manifest


def floats(*values: float, shape: tuple[int, ...], name: str = "y") -> Tensor:
    return Tensor(name, DataType.FP32, shape, struct.pack(f"<{len(values)}f", *values))


@pytest.mark.parametrize(
    ("value", "shape"),
    [(1.5, (1, 1)), ([1.5], (1, 1)), ([[1.5]], (1, 1)), ([1, 2, 3], (1, 3)), ([[1], [2]], (2, 1))],
)
def test_missing_dimensions_are_put_before_a_value(
    manifest: Manifest, value: Any, shape: tuple[int, ...]
) -> None:
    assert tensor_of(manifest, spec("x", (-1, -1)), value).shape == shape


def test_texts_and_bytes_become_elements(manifest: Manifest) -> None:
    tensor = tensor_of(manifest, spec("x", (-1,), DataType.BYTES), ["ü", {"b64": "AP8="}])
    assert (tensor.shape, plain(tensor)) == ((2,), ["ü", {"b64": "AP8="}])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([[1, 2], [3]], "is not nested as its shape"),
        ([[[1]]], "nested that deep are expected, not 3"),
        ("text", "takes numbers in the range of FP32"),
        ([1, None], "takes numbers"),
        ({"b64": "AA=="}, "takes numbers"),
    ],
)
def test_what_is_no_tensor_is_refused(manifest: Manifest, value: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        tensor_of(manifest, spec("x", (-1, -1)), value)


@pytest.mark.parametrize("value", [["a", ["b"]], [["a"], []], 7, {"b64": "?"}, "\ud800"])
def test_what_is_no_text_is_refused(manifest: Manifest, value: Any) -> None:
    with pytest.raises(InvalidRequest, match="input 'x'"):
        tensor_of(manifest, spec("x", (-1, -1), DataType.BYTES), value)


def test_outputs_come_back_flat_nested_or_alone() -> None:
    square = floats(1, 2, 3, 4, shape=(2, 2))
    assert (plain(square), nested(square)) == ([1, 2, 3, 4], [[1, 2], [3, 4]])
    assert scalar_or_list(floats(7, shape=(1, 1))) == 7
    assert nested(floats(shape=(0, 3))) == []
    assert nested(floats(7, shape=())) == 7
    with pytest.raises(InferenceFailed, match="malformed"):
        plain(Tensor("y", DataType.BYTES, (1,), b"\x09\0\0\0x"))


def test_classes_are_the_highest_values_of_each_row() -> None:
    tensor = floats(0.25, 0.5, 0.125, float("nan"), 3, 1, shape=(2, 3))
    found = classified(tensor, 2, batched=True, labels=("cat", "dog"))
    assert (found.datatype, found.shape) == (DataType.BYTES, (2, 2))
    assert plain(found) == ["0.500000:1:dog", "0.250000:0:cat", "3.000000:1:dog", "1.000000:2"]


def test_more_classes_than_there_are_give_all_and_texts_have_none() -> None:
    whole = Tensor("y", DataType.INT64, (3,), struct.pack("<3q", 5, 9, 9))
    assert plain(classified(whole, 9, batched=False)) == ["9:1", "9:2", "5:0"]
    with pytest.raises(InvalidRequest, match="only numbers"):
        classified(Tensor("y", DataType.BYTES, (0,), b""), 1, batched=False)
