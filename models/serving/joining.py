"""Requests to one batch and back: rows are joined and split as bytes.

A tensor whose first dimension is the batch holds its rows one after another, so that joining is putting
the bytes together, and splitting is cutting them: no NumPy, and no copy where they are cut. BYTES elements
carry their lengths, which are walked over to find where a row ends.

`Reshaping` gives tensors the shapes that a model wants where clients see others (`reshape` in
`config.pbtxt`): the bytes stay as they are.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Final

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.types import Buffer, DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

_COPY_BYTES: Final = 1024
"""Answers up to this size are copied: a view takes as long, and keeps the whole batch in memory."""

_LENGTH: Final = struct.Struct("<I")


def has_rows(manifest: Manifest) -> bool:
    """Whether every input and output of a model begins with a free dimension, as rows of a batch do."""
    specs = (*manifest.inputs, *manifest.outputs)
    return bool(manifest.inputs and manifest.outputs) and all(
        spec.shape[:1] == (-1,) for spec in specs
    )


def rows_of(inputs: Sequence[Tensor]) -> int:
    """Return the rows of a request; 0 if its inputs disagree, so that it cannot be joined."""
    rows = inputs[0].rows if inputs else 0
    for tensor in inputs[1:]:
        if tensor.rows != rows:
            return 0
    return rows


def row_key(inputs: Sequence[Tensor], outputs: Sequence[str]) -> Hashable:
    """Return what must be equal for requests to be joined: each input's name, type and row, and the outputs."""
    if len(inputs) == 1:
        only = inputs[0]
        return only.name, only.datatype, only.shape[1:], outputs
    forms = sorted((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in inputs)
    return tuple(forms), outputs


def join(requests: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    """Return the inputs of all requests as one batch, in the order given.

    Args:
        requests: Inputs of at least one request each, of equal `row_key`.
    """
    first = requests[0]
    if len(first) == 1:
        columns = [[inputs[0] for inputs in requests]]
    else:
        by_name = [{tensor.name: tensor for tensor in inputs} for inputs in requests]
        columns = [[inputs[tensor.name] for inputs in by_name] for tensor in first]
    return tuple([_join(column) for column in columns])


def _join(column: Sequence[Tensor]) -> Tensor:
    first = column[0]
    rows = sum([tensor.shape[0] for tensor in column])
    data = b"".join([tensor.data for tensor in column])
    return Tensor(first.name, first.datatype, (rows, *first.shape[1:]), data)


def split(outputs: Sequence[Tensor], rows: Sequence[int]) -> list[tuple[Tensor, ...]]:
    """Return each request's share of a batch's outputs.

    Args:
        outputs: Of the whole batch.
        rows: Rows of each request, in the order in which they were joined.

    Raises:
        InferenceFailed: if an output does not have as many rows as the batch.
    """
    total = sum(rows)
    columns = []
    for tensor in outputs:
        if tensor.shape[:1] != (total,):
            raise InferenceFailed(
                f"output {tensor.name!r} of a batch of {total} rows has shape {list(tensor.shape)}; the "
                "first dimension must be the batch's rows"
            )
        columns.append(_split(tensor, rows, total))
    return list(zip(*columns, strict=True)) if columns else [() for _ in rows]


def _split(tensor: Tensor, rows: Sequence[int], total: int) -> list[Tensor]:
    data = memoryview(tensor.data).cast("B")
    if tensor.datatype is DataType.BYTES:
        ends = _string_ends(data, rows, math.prod(tensor.shape[1:]), tensor.name)
    else:
        row_bytes = len(data) // total if total else 0
        ends = []
        end = 0
        for count in rows:
            end += count * row_bytes
            ends.append(end)
    parts = []
    start = 0
    for count, end in zip(rows, ends, strict=True):
        part: Buffer = data[start:end]
        if end - start <= _COPY_BYTES:
            part = bytes(part)
        parts.append(Tensor(tensor.name, tensor.datatype, (count, *tensor.shape[1:]), part))
        start = end
    return parts


def _string_ends(data: memoryview, rows: Sequence[int], row_elements: int, name: str) -> list[int]:
    """Return where each request's BYTES elements end."""
    ends = []
    position = 0
    for count in rows:
        for _ in range(count * row_elements):
            if position + _LENGTH.size > len(data):
                raise InferenceFailed(f"output {name!r} has fewer elements than its shape says")
            position += _LENGTH.size + _LENGTH.unpack_from(data, position)[0]
        ends.append(position)
    if position != len(data):
        raise InferenceFailed(f"output {name!r} does not have the elements that its shape says")
    return ends


class Reshaping:
    """Between the shapes that clients see and those that the model wants."""

    def __init__(self, manifest: Manifest) -> None:
        """Read a manifest's `reshape`."""
        wanted = dict(manifest.execution.reshape)
        self._batch = manifest.max_batch_size > 0
        self._inputs = {
            spec.name: (self._own(spec), wanted[spec.name])
            for spec in manifest.inputs
            if spec.name in wanted
        }
        self._outputs = {
            spec.name: (wanted[spec.name], self._own(spec))
            for spec in manifest.outputs
            if spec.name in wanted
        }

    def __repr__(self) -> str:
        return f"<Reshaping of {sorted({*self._inputs, *self._outputs})}>"

    def __bool__(self) -> bool:
        return bool(self._inputs or self._outputs)

    def to_model(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a client's inputs as the model wants them.

        Raises:
            InvalidRequest: if the elements do not fill the wanted shape.
        """
        return tuple([self._reshaped(tensor, self._inputs) for tensor in inputs])

    def to_client(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return a model's outputs as clients see them.

        Raises:
            InvalidRequest: as `to_model`.
        """
        return tuple([self._reshaped(tensor, self._outputs) for tensor in outputs])

    def _own(self, spec: TensorSpec) -> tuple[int, ...]:
        return spec.shape[1:] if self._batch else spec.shape

    def _reshaped(
        self, tensor: Tensor, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> Tensor:
        known = shapes.get(tensor.name)
        if known is None:
            return tensor
        before, after = known
        batch, actual = (tensor.shape[:1], tensor.shape[1:]) if self._batch else ((), tensor.shape)
        free = iter([size for size, spec in zip(actual, before, strict=False) if spec == -1])
        shape = batch + tuple([next(free, -1) if size == -1 else size for size in after])
        if shape.count(-1) or math.prod(shape) != tensor.elements:
            raise InvalidRequest(
                f"tensor {tensor.name!r} of shape {list(tensor.shape)} cannot take the shape "
                f"{list(after)} of the model's reshape"
            )
        return Tensor(tensor.name, tensor.datatype, shape, tensor.data)
