"""Triton's classification extension: an output's highest values with their places, instead of all of it.

Each of them is one BYTES element `VALUE:INDEX`, or `VALUE:INDEX:LABEL` where the model names its classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.tensors import FLOATS, unpack
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def classified(tensor: Tensor, count: int, *, batched: bool, labels: Sequence[str] = ()) -> Tensor:
    """Return the highest values of an output.

    Args:
        tensor: The output.
        count: How many are wanted, of each row.
        batched: Whether its first dimension is the batch.
        labels: Names of the classes, by index.

    Raises:
        InvalidRequest: if the output is of texts, which have no order.
    """
    if tensor.datatype is DataType.BYTES:
        raise InvalidRequest(
            f"output {tensor.name!r} is {tensor.datatype}: only numbers can be classified"
        )
    values = unpack(tensor)
    rows = tensor.shape[0] if batched and tensor.shape else 1
    length = len(values) // rows if rows else 0
    kept = min(count, length)
    found = [
        element
        for row in range(rows)
        for element in _highest(values[row * length : (row + 1) * length], kept, tensor, labels)
    ]
    shape = (rows, kept) if batched and tensor.shape else (kept,)
    data = b"".join(len(each).to_bytes(4, "little") + each for each in found)
    return Tensor(tensor.name, DataType.BYTES, shape, data)


def _highest(row: Sequence[float], kept: int, tensor: Tensor, labels: Sequence[str]) -> list[bytes]:
    order = sorted(range(len(row)), key=lambda index: (_rank(row[index]), -index), reverse=True)
    is_float = tensor.datatype in FLOATS
    found = []
    for index in order[:kept]:
        text = f"{row[index]:f}:{index}" if is_float else f"{int(row[index])}:{index}"
        found.append((f"{text}:{labels[index]}" if index < len(labels) else text).encode())
    return found


def _rank(value: float) -> float:
    """Return a value for sorting: what is no number comes last."""
    return float("-inf") if math.isnan(value) else value
