"""Tensor elements between JSON and little-endian bytes, without numpy.

An idle node stays small, and a gateway that only forwards never needs numpy, so this uses `struct`
alone: it converts a whole list per call, checks ranges, and is little-endian on every host.

JSON has no NaN and no infinities. Triton reads and writes them as the literals `NaN`, `Infinity`
and `-Infinity`, and so do its clients and Python's `json`; so do we, in both directions, for the
floating-point types. Strict JSON parsers (JavaScript's) refuse such an answer: ask for binary
outputs where a model can produce them.

| datatype | JSON elements |
|---|---|
| BOOL | `true`, `false`, or 1 and 0 |
| INT8 to UINT64 | integers in range; 1.0 is not one |
| FP16, BF16, FP32, FP64 | numbers in range, rounded to nearest, ties to even |
| BYTES | strings, as UTF-8 |

Data is flat, or nested exactly as the shape says.
"""

from __future__ import annotations

import json
import math
import struct
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.limits import MAX_TENSOR_ELEMENTS, MAX_TENSOR_RANK
from meshnode.types import Buffer, DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DATATYPES: dict[str, DataType] = {str(datatype): datatype for datatype in DataType}
"""Datatypes by the names that the protocol gives them."""

FLOATS = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})
"""Datatypes whose elements may be NaN or infinite."""

# BF16 is missing: it goes through FP32. BYTES is missing: its elements vary in length.
_CODES = {
    DataType.BOOL: "?", DataType.UINT8: "B", DataType.UINT16: "H", DataType.UINT32: "I",
    DataType.UINT64: "Q", DataType.INT8: "b", DataType.INT16: "h", DataType.INT32: "i",
    DataType.INT64: "q", DataType.FP16: "e", DataType.FP32: "f", DataType.FP64: "d",
}  # fmt: skip
_U32 = struct.Struct("<I")
_SHOWN_CHARACTERS = 40  # of a wrong value, in an error: enough to recognise it

_FLOAT_LIST = msgspec.json.Decoder(list[float])
_INT_LIST = msgspec.json.Decoder(list[int])
_BOOL_LIST = msgspec.json.Decoder(list[bool | Literal[0, 1]])
_STRING_LIST = msgspec.json.Decoder(list[str])
_ANYTHING = msgspec.json.Decoder()


def _decoder(datatype: DataType) -> msgspec.json.Decoder[Any]:
    if datatype in FLOATS:
        return _FLOAT_LIST
    if datatype is DataType.BYTES:
        return _STRING_LIST
    return _BOOL_LIST if datatype is DataType.BOOL else _INT_LIST


# Decodes and type-checks a flat list in one pass in C.
_FLAT = {datatype: _decoder(datatype) for datatype in DataType}


def count_elements(name: str, shape: Sequence[int]) -> int:
    """Return the number of elements of an input's shape.

    Raises:
        InvalidRequest: if a dimension is negative or there is more of anything than a request
            can carry. A dimension of 0 does not excuse the others: runtimes multiply them too.
    """
    count = math.prod(shape)
    if (
        0 < count <= MAX_TENSOR_ELEMENTS
        and len(shape) <= MAX_TENSOR_RANK
        and min(shape, default=1) > 0
    ):
        return count
    if len(shape) > MAX_TENSOR_RANK:
        raise InvalidRequest(
            f"input {name!r} has {len(shape)} dimensions; at most {MAX_TENSOR_RANK} are allowed"
        )
    if shape and min(shape) < 0:
        raise InvalidRequest(
            f"input {name!r} has shape {_shown(list(shape))}; every dimension must be 0 or more"
        )
    if math.prod(dimension or 1 for dimension in shape) > MAX_TENSOR_ELEMENTS:
        raise InvalidRequest(
            f"input {name!r} has shape {_shown(list(shape))}, which is more than the "
            f"{MAX_TENSOR_ELEMENTS} elements that a request can carry"
        )
    return count


