"""Joining requests to a batch and cutting its outputs: bytes, rows and shapes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.models.execution import Execution
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.serving.joining import Reshaping, has_rows, join, row_key, rows_of, split
from meshnode.models.tensors import from_numpy, pack_strings, to_numpy
from meshnode.types import DataType, Tensor

TEXTS = st.lists(st.text(max_size=5), min_size=1, max_size=4)


def column(name: str, *values: float) -> Tensor:
    return from_numpy(name, np.array(values, np.float32)[:, None])


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.lists(st.tuples(st.lists(st.integers(-9, 9), min_size=1, max_size=4), TEXTS), min_size=1))
def test_splitting_undoes_joining(requests: list[tuple[list[int], list[str]]]) -> None:
    """Numbers and strings, whatever the rows: each request's come back to it."""
    inputs = []
    for numbers, texts in requests:
        rows = len(numbers)
        words = np.array((texts * rows)[:rows], object)[:, None]
        inputs.append((from_numpy("n", np.array(numbers, np.int64)[:, None]), text_tensor(words)))
    joined = join(inputs)
    assert joined[0].shape == (sum(len(numbers) for numbers, _ in requests), 1)
    for given_back, sent in zip(
        split(joined, [rows_of(each) for each in inputs]), inputs, strict=True
    ):
        for ours, theirs in zip(given_back, sent, strict=True):
            assert ours.shape == theirs.shape
            assert bytes(ours.data) == bytes(theirs.data)


def text_tensor(words: np.ndarray) -> Tensor:
    return Tensor("t", DataType.BYTES, words.shape, pack_strings(words.ravel().tolist()))


def test_inputs_are_joined_by_name_whatever_their_order() -> None:
    first = (column("a", 1), column("b", 2))
    second = (column("b", 4), column("a", 3))
    assert row_key(first, ()) == row_key(second, ())
    joined = join([first, second])
    assert [tensor.name for tensor in joined] == ["a", "b"]
    assert [to_numpy(tensor).ravel().tolist() for tensor in joined] == [[1, 3], [2, 4]]


def test_the_key_is_the_form_of_a_row_and_the_outputs_wanted() -> None:
    one = (column("a", 1),)
    assert row_key(one, ("y",)) == row_key((column("a", 1, 2),), ("y",))
    assert row_key(one, ("y",)) != row_key(one, ("z",))
    assert row_key(one, ()) != row_key(
        (column("b", 1),), ()
    )  # each leaves out another optional input
    wide = from_numpy("a", np.zeros((1, 2), np.float32))
    assert row_key(one, ()) != row_key((wide,), ())
    assert rows_of(()) == 0
    assert rows_of((column("a", 1), column("b", 1, 2))) == 0


def test_large_answers_are_views_and_small_ones_copies() -> None:
    [(first,), (second,)] = split((from_numpy("y", np.zeros((3, 300), np.float32)),), [2, 1])
    assert isinstance(first.data, memoryview)
    assert first.size_bytes == 2400
    assert isinstance(second.data, memoryview)
    [(small,), _] = split((column("y", 1, 2),), [1, 1])
    assert isinstance(small.data, bytes)


@pytest.mark.parametrize(
    "output",
    [
        column("y", 1, 2),
        Tensor("y", DataType.FP32, (), bytes(4)),
        Tensor("y", DataType.BYTES, (3, 1), pack_strings(["a", "b"])),
        Tensor("y", DataType.BYTES, (3, 1), pack_strings(["a", "b", "c", "d"])),
    ],
)
def test_an_output_that_is_not_rows_is_refused(output: Tensor) -> None:
    with pytest.raises(InferenceFailed, match="output 'y'"):
        split((output,), [1, 2])


def test_a_batch_without_outputs_has_none_for_anybody() -> None:
    assert split((), [1, 2]) == [(), ()]


def manifest(execution: Execution, shape: tuple[int, ...], max_batch_size: int) -> Manifest:
    specs = (TensorSpec("x", DataType.FP32, shape),)
    outputs = (TensorSpec("y", DataType.FP32, shape),)
    return Manifest("m", 1, "r", "p", specs, outputs, max_batch_size, (), "e", execution)


def test_rows_are_there_where_every_first_dimension_is_free() -> None:
    assert has_rows(manifest(Execution(), (-1, 2), 0))
    assert not has_rows(manifest(Execution(), (1, 2), 0))
    assert not has_rows(manifest(Execution(), (), 0))


@pytest.mark.parametrize(
    ("shape", "wanted", "batch", "given_shape", "model_shape"),
    [
        ((-1, 6), (2, 3), 8, (4, 6), (4, 2, 3)),
        ((6,), (2, 3), 0, (6,), (2, 3)),
        ((-1, 1), (), 8, (4, 1), (4,)),
        ((-1, -1, 4), (2, 2, -1), 8, (3, 5, 4), (3, 2, 2, 5)),
    ],
)
def test_reshaping_goes_both_ways(
    shape: tuple[int, ...],
    wanted: tuple[int, ...],
    batch: int,
    given_shape: tuple[int, ...],
    model_shape: tuple[int, ...],
) -> None:
    execution = Execution(reshape=(("x", wanted), ("y", wanted)))
    reshaping = Reshaping(manifest(execution, shape, batch))
    assert reshaping
    data = bytes(4 * int(np.prod(given_shape)))
    [to_model] = reshaping.to_model((Tensor("x", DataType.FP32, given_shape, data),))
    assert to_model.shape == model_shape
    [back] = reshaping.to_client((Tensor("y", DataType.FP32, model_shape, data),))
    assert back.shape == given_shape
    other = Tensor("z", DataType.FP32, (1,), bytes(4))
    assert reshaping.to_model((other,)) == (other,)


def test_a_shape_that_cannot_be_filled_is_refused() -> None:
    reshaping = Reshaping(manifest(Execution(reshape=(("x", (4, 4)),)), (-1, -1), 8))
    assert repr(reshaping) == "<Reshaping of ['x']>"
    with pytest.raises(InvalidRequest, match="cannot take the shape"):
        reshaping.to_model((Tensor("x", DataType.FP32, (1, 3), bytes(12)),))
    assert not Reshaping(manifest(Execution(), (-1,), 0))
