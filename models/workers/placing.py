"""Putting tensors into messages and shared memory, and finding them there again; both sides use this."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.models.tensors import DTYPES, from_numpy, pack_strings
from meshnode.models.workers.protocol import WireTensor
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_ALIGNMENT: Final = 64
"""Of tensors within a region: a cache line, and what vector instructions like."""


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def needed_bytes(tensors: Iterable[Tensor]) -> int:
    """Return how long a region must be to hold these tensors."""
    return sum(_aligned(tensor.size_bytes) for tensor in tensors)


def inline(tensors: Iterable[Tensor]) -> tuple[WireTensor, ...]:
    """Return tensors that carry their bytes."""
    return tuple(
        WireTensor(each.name, each.datatype, each.shape, -1, each.size_bytes, bytes(each.data))
        for each in tensors
    )


def place(
    tensors: Iterable[Tensor], memory: memoryview, offset: int
) -> tuple[tuple[WireTensor, ...], int]:
    """Copy tensors into memory from `offset` on; return them, and where the next ones can begin."""
    placed = []
    for each in tensors:
        length = each.size_bytes
        data = each.data
        if length:
            source = data if isinstance(data, bytes | bytearray) else memoryview(data).cast("B")
            memory[offset : offset + length] = source
        placed.append(WireTensor(each.name, each.datatype, each.shape, offset, length))
        offset += _aligned(length)
    return tuple(placed), offset


def find(
    tensors: Iterable[WireTensor], region: memoryview | None, start: int
) -> Iterator[tuple[WireTensor, bytes | memoryview]]:
    """Yield tensors with their bytes.

    Args:
        tensors: As they came.
        region: The memory that they may lie in.
        start: Offset at which that begins.

    Raises:
        InferenceFailed: if a tensor lies elsewhere, or has not the bytes of its shape.
    """
    for each in tensors:
        if each.offset < 0:
            data: bytes | memoryview = each.data
        elif region is None or each.offset < start or each.length < 0:
            raise InferenceFailed(f"the model's process put {each.name!r} where it may not")
        else:
            begin = each.offset - start
            data = region[begin : begin + each.length]
        size = each.datatype.size_bytes
        wanted = each.length if size is None else size * math.prod(each.shape)
        if len(data) != wanted or min(each.shape, default=0) < 0:
            raise InferenceFailed(
                f"the model's process answered {len(data)} bytes for {each.name!r}, which is no "
                f"{each.datatype} array of shape {list(each.shape)}"
            )
        yield each, data


def tensors_of(
    arrays: Mapping[str, NDArray[Any]],
    datatypes: Mapping[str, DataType],
    wanted: Sequence[str] = (),
) -> list[Tensor]:
    """Return a model's arrays as tensors; those that are not wanted are left out.

    Raises:
        InferenceFailed: if one is no array, or of a type that cannot be sent.
    """
    tensors = []
    for name, value in arrays.items():
        if wanted and name not in wanted:
            continue
        array = np.asarray(value)  # a model's code may answer lists, whatever it should
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))
        try:
            tensors.append(_tensor(name, array, datatypes.get(name)))
        except InvalidRequest as error:
            raise InferenceFailed(str(error)) from None
    return tensors


def _tensor(name: str, array: NDArray[Any], datatype: DataType | None) -> Tensor:
    if array.dtype.kind in "OSU":
        return Tensor(name, DataType.BYTES, array.shape, pack_strings(array.ravel().tolist()))
    if datatype is DataType.BF16 and array.dtype == np.uint16:
        data = np.ascontiguousarray(array).tobytes()
        return Tensor(name, DataType.BF16, array.shape, data)
    return from_numpy(name, array)


def array_of(wire: WireTensor, data: bytes | NDArray[Any]) -> NDArray[Any]:
    """Return a tensor as a model sees it: BYTES as an array of `bytes`, BF16 as uint16.

    Args:
        wire: What it is.
        data: Its bytes; an array of them is shared with the result.
    """
    if wire.datatype is DataType.BYTES:
        return _elements(wire, bytes(data))
    dtype = np.dtype("<u2") if wire.datatype is DataType.BF16 else DTYPES[wire.datatype]
    if isinstance(data, bytes):
        data = np.frombuffer(bytearray(data), np.uint8)  # models may write to what they are given
    return data.view(dtype).reshape(wire.shape)


def _elements(wire: WireTensor, data: bytes) -> NDArray[Any]:
    count = math.prod(wire.shape)
    elements = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        begin = position + 4
        length = int.from_bytes(data[position:begin], "little")
        if begin > len(data) or begin + length > len(data):
            raise InvalidRequest(
                f"tensor {wire.name!r} does not hold {count} BYTES elements (shape "
                f"{list(wire.shape)}), each with its length as 4 little-endian bytes before it"
            )
        elements[index] = data[begin : begin + length]
        position = begin + length
    return elements.reshape(wire.shape)