def pack_json(name: str, datatype: DataType, shape: Sequence[int], data: Buffer) -> bytes:
    """Convert the JSON text of an input's `data` to little-endian bytes.

    Raises:
        InvalidRequest: naming the input, the element and what was expected.
    """
    count = count_elements(name, shape)
    try:
        values = _FLAT[datatype].decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return pack_values(name, datatype, shape, _decode_loosely(name, data))
    return _pack(name, datatype, shape, count, values)


def pack_values(name: str, datatype: DataType, shape: Sequence[int], data: object) -> bytes:
    """Convert an input's `data`, already decoded from JSON, flat or nested, to bytes.

    Raises:
        InvalidRequest: naming the input, the element and what was expected.
    """
    count = count_elements(name, shape)
    if not isinstance(data, list):
        raise InvalidRequest(f"input {name!r}: data must be an array, not {_shown(data)}")
    values = _flatten(name, shape, data) if data and isinstance(data[0], list) else data
    if not set(map(type, values)) <= _types(datatype):
        raise _wrong_element(name, datatype, values)
    return _pack(name, datatype, shape, count, values)


def _decode_loosely(name: str, data: Buffer) -> object:
    try:
        return _ANYTHING.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"input {name!r}: data cannot be read: {error}") from error


def _flatten(name: str, shape: Sequence[int], data: list[Any]) -> list[Any]:
    level: list[Any] = [data]
    for depth, size in enumerate(shape):
        if not all(type(item) is list and len(item) == size for item in level):
            raise InvalidRequest(
                f"input {name!r}: data is not nested as its shape {_shown(list(shape))} says: "
                f"arrays of {size} elements are expected at depth {depth + 1}; a flat array of "
                "all elements is accepted too"
            )
        level = list(chain.from_iterable(level))
    return level


def _pack(
    name: str, datatype: DataType, shape: Sequence[int], count: int, values: list[Any]
) -> bytes:
    if len(values) != count:
        raise InvalidRequest(
            f"input {name!r} has shape {_shown(list(shape))}, so {count} elements are expected, "
            f"not {len(values)}"
        )
    try:
        if datatype is DataType.BYTES:
            return _pack_strings(values)
        if datatype is DataType.BF16:
            return _pack_bf16(values)
        if datatype is DataType.BOOL and not set(values) <= {0, 1}:
            raise _wrong_element(name, datatype, values)
        return struct.pack(f"<{count}{_CODES[datatype]}", *values)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        raise _wrong_element(name, datatype, values) from error


def _pack_strings(values: list[str]) -> bytes:
    encoded = [value.encode() for value in values]
    return b"".join(chain.from_iterable((_U32.pack(len(item)), item) for item in encoded))


def _pack_bf16(values: list[float]) -> bytes:
    """Round to the upper half of an FP32, to nearest, ties to even."""
    count = len(values)
    words = struct.unpack(f"<{count}I", struct.pack(f"<{count}f", *values))
    halves = [
        # The carry of rounding would turn a NaN with many mantissa bits into a zero.
        (word >> 16 | 0x40)
        if word & 0x7FFFFFFF > 0x7F800000
        else (word + 0x7FFF + (word >> 16 & 1)) >> 16
        for word in words
    ]
    for half, value in zip(halves, values, strict=True):
        if half & 0x7FFF == 0x7F80 and not math.isinf(value):
            raise OverflowError("rounds to an infinity")
    return struct.pack(f"<{count}H", *halves)


def _types(datatype: DataType) -> set[type]:
    if datatype in FLOATS:
        return {int, float}
    if datatype is DataType.BYTES:
        return {str}
    return {bool, int} if datatype is DataType.BOOL else {int}


def _wrong_element(name: str, datatype: DataType, values: list[Any]) -> InvalidRequest:
    """Find the first element that does not fit; there is one."""
    index = next(i for i, value in enumerate(values) if not _fits(datatype, value))
    return InvalidRequest(
        f"input {name!r}, element {index}: {datatype} takes {_expected(datatype)}, "
        f"not {_shown(values[index])}"
    )


