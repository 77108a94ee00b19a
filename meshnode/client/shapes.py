"""Which shape nested data has, and which one the model most likely means by it. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_DATA_NESTING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from meshnode.client.results import TensorInfo


def flatten(data: object, depth: int = 0) -> Iterator[Any]:
    """Yield the elements of nested lists or tuples, or the one element that is none.

    Raises:
        InvalidRequest: if they are nested too deeply.
    """
    if depth > MAX_DATA_NESTING:
        raise InvalidRequest(f"data is nested more than {MAX_DATA_NESTING} deep")
    if isinstance(data, list | tuple):
        for item in data:
            yield from flatten(item, depth + 1)
    else:
        yield data


def nested_shape(name: str, data: object, wanted: Sequence[int] | None = None) -> list[int]:
    """Return the shape of nested lists; a single value has none.

    Args:
        name: The input's name, for the message.
        data: Nested lists or tuples.
        wanted: The model's shape, for the message.

    Raises:
        InvalidRequest: if rows have different lengths, or they are nested too deeply.
    """
    shape: list[int] = []
    level = data
    while isinstance(level, list | tuple):
        if len(shape) > MAX_DATA_NESTING:
            raise InvalidRequest(f"data is nested more than {MAX_DATA_NESTING} deep")
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    if sum(1 for _ in flatten(data)) != math.prod(shape) or not _is_even(data, shape):
        its = "" if wanted is None else f"; its shape is {list(wanted)} (-1: any size)"
        raise InvalidRequest(f"the data of input {name!r} has rows of different lengths{its}")
    return shape


def _is_even(data: object, shape: Sequence[int]) -> bool:
    if not isinstance(data, list | tuple):
        return not shape
    return bool(shape) and len(data) == shape[0] and all(_is_even(row, shape[1:]) for row in data)


def nested(flat: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return elements as lists that are nested as a shape says; a shape without dimensions has one element."""
    if not shape:
        return flat[0]
    level: list[Any] = list(flat)
    for size in reversed(shape[1:]):
        level = [level[at : at + size] for at in range(0, len(level), size)] if size else []
    return level


def fit_shape(shape: list[int], wanted: Sequence[int]) -> list[int]:
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


def describe_specs(specs: Iterable[TensorInfo]) -> str:
    """Name a model's inputs or outputs with their types and shapes, in one line."""
    return ", ".join(f"{spec.name!r} ({spec.datatype} {list(spec.shape)})" for spec in specs)
