"""From what people have at hand to an inference request, and from its answer to rows of text.

Pure functions over the JSON of the Open Inference Protocol: `metadata` is what
`GET /v2/models/NAME` answers, a `request` what `POST .../infer` takes, a `response` what it gives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from meshnode.client.results import ModelMetadata, read_as
from meshnode.client.shapes import describe_specs, flatten
from meshnode.client.tensors import encode_inputs
from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

Document = dict[str, Any]
"""A JSON object."""

_MAX_ROWS_SHOWN: Final = 10  # a screen; --json has all
_MAX_SMALL: Final = 20  # elements of a row that fit a line
_MAX_CLASSES_SORTED: Final = 10_000  # ImageNet-21k has 21,841, more than a person reads
_TOP: Final = 3
_PROBABILITY_SLACK: Final = 0.02  # rounding of FP16 over a thousand classes
_EXAMPLE_ELEMENTS: Final = 8


def build_request(document: object, metadata: Document) -> Document:
    """Make a request from a JSON document.

    Args:
        document: A whole request (`{"inputs": [...]}`), or a map from input name to data, nested or
            flat; a batch dimension may be left out.
        metadata: The model's metadata.

    Returns:
        The request.

    Raises:
        InvalidRequest: if the document is neither, or names an input the model does not have.
    """
    if not isinstance(document, dict):
        raise InvalidRequest(
            "the file must hold a JSON object: a request with 'inputs', or a map from input name "
            f"to data; this model's inputs are {describe_specs(metadata_of(metadata).inputs)}"
        )
    if _is_request(document):
        return document
    specs = metadata_of(metadata).inputs
    return {"inputs": encode_inputs(document, str(metadata.get("name")), specs).described}


def metadata_of(document: Document) -> ModelMetadata:
    """Return a model's metadata, typed."""
    return read_as(ModelMetadata, document)


def _is_request(document: Document) -> bool:
    inputs = document.get("inputs")
    return isinstance(inputs, list) and all(
        isinstance(item, dict) and "name" in item for item in inputs
    )


def example_body(metadata: Document) -> Document:
    """Return a small document that `build_request` takes; long inputs are cut short by `...`."""
    return {str(spec["name"]): _example(spec) for spec in metadata.get("inputs", ())}


def _example(spec: Document) -> list[Any]:
    sizes = [max(size, 1) for size in spec["shape"]]
    value: Any = {"BYTES": "text", "BOOL": True}.get(spec["datatype"], 0)
    if spec["datatype"].startswith(("FP", "BF")):
        value = 0.5
    elements = math.prod(sizes)
    if elements <= _EXAMPLE_ELEMENTS:
        return [value] * elements
    return [*[value] * _EXAMPLE_ELEMENTS, "..."]


def output_lines(output: Document) -> list[str]:
    """Describe one output of a response for a person.

    Small rows are shown whole, rows that look like probabilities by their three largest, anything
    else by its shape and first values. `--json` shows everything.
    """
    shape, data = list(output.get("shape", ())), list(flatten(output.get("data", [])))
    # A vector is one value per row of the batch; only further dimensions make a row.
    row_size = math.prod(shape[1:]) if len(shape) > 1 else 1
    if not data or row_size < 1 or len(data) != math.prod(shape):
        return [f"shape {shape}"]
    rows = [data[start : start + row_size] for start in range(0, len(data), row_size)]
    if _are_probabilities(output, rows):
        lines = [_top(row) for row in rows[:_MAX_ROWS_SHOWN]]
    elif row_size <= _MAX_SMALL:
        lines = [_values(row) for row in rows[:_MAX_ROWS_SHOWN]]
    else:
        return [f"shape {shape}: {_values(data[:_EXAMPLE_ELEMENTS])} …"]
    if len(rows) > _MAX_ROWS_SHOWN:
        lines.append(f"… and {len(rows) - _MAX_ROWS_SHOWN} more rows")
    return lines


def _are_probabilities(output: Document, rows: list[list[Any]]) -> bool:
    if not str(output.get("datatype", "")).startswith(("FP", "BF")):
        return False
    return all(
        1 < len(row) <= _MAX_CLASSES_SORTED
        and all(isinstance(value, int | float) and 0 <= value <= 1 for value in row)
        and abs(math.fsum(row) - 1) <= _PROBABILITY_SLACK
        for row in rows
    )


def _top(row: list[float]) -> str:
    ranked = sorted(range(len(row)), key=lambda index: -row[index])[:_TOP]
    return ", ".join(f"{index}: {row[index]:.1%}" for index in ranked)


def _values(values: Sequence[Any]) -> str:
    return ", ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in values)