def _fits(datatype: DataType, value: Any) -> bool:
    if type(value) not in _types(datatype):
        return False
    if datatype is DataType.BOOL:
        return value in (0, 1)
    try:
        if datatype is DataType.BYTES:
            value.encode()
        elif datatype is DataType.BF16:
            _pack_bf16([value])
        else:
            struct.pack(f"<{_CODES[datatype]}", value)
    except (struct.error, OverflowError, UnicodeEncodeError):
        return False
    return True


def _expected(datatype: DataType) -> str:
    if datatype in FLOATS:
        return f"numbers in the range of {datatype}"
    if datatype is DataType.BYTES:
        return "strings"
    if datatype is DataType.BOOL:
        return "true, false, 1 or 0"
    bits = 8 * struct.calcsize(f"<{_CODES[datatype]}")
    low, high = (
        (0, 2**bits - 1) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    return f"integers from {low} to {high}"


def _shown(value: object) -> str:
    """Show a value as JSON, cut to a readable length; a container only by its kind if long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a very long number"  # which Python refuses to print
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


def check_data(name: str, datatype: DataType, shape: Sequence[int], data: Buffer) -> None:
    """Check that an input's bytes are what its datatype and shape say.

    Raises:
        InvalidRequest: naming the input, its size and the size that was expected.
    """
    count = count_elements(name, shape)
    size_bytes = memoryview(data).nbytes
    element_bytes = datatype.size_bytes
    if element_bytes is not None:
        if size_bytes != count * element_bytes:
            raise InvalidRequest(
                f"input {name!r} has shape {_shown(list(shape))} of {datatype}, so "
                f"{count * element_bytes} bytes are expected, not {size_bytes}"
            )
        if datatype is DataType.BOOL:
            _check_bools(name, data)
        return
    try:
        found = sum(1 for _ in split_elements(data))
    except ValueError as error:
        raise InvalidRequest(f"input {name!r}: {error}") from error
    if found != count:
        raise InvalidRequest(
            f"input {name!r} has shape {_shown(list(shape))}, so {count} BYTES elements are "
            f"expected, not {found}"
        )


def _check_bools(name: str, data: Buffer) -> None:
    """Refuse bytes other than 0 and 1: what runtimes make of them is undefined."""
    others = bytes(data).translate(None, b"\0\1")
    if others:
        raise InvalidRequest(
            f"input {name!r} has the byte {others[0]}; elements of BOOL are the bytes 0 and 1"
        )


def split_elements(data: Buffer) -> Iterator[memoryview]:
    """Yield the elements of BYTES data: each a little-endian u32 length, then its content.

    Raises:
        ValueError: if a length points beyond the end.
    """
    view = memoryview(data)
    end = view.nbytes
    position = 0
    while position < end:
        start = position + 4
        if start > end:
            raise ValueError("BYTES data ends within an element's length")
        position = start + _U32.unpack_from(view, position)[0]
        if position > end:
            raise ValueError("an element of BYTES data is longer than the data")
        yield view[start:position]


def unpack(tensor: Tensor) -> Sequence[Any]:
    """Return a tensor's elements, flat, as values that JSON can carry (or NaN and infinities).

    Raises:
        InvalidRequest: if BYTES elements are not UTF-8, which only a binary answer can carry.
        InferenceFailed: if the data is not what the tensor's datatype and shape say.
    """
    try:
        return _unpack(tensor.datatype, tensor.elements, tensor.data)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"output {tensor.name!r} has elements that are not UTF-8 text; ask for it with the "
            'parameter "binary_data": true'
        ) from error
    except (struct.error, ValueError) as error:
        raise InferenceFailed(
            f"output {tensor.name!r} does not have the size that its shape says: {error}"
        ) from error


def _unpack(datatype: DataType, count: int, data: Buffer) -> Sequence[Any]:
    if datatype is DataType.BYTES:
        elements = [str(element, "utf-8") for element in split_elements(data)]
        if len(elements) != count:
            raise ValueError(f"{len(elements)} elements instead of {count}")
        return elements
    if datatype is DataType.BF16:
        halves = struct.unpack(f"<{count}H", data)
        words = struct.pack(f"<{count}I", *(half << 16 for half in halves))
        return struct.unpack(f"<{count}f", words)
    return struct.unpack(f"<{count}{_CODES[datatype]}", data)
