"""From a JSON document to a request."""

from __future__ import annotations

from typing import Any

import pytest

from meshnode.cli.requests import build_request, example_body, metadata_of
from meshnode.client.shapes import describe_specs
from meshnode.errors import InvalidRequest


def metadata(*inputs: tuple[str, str, list[int]]) -> dict[str, Any]:
    specs = [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in inputs]
    return {"name": "m", "versions": ["1"], "inputs": specs, "outputs": []}


MATRIX = metadata(("x", "FP32", [-1, 4]))


def shape_of(data: object, spec: list[int]) -> list[int]:
    request = build_request({"x": data}, metadata(("x", "FP32", spec)))
    return list(request["inputs"][0]["shape"])


def test_a_whole_request_passes_as_it_is() -> None:
    request = {"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    assert build_request(request, MATRIX) == request


def test_a_map_of_data_becomes_a_request_with_the_models_types() -> None:
    two = metadata(("x", "FP32", [-1, 2]), ("y", "INT64", [-1]))
    assert build_request({"x": [[1, 2], [3, 4]], "y": [5, 6]}, two) == {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]},
            {"name": "y", "datatype": "INT64", "shape": [2], "data": [5, 6]},
        ]
    }


def test_an_input_that_is_called_inputs_can_be_given_by_name() -> None:
    spec = metadata(("inputs", "FP32", [-1, 2]))
    assert build_request({"inputs": [[1, 2]]}, spec)["inputs"][0]["name"] == "inputs"


@pytest.mark.parametrize(
    ("data", "spec", "shape"),
    [
        ([[1, 2, 3, 4]], [-1, 4], [1, 4]),
        ([1, 2, 3, 4], [-1, 4], [1, 4]),  # one row without its batch dimension
        ([1] * 8, [-1, 4], [2, 4]),  # flat: the batch takes what is left
        ([1] * 64, [-1, 1, 8, 8], [1, 1, 8, 8]),
        ([[1, 2], [3, 4]], [-1, 2, 2], [1, 2, 2]),
        (5, [1], [1]),
        (5, [], []),
        ([1, 2, 3], [-1, 4], [3]),  # does not fit: the gateway says so
        ([[1, 2], [3, 4]], [-1, 3, 2], [2, 2]),
        ([[1, 2]], [3, 1, 2], [1, 2]),
        ([], [-1, 4], [0]),
        ([1, 2], [], [2]),
    ],
)
def test_the_shape_is_what_the_data_most_likely_means(
    data: object, spec: list[int], shape: list[int]
) -> None:
    assert shape_of(data, spec) == shape


@pytest.mark.parametrize(
    "data", [[[1, 2], [3]], [[1], 2], [1, [2]], [[1, 2], [[3], [4]]], [[], [1]]]
)
def test_rows_of_different_lengths_are_refused(data: object) -> None:
    with pytest.raises(InvalidRequest, match="different lengths"):
        shape_of(data, [-1, 2])


def test_data_that_is_nested_too_deeply_is_refused() -> None:
    data: Any = 1
    for _ in range(100):
        data = [data]
    with pytest.raises(InvalidRequest, match="nested more than 32 deep"):
        shape_of(data, [-1])


@pytest.mark.parametrize("document", [3, None, "text"])
def test_a_document_that_is_no_data_is_refused_with_the_inputs(document: object) -> None:
    with pytest.raises(InvalidRequest, match=r"'x' \(FP32 \[-1, 4\]\)"):
        build_request(document, MATRIX)


def test_a_list_alone_is_for_a_model_with_one_input() -> None:
    assert build_request([1, 2, 3, 4], MATRIX) == build_request({"x": [1, 2, 3, 4]}, MATRIX)
    two = metadata(("x", "FP32", [-1]), ("y", "FP32", [-1]))
    with pytest.raises(InvalidRequest, match="for a model with one input, a list"):
        build_request([1, 2], two)


def test_an_unknown_input_is_refused_with_the_inputs() -> None:
    with pytest.raises(InvalidRequest, match=r"no input 'y'; its inputs are 'x' \(FP32"):
        build_request({"y": [1]}, MATRIX)


def test_specs_are_described_in_one_line() -> None:
    two = metadata_of(metadata(("a", "BOOL", [2]), ("b", "BYTES", [])))
    assert describe_specs(two.inputs) == "'a' (BOOL [2]), 'b' (BYTES [])"
    assert describe_specs(()) == ""


def test_the_example_is_a_body_that_build_request_takes() -> None:
    small = metadata(
        ("f", "FP16", [-1, 2]), ("i", "INT8", [3]), ("b", "BOOL", [1]), ("t", "BYTES", [-1])
    )
    example = example_body(small)
    assert example == {"f": [0.5, 0.5], "i": [0, 0, 0], "b": [True], "t": ["text"]}
    shapes = [item["shape"] for item in build_request(example, small)["inputs"]]
    assert shapes == [[1, 2], [3], [1], [1]]


def test_the_example_of_a_long_input_is_cut_short() -> None:
    assert example_body(metadata(("x", "FP32", [-1, 64]))) == {"x": [0.5] * 8 + ["..."]}
