"""Tensors to and from NumPy arrays, without a copy wherever the bytes allow it.

Numeric tensors share memory in both directions, but for the smallest results. BYTES elements (a little-endian u32 length and
content each) become Python strings in an object array, because that is what ONNX Runtime takes;
their content must therefore be UTF-8.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from meshnode.errors import InvalidRequest
from meshnode.types import Buffer, DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

DTYPES: dict[DataType, np.dtype[Any]] = {
    DataType.BOOL: np.dtype(np.bool_),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.BYTES: np.dtype(object),
}
"""The NumPy type of each element type; NumPy has none for BF16."""

_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_COPY_BYTES = 1024
"""Results up to this size are copied: 0.1 µs, where a view takes 0.2 and keeps the array alive."""
_LENGTH = struct.Struct("<I")


def to_numpy(tensor: Tensor) -> NDArray[Any]:
    """Return a tensor as an array over the same memory (BYTES: an array of strings).

    Raises:
        InvalidRequest: if the data does not fill the shape, or a BYTES element is not UTF-8.
    """
    datatype = tensor.datatype
    if datatype is DataType.BYTES:
        return _strings(tensor)
    try:
        array = np.frombuffer(tensor.data, DTYPES[datatype]).reshape(tensor.shape)
    except (ValueError, KeyError):
        raise InvalidRequest(
            f"tensor {tensor.name!r} has {tensor.size_bytes} bytes, which is no {datatype} "
            f"array of shape {list(tensor.shape)}"
        ) from None
    # A memoryview into a received frame may begin anywhere; kernels may rely on alignment.
    return array if array.flags.aligned else array.copy()


def bytes_array(tensor: Tensor) -> NDArray[Any]:
    """Return a BYTES tensor as an array of `bytes` objects, whatever their content.

    Raises:
        InvalidRequest: if the data does not hold as many elements as the shape says.
    """
    elements = [bytes(content) for content in _elements(tensor)]
    if len(elements) != tensor.elements:
        raise InvalidRequest(_wrong_count(tensor))
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tensor.shape)


def from_numpy(name: str, array: NDArray[Any]) -> Tensor:
    """Return a tensor over the memory of an array (BYTES, and arrays with strides: a copy).

    Raises:
        InvalidRequest: if the array's type is none of the Open Inference Protocol.
    """
    datatype = _DATATYPES.get(array.dtype)
    if datatype is None:
        if array.dtype.kind not in "SU":
            raise InvalidRequest(f"tensor {name!r} has type {array.dtype}, which cannot be sent")
        datatype = DataType.BYTES
    return Tensor(name, datatype, array.shape, numpy_buffer(array, datatype))


def numpy_buffer(array: NDArray[Any], datatype: DataType) -> Buffer:
    """Return the bytes of an array in the protocol's layout: a view of it, unless it is small."""
    if datatype is DataType.BYTES:
        return pack_strings(array.ravel().tolist())
    if array.nbytes <= _COPY_BYTES:
        return array.tobytes()
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.data.cast("B")


def pack_strings(values: list[Any]) -> bytes:
    """Return strings or bytes as BYTES elements."""
    chunks: list[bytes] = []
    for value in values:
        content = value if isinstance(value, bytes) else str(value).encode()
        chunks.append(_LENGTH.pack(len(content)))
        chunks.append(content)
    return b"".join(chunks)


def _strings(tensor: Tensor) -> NDArray[Any]:
    array = np.empty(tensor.elements, dtype=object)
    count = 0
    for content in _elements(tensor):
        if count == len(array):
            raise InvalidRequest(_wrong_count(tensor))
        try:
            array[count] = str(content, "utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"element {count} of tensor {tensor.name!r} is not UTF-8; ONNX strings are"
            ) from None
        count += 1
    if count != len(array):
        raise InvalidRequest(_wrong_count(tensor))
    return array.reshape(tensor.shape)


def _elements(tensor: Tensor) -> Iterator[memoryview]:
    data = memoryview(tensor.data).cast("B")
    position = 0
    while position < len(data):
        start = position + _LENGTH.size
        if start > len(data):
            raise InvalidRequest(_wrong_count(tensor))
        position = start + _LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise InvalidRequest(_wrong_count(tensor))
        yield data[start:position]


def _wrong_count(tensor: Tensor) -> str:
    return (
        f"tensor {tensor.name!r} does not hold {tensor.elements} BYTES elements (shape "
        f"{list(tensor.shape)}), each with its length as 4 little-endian bytes before it"
    )
