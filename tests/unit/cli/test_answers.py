"""Outputs as rows of text."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.cli.answers import output_lines


def lines(datatype: str, shape: list[int], data: list[Any]) -> list[str]:
    return output_lines({"name": "y", "datatype": datatype, "shape": shape, "data": data})


def test_a_label_is_shown_as_it_is() -> None:
    assert lines("INT64", [1], [7]) == ["7"]
    assert lines("BYTES", [2], ["cat", "dog"]) == ["cat", "dog"]


def test_probabilities_are_shown_by_their_three_largest() -> None:
    assert lines("FP32", [1, 4], [0.1, 0.6, 0.25, 0.05]) == ["1: 60.0%, 2: 25.0%, 0: 10.0%"]


def test_each_row_of_a_batch_has_its_line() -> None:
    assert lines("FP32", [2, 2], [0.25, 0.75, 1.0, 0.0]) == [
        "1: 75.0%, 0: 25.0%",
        "0: 100.0%, 1: 0.0%",
    ]


def test_small_values_that_are_no_probabilities_are_shown_whole() -> None:
    assert lines("FP32", [1, 3], [1.5, -2.0, 0.123456789]) == ["1.5, -2, 0.123457"]
    assert lines("FP32", [2], [0.5, 0.5]) == ["0.5", "0.5"]


def test_large_values_are_shown_by_shape_and_first_values() -> None:
    assert lines("FP32", [1, 100], [float(i) for i in range(100)]) == [
        "shape [1, 100]: 0, 1, 2, 3, 4, 5, 6, 7 …"
    ]


def test_many_rows_are_counted_instead_of_shown() -> None:
    shown = lines("INT64", [25], list(range(25)))
    assert shown[:10] == [str(index) for index in range(10)]
    assert shown[10:] == ["… and 15 more rows"]


@pytest.mark.parametrize(
    ("shape", "data"), [([0, 4], []), ([2, 2], [1]), ([1, 0], []), ([2, 0, 3], [])]
)
def test_an_output_without_its_data_is_shown_by_its_shape(
    shape: list[int], data: list[Any]
) -> None:
    assert lines("FP32", shape, data) == [f"shape {shape}"]
