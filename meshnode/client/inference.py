"""From what people have at hand to an inference request, and from its answer to rows of text.

Pure functions over the JSON of the Open Inference Protocol: `metadata` is what
`GET /v2/models/NAME` answers, a `request` what `POST .../infer` takes, a `response` what it gives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from meshnode.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Document = dict[str, Any]
"""A JSON object."""

_MAX_NESTING: Final = 32  # dimensions; NumPy allows 64, no model has ten
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
    specs = {str(spec["name"]): spec for spec in metadata.get("inputs", ())}
    if not isinstance(document, dict):
        raise InvalidRequest(
            "the file must hold a JSON object: a request with 'inputs', or a map from input name "
            f"to data; this model's inputs are {describe_specs(metadata)}"
        )
    if _is_request(document):
        return document
    inputs = []
    for name, data in document.items():
        spec = specs.get(name)
        if spec is None:
            raise InvalidRequest(
                f"model {metadata.get('name')!r} has no input {name!r}; its inputs are "
                f"{describe_specs(metadata)}"
            )
        inputs.append(_input(spec, data))
    return {"inputs": inputs}


def _is_request(document: Document) -> bool:
    inputs = document.get("inputs")
    return isinstance(inputs, list) and all(
        isinstance(item, dict) and "name" in item for item in inputs
    )


def _input(spec: Document, data: object) -> Document:
    shape = _fit(_nested_shape(spec, data), spec["shape"])
    flat = list(_flatten(data))
    return {"name": spec["name"], "datatype": spec["datatype"], "shape": shape, "data": flat}


def _nested_shape(spec: Document, data: object) -> list[int]:
    shape: list[int] = []
    level = data
    while isinstance(level, list):
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    if sum(1 for _ in _flatten(data)) != math.prod(shape) or not _is_even(data, shape):
        raise InvalidRequest(
            f"the data of input {spec['name']!r} has rows of different lengths; "
            f"its shape is {spec['shape']} (-1: any size)"
        )
    return shape


def _is_even(data: object, shape: Sequence[int]) -> bool:
    if not isinstance(data, list):
        return not shape
    return bool(shape) and len(data) == shape[0] and all(_is_even(row, shape[1:]) for row in data)


def _flatten(data: object, depth: int = 0) -> Iterator[Any]:
    if depth > _MAX_NESTING:
        raise InvalidRequest(f"data is nested more than {_MAX_NESTING} deep")
    if isinstance(data, list):
        for item in data:
            yield from _flatten(item, depth + 1)
    else:
        yield data


def _fit(shape: list[int], wanted: Sequence[int]) -> list[int]:
    """Return the shape that the data most likely means; the gateway refuses what does not fit.

    One row of a batched input may come without its batch dimension, and flat data takes the
    model's shape where the number of elements leaves only one way.
    """
    if len(shape) == len(wanted):
        return shape
    if len(shape) == len(wanted) - 1 and wanted[0] == -1:
        row = [1, *shape]
        if all(want in (-1, got) for want, got in zip(wanted, row, strict=True)):
            return row
    if len(shape) <= 1:
        elements = math.prod(shape)
        # Unknown sizes are one, but for the first, which takes what is left.
        rest = [max(size, 1) for size in wanted[1:]]
        if wanted and elements and elements % math.prod(rest) == 0:
            return [elements // math.prod(rest), *rest]
    return shape


def describe_specs(metadata: Document, key: str = "inputs") -> str:
    """Name a model's inputs (or `outputs`) with their types and shapes, in one line."""
    return ", ".join(
        f"{spec['name']!r} ({spec['datatype']} {spec['shape']})" for spec in metadata.get(key, ())
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
    shape, data = list(output.get("shape", ())), list(_flatten(output.get("data", [])))
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


def route_fields(header: str) -> dict[str, str]:
    """Read a `Mesh-Route` header, `key=value; key="value"`, into a map of its decoded values."""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return {key: unquote(value.strip('"')) for key, equals, value in pairs if equals}


def _values(values: Sequence[Any]) -> str:
    return ", ".join(f"{item:.6g}" if isinstance(item, float) else str(item) for item in values)
