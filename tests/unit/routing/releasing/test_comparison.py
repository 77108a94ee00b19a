"""Whether two answers agree, and how they differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meshnode.models.tensors import from_numpy, pack_strings
from meshnode.routing.releasing.comparison import Disagreement, agree
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from meshnode.state.release import Comparison

NAN, INF = float("nan"), float("inf")


def numbers(*values: Any, name: str = "y", dtype: Any = np.float32) -> Tensor:
    return from_numpy(name, np.array(values, dtype))


def texts(*values: str, name: str = "y") -> Tensor:
    return Tensor(name, DataType.BYTES, (len(values),), pack_strings(list(values)))


def differ(
    answer: Tensor, reference: Tensor, compare: Comparison = "close", tolerance: float = 1e-3
) -> str:
    return str(agree((answer,), (reference,), compare, tolerance) or "")


@pytest.mark.parametrize(
    ("answer", "reference", "compare", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.0], "equal", ""),
        ([1.0, 2.001], [1.0, 2.0], "close", ""),
        ([1.0, 2.01], [1.0, 2.0], "close", "y: 2.01, not 2, at 1 (1 of 2 differ)"),
        ([1.0, 2.001], [1.0, 2.0], "equal", "y: 2.001, not 2, at 1 (1 of 2 differ)"),
        ([0.0009], [0.0], "close", ""),
        ([1000.9], [1000.0], "close", ""),
        ([NAN, INF, -INF], [NAN, INF, -INF], "equal", ""),
        ([NAN], [1.0], "close", "y: nan, not 1, at 0 (1 of 1 differ)"),
        ([1.0], [NAN], "close", "y: 1, not nan, at 0 (1 of 1 differ)"),
        ([INF], [-INF], "close", "y: inf, not -inf, at 0 (1 of 1 differ)"),
        ([1.0], [INF], "close", "y: 1, not inf, at 0 (1 of 1 differ)"),
        ([5.0, 2.0, 9.0], [1.0, 2.0, 3.0], "close", "y: 9, not 3, at 2 (2 of 3 differ)"),
        ([], [], "close", ""),
    ],
)
def test_numbers(
    answer: list[float], reference: list[float], compare: Comparison, difference: str
) -> None:
    assert differ(numbers(*answer), numbers(*reference), compare) == difference


def test_whole_numbers_and_truth_values_are_equal_or_not() -> None:
    assert differ(numbers(7, 8, dtype=np.int64), numbers(7, 8, dtype=np.int64)) == ""
    assert (
        differ(numbers(7, 8, dtype=np.uint8), numbers(7, 9, dtype=np.uint8), tolerance=5.0)
        == "y: 8, not 9, at 1 (1 of 2 differ)"
    )
    assert (
        differ(numbers(True, dtype=np.bool_), numbers(False, dtype=np.bool_))
        == "y: True, not False, at 0 (1 of 1 differ)"
    )


def test_half_precision() -> None:
    assert (
        differ(numbers(1.0, 1.001, dtype=np.float16), numbers(1.0, 1.002, dtype=np.float16)) == ""
    )

    def bf16(*values: float) -> Tensor:
        halves = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return Tensor("y", DataType.BF16, (len(values),), halves.tobytes())

    assert differ(bf16(1.0, NAN), bf16(1.0, NAN), "equal") == ""
    assert differ(bf16(1.0, 2.0), bf16(1.0, 2.0078125), tolerance=0.1) == ""
    assert differ(bf16(1.0, 2.0), bf16(1.0, 3.0)) == "y: 2, not 3, at 1 (1 of 2 differ)"


def test_the_place_of_the_greatest_number_is_what_counts_with_top() -> None:
    reference = numbers([0.1, 0.9], [0.8, 0.2])
    assert differ(numbers([0.4, 0.6], [0.9, 0.1]), reference, "top") == ""
    assert (
        differ(numbers([0.4, 0.6], [0.1, 0.9]), reference, "top")
        == "y: greatest at 1, not at 0, in row 1 (1 of 2 differ)"
    )
    assert differ(numbers([0.5], [1.0]), numbers([0.5], [1.0001]), "top") == ""
    assert differ(numbers([0.5], [1.0]), numbers([0.5], [2.0]), "top") != ""
    assert (
        differ(
            from_numpy("y", np.zeros((0, 3), np.float32)),
            from_numpy("y", np.zeros((0, 3), np.float32)),
            "top",
        )
        == ""
    )


def test_texts() -> None:
    assert differ(texts("cat", "dog"), texts("cat", "dog")) == ""
    assert (
        differ(texts("cat", "dog"), texts("cat", "cow"), "top")
        == "y: 'dog', not 'cow', at 1 (1 of 2 differ)"
    )
    longer = Tensor("y", DataType.BYTES, (1,), bytes(texts("cat").data) + b"\0")
    assert differ(longer, texts("cat")) == ""
    assert len(differ(texts("x" * 1000), texts("y" * 1000))) < 200


def test_outputs_are_compared_by_name() -> None:
    a, b = numbers(1.0, name="a"), numbers(2.0, name="b")
    assert agree((a, b), (b, a), "equal", 0.0) is None
    assert str(agree((a,), (a, b), "close", 0.0)) == "b: is missing"
    assert str(agree((a, b), (a,), "close", 0.0)) == "b: is not an output of the other version"
    assert agree((), (), "close", 0.0) is None


def test_other_kinds_of_answers_do_not_agree() -> None:
    assert differ(numbers(1.0), numbers(1.0, dtype=np.float64)) == "y: is FP32, not FP64"
    assert differ(numbers(1.0, 2.0), numbers([1.0, 2.0])) == "y: has shape [2], not [1, 2]"
    short = Tensor("y", DataType.FP32, (2,), b"\0\0\0\0")
    assert differ(short, numbers(1.0, 2.0)) == "y: has bytes that do not fill shape [2]"
    torn = Tensor("y", DataType.FP32, (2,), b"\0\0\0")
    assert differ(torn, numbers(1.0, 2.0)) == "y: has bytes that do not fill shape [2]"
    two = Tensor("y", DataType.BYTES, (2,), texts("a").data)
    assert differ(two, texts("a", "b")) == "y: has 1 elements, not 2"
    cut = Tensor("y", DataType.BYTES, (1,), b"\xff\xff\xff\xffab")
    assert differ(cut, texts("abc")) == "y: 'ab', not 'abc', at 0 (1 of 1 differ)"


def test_great_answers_are_compared_in_pieces() -> None:
    reference = np.zeros(700_000, np.float32)
    answer = reference.copy()
    answer[[10, 300_000, 699_999]] = [1, 3, 2]
    found = agree((from_numpy("y", answer),), (from_numpy("y", reference),), "close", 0.1)
    assert found == Disagreement("y", 3, 700_000, "3, not 0, at 300000")


def test_views_of_memory_are_compared_like_bytes() -> None:
    tensor = numbers(1.0, 2.0)
    view = Tensor("y", DataType.FP32, (2,), memoryview(bytearray(bytes(tensor.data))))
    assert differ(view, tensor, "equal") == ""
