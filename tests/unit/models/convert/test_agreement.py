from __future__ import annotations

import math

import numpy as np
import pytest

from meshnode.models.convert.agreement import compare


def test_errors_and_the_place_of_the_largest_element_are_compared() -> None:
    original = {"y": np.array([[0.1, 0.9], [0.6, 0.4]])}
    found = compare(original, {"y": np.array([[0.1, 0.9], [0.4, 0.6]])}, "s.npz")
    (output,) = found.outputs
    assert output.max_error == pytest.approx(0.2)
    assert output.mean_error == pytest.approx(0.1)
    assert output.relative_error == pytest.approx(0.2)
    assert (output.top1, found.score, found.rows) == (0.5, 0.5, 2)


def test_a_regression_is_scored_by_its_relative_error() -> None:
    found = compare({"y": np.array([1.0, 3.0])}, {"y": np.array([[1.1], [2.9]])}, "random")
    assert found.outputs[0].top1 is None
    assert found.score == pytest.approx(0.95)


def test_labels_are_equal_or_not() -> None:
    words = compare({"y": np.array(["a", "b"])}, {"y": np.array(["a", "c"], object)}, "random")
    numbers = compare({"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 5])}, "random")
    assert (words.score, numbers.score) == (0.5, 0.75)


def test_a_number_that_became_none_is_an_error_without_bound() -> None:
    original = {"y": np.array([[1.0, 2.0], [1.0, 2.0]])}
    found = compare(original, {"y": np.array([[1.0, 2.0], [np.nan, 2.0]])}, "random")
    assert found.outputs[0].max_error == math.inf
    assert found.score == 0.5


def test_what_both_have_not_agrees() -> None:
    both = np.array([[np.nan, 1.0], [np.inf, 1.0]])
    assert compare({"y": both}, {"y": both.copy()}, "random").outputs[0].max_error == 0


def test_the_lowest_of_several_outputs_counts() -> None:
    original = {"a": np.array([1, 2]), "b": np.array([1, 2])}
    assert compare(original, {"a": np.array([1, 2]), "b": np.array([0, 0])}, "random").score == 0


def test_a_missing_output_and_another_shape_are_told() -> None:
    with pytest.raises(ValueError, match="no output 'y'"):
        compare({"y": np.zeros(2)}, {"z": np.zeros(2)}, "random")
    with pytest.raises(ValueError, match=r"shape \[3\], the original's \[2\]"):
        compare({"y": np.zeros(2)}, {"y": np.zeros(3)}, "random")


def test_no_rows_agree() -> None:
    assert compare({"y": np.zeros((0, 3))}, {"y": np.zeros((0, 3))}, "random").score == 1
