"""Plain JSON values as tensors of a model, and back, for dialects whose clients know no shapes.

The shape of a value is that of its nesting: `[[1, 2], [3, 4]]` has two dimensions, `7` has none. Where the
model's input has more, dimensions of 1 are put before them, so that a single text or number is a batch of one.
Bytes that are no text are written as `{"b64": "..."}`.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols.tensors import (
    count_elements,
    pack_values,
    split_elements,
    unpack,
)
from meshnode.limits import MAX_TENSOR_RANK
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshnode.models.manifest import Manifest, TensorSpec

_B64 = "b64"


def input_named(manifest: Manifest, name: str) -> TensorSpec | None:
    """Return a model's input of a name, or None."""
    return next((spec for spec in manifest.inputs if spec.name == name), None)


def tensor_of(manifest: Manifest, spec: TensorSpec, value: object) -> Tensor:
    """Return a value as the tensor that an input takes; its sizes are not compared with the input's.

    Args:
        manifest: The model, for messages.
        spec: The input.
        value: As JSON gave it: a scalar, or lists nested as deep as the tensor has dimensions.

    Raises:
        InvalidRequest: if lists are of different lengths, too deep, or an element does not fit the datatype.
    """
    shape = _shape_of(value)
    if len(shape) > MAX_TENSOR_RANK:
        raise InvalidRequest(
            f"input {spec.name!r} is nested in {len(shape)} lists; at most {MAX_TENSOR_RANK} are allowed"
        )
    if len(shape) > len(spec.shape):
        raise InvalidRequest(
            f"input {spec.name!r} of model {manifest.model!r} has {len(spec.shape)} dimensions, so lists "
            f"nested that deep are expected, not {len(shape)}"
        )
    missing = (1,) * (len(spec.shape) - len(shape))
    if spec.datatype is DataType.BYTES:
        elements = list(_leaves(spec.name, value, shape))
        data = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
        return Tensor(spec.name, spec.datatype, (*missing, *shape), data)
    data = pack_values(spec.name, spec.datatype, shape or (1,), value if shape else [value])
    return Tensor(spec.name, spec.datatype, (*missing, *shape), data)


def plain(tensor: Tensor) -> list[Any]:
    """Return a tensor's elements, flat; BYTES that are no text become `{"b64": ...}`.

    Raises:
        InferenceFailed: if its data is not what its shape says.
    """
    if tensor.datatype is DataType.BYTES:
        try:
            return [text_or_b64(bytes(element)) for element in split_elements(tensor.data)]
        except ValueError as error:
            raise InferenceFailed(f"output {tensor.name!r} is malformed: {error}") from error
    return list(unpack(tensor))


def scalar_or_list(tensor: Tensor) -> Any:
    """Return a tensor's only element, or the flat list of all where it has more or none."""
    values = plain(tensor)
    return values[0] if len(values) == 1 else values


def nested(tensor: Tensor) -> Any:
    """Return a tensor's elements, in lists nested as its shape says; a scalar is no list."""
    return nest(plain(tensor), tensor.shape)


def nest(values: list[Any], shape: Sequence[int]) -> Any:
    """Return a flat list of elements as lists nested as a shape says; without dimensions, the only one."""
    for size in reversed(shape[1:]):
        values = (
            [values[start : start + size] for start in range(0, len(values), size)] if size else []
        )
    return values if shape else values[0]


def _shape_of(value: object) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value or len(shape) > MAX_TENSOR_RANK:
            break
        value = value[0]
    return tuple(shape)


def _leaves(name: str, value: object, shape: tuple[int, ...]) -> Iterator[bytes]:
    count_elements(name, shape)
    if not shape:
        yield _bytes_of(name, value)
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise InvalidRequest(
            f"input {name!r}: lists of different lengths are no tensor; {shape[0]} elements were expected"
        )
    for each in value:
        yield from _leaves(name, each, shape[1:])


def _bytes_of(name: str, value: object) -> bytes:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"input {name!r} has a text that is no Unicode: {error}") from None
    if isinstance(value, dict) and value.keys() == {_B64} and isinstance(value[_B64], str):
        try:
            return base64.b64decode(value[_B64], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest(f"input {name!r}: b64 is no base64: {error}") from None
    raise InvalidRequest(
        f'input {name!r}: BYTES takes texts, or bytes as {{"b64": "..."}}, not {str(value)[:40]!r}'
    )


def text_or_b64(element: bytes) -> Any:
    """Return bytes as a text, or as `{"b64": ...}` where they are none."""
    try:
        return element.decode()
    except UnicodeDecodeError:
        return {_B64: base64.b64encode(element).decode()}
