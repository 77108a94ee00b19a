"""TensorFlow Serving's JSON values as tensors, and back.

A value is nested as its shape says; a scalar has none. Elements of BYTES are texts, or `{"b64": ...}` objects with
that one key. Outputs whose names end in `_bytes` come back as such objects, and so does what is no UTF-8 text.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols.tensors import count_elements, pack_values, split_elements, unpack
from meshnode.limits import MAX_TENSOR_RANK
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from meshnode.models.manifest import TensorSpec

_LENGTH: Final = struct.Struct("<I")
_BINARY: Final = "b64"
_BINARY_ENDING: Final = "_bytes"


def is_binary(value: object) -> bool:
    """Whether a value is a `{"b64": ...}` object."""
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get(_BINARY), str)


def tensor_of(spec: TensorSpec, value: object) -> Tensor:
    """Return a JSON value as an input.

    Raises:
        InvalidRequest: if its lists are ragged, or an element is not of the input's type.
    """
    shape, elements = flat(spec.name, value)
    if spec.datatype is not DataType.BYTES:
        if any(isinstance(element, dict) for element in elements):
            raise InvalidRequest(f"input {spec.name!r} takes {spec.datatype}, not objects")
        return Tensor(
            spec.name, spec.datatype, shape, pack_values(spec.name, spec.datatype, shape, elements)
        )
    count_elements(spec.name, shape)
    pieces: list[bytes] = []
    for element in elements:
        text = _bytes(spec.name, element)
        pieces += (_LENGTH.pack(len(text)), text)
    return Tensor(spec.name, spec.datatype, shape, b"".join(pieces))


def flat(name: str, value: object) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape of a nested value, and its elements in order.

    Raises:
        InvalidRequest: if lists of one level have different lengths.
    """
    if not isinstance(value, list):
        return (), [value]
    shape: list[int] = []
    level: list[Any] = value
    rows = 1
    while True:
        shape.append(len(level) // rows)
        lists = [item for item in level if isinstance(item, list)]
        if not lists:
            return tuple(shape), level
        width = len(lists[0])
        if len(lists) != len(level) or any(len(item) != width for item in lists):
            raise InvalidRequest(
                f"input {name!r} is ragged: at depth {len(shape) + 1} all must be lists of {width} elements"
            )
        if len(shape) >= MAX_TENSOR_RANK:
            raise InvalidRequest(f"input {name!r} has more than {MAX_TENSOR_RANK} dimensions")
        rows = len(level)
        level = list(chain.from_iterable(level))
        if not rows or not width:
            return (*shape, width), []


def value_of(tensor: Tensor) -> Any:
    """Return an output as a JSON value, nested as its shape says.

    Raises:
        InferenceFailed: if its data is not what its shape says.
    """
    return nested(_elements(tensor), tensor.shape)


def nested(elements: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return elements in lists, as a shape says; one element without any for a scalar."""
    if not shape:
        return elements[0]
    level: list[Any] = list(elements)
    for size in reversed(shape[1:]):
        if not size:
            return _empty(shape)
        level = [level[start : start + size] for start in range(0, len(level), size)]
    return level


def _empty(shape: Sequence[int]) -> list[Any]:
    if len(shape) == 1:
        return []
    return [_empty(shape[1:]) for _ in range(shape[0])]


def _bytes(name: str, element: object) -> bytes:
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which json.loads lets pass
            raise InvalidRequest(f"input {name!r} has a text that is no Unicode") from None
    if is_binary(element):
        assert isinstance(element, Mapping)
        text: str = element[_BINARY]
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest(f"input {name!r} has an element whose b64 is no base64") from None
    raise InvalidRequest(
        f'input {name!r} takes texts, or objects {{"b64": base64}}, not {type(element).__name__}'
    )


def _elements(tensor: Tensor) -> Sequence[Any]:
    if tensor.datatype is not DataType.BYTES:
        return unpack(tensor)
    binary = tensor.name.endswith(_BINARY_ENDING)
    try:
        elements = [bytes(element) for element in split_elements(tensor.data)]
    except ValueError as error:
        raise InferenceFailed(f"output {tensor.name!r}: {error}") from None
    if len(elements) != tensor.elements:
        raise InferenceFailed(f"output {tensor.name!r} does not have the size that its shape says")
    return [_written(element, binary=binary) for element in elements]


def _written(element: bytes, *, binary: bool) -> Any:
    if not binary:
        try:
            return element.decode()
        except UnicodeDecodeError:
            pass
    return {_BINARY: base64.b64encode(element).decode()}
