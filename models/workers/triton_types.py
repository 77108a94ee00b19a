"""Types, strings and the exception of Triton's Python backend; see `triton_python_backend_utils`."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from meshnode.models.tensors import DTYPES, pack_strings
from meshnode.types import DataType

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SERVER_TYPES: Final = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip
"""By the numbers of Triton's data types."""


class TritonModelException(Exception):
    """What a model raises to fail a request."""


def datatype_of(triton_type: str) -> DataType:
    """Return the element type of a name such as TYPE_FP32; not part of Triton's module."""
    name = triton_type.removeprefix("TYPE_")
    return DataType.BYTES if name == "STRING" else DataType(name)


def triton_type_of(datatype: DataType) -> str:
    """Return the name in configurations of an element type; not part of Triton's module."""
    return "TYPE_STRING" if datatype is DataType.BYTES else f"TYPE_{datatype}"


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Return the NumPy type of a configuration's `data_type`, such as TYPE_FP32."""
    datatype = datatype_of(triton_type_string)
    if datatype is DataType.BF16:
        raise TritonModelException("NumPy has no BF16; its tensors come as uint16 arrays")
    return DTYPES[datatype].type


def triton_to_numpy_type(data_type: int) -> Any:
    """Return the NumPy type of a number of Triton's data types."""
    return triton_string_to_numpy(f"TYPE_{_SERVER_TYPES[data_type]}")


def numpy_to_triton_type(data_type: Any) -> int:
    """Return the number of Triton's data types of a NumPy type."""
    wanted = np.dtype(data_type)
    for datatype, dtype in DTYPES.items():
        if dtype == wanted:
            return _SERVER_TYPES.index(triton_type_of(datatype).removeprefix("TYPE_"))
    if wanted.kind in "SU":
        return _SERVER_TYPES.index("STRING")
    raise TritonModelException(f"Triton has no data type for {wanted}")


def serialize_byte_tensor(input_tensor: NDArray[Any]) -> NDArray[Any]:
    """Return strings as one array of bytes: each with its length before it."""
    return np.frombuffer(pack_strings(input_tensor.ravel().tolist()), np.uint8)


def deserialize_bytes_tensor(encoded_tensor: Any) -> NDArray[Any]:
    """Return the strings that `serialize_byte_tensor` has put together."""
    data = bytes(encoded_tensor)
    strings = []
    position = 0
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        strings.append(data[position + 4 : position + 4 + length])
        position += 4 + length
    return np.array(strings, dtype=np.object_)
