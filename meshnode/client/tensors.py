"""Tensors between NumPy and the Open Inference Protocol's REST form, binary wherever it can be.

Arrays travel as bytes behind the JSON (the protocol's binary extension): their memory is sent as it
is, unless it has strides or the other byte order, and results are views of the answer. Python's own
lists and numbers travel as JSON, where the gateway checks each element against the model's type.

| NumPy | Open Inference Protocol |
|---|---|
| bool, int8 to int64, uint8 to uint64, float16 to float64, in either byte order | BOOL, INT8 to UINT64, FP16 to FP64 |
| `S`, `U`, and object arrays of str and bytes | BYTES, str as UTF-8 |
| ml_dtypes' bfloat16; any float where BF16 is asked for | BF16 |

float64 and int64, which NumPy makes of whatever nobody chose a type for, become the type that the
model says where only precision can be lost, as lists do; other arrays are sent as they are.

Results have the same types, but BYTES are arrays of `bytes` objects, and BF16, which NumPy does not
know, comes as float32 (every BF16 is one).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from meshnode.client.shapes import describe_specs, fit_shape, flatten, nested_shape
from meshnode.errors import InvalidRequest, ProtocolError
from meshnode.gateway.protocols.tensors import split_elements
from meshnode.types import Buffer, DataType, Scalar, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from meshnode.client.calls import Reply
    from meshnode.client.results import TensorInfo

_DEFAULT_TYPES: Final = ("float64", "int64")
"""What NumPy makes of Python's numbers: a type that most often nobody has chosen."""

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""Header with the length of the JSON at the front of a body."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input whose element type is said explicitly.

    Attributes:
        data: An array, or nested lists, or a single value.
        datatype: `FP16`, `INT64`, `BYTES`, ...: a word of the Open Inference Protocol. Arrays are
            converted where nothing but precision can be lost; values out of its range are refused.
    """

    data: ArrayLike
    datatype: str


class Encoded(msgspec.Struct, frozen=True):
    """Inputs, ready to be sent.

    Attributes:
        described: Each input's JSON object.
        buffers: The bytes of those that have `binary_data_size`, in the same order.
    """

    described: list[dict[str, Any]]
    buffers: tuple[Buffer, ...] = ()


def needs_metadata(inputs: object) -> bool:
    """Whether the model's metadata is needed to encode these inputs."""
    if not isinstance(inputs, Mapping):
        return True
    return any(
        not isinstance(value, InputTensor) and _takes_models_type(value)
        for value in inputs.values()
    )


def encode_inputs(inputs: object, model: str, specs: Sequence[TensorInfo] | None) -> Encoded:
    """Encode inputs.

    Args:
        inputs: A map from name to array, nested lists, value or `InputTensor`; or one of these for a
            model with one input. Lists, and an array alone, may leave out the batch dimension.
        model: The model's name, for messages.
        specs: Its inputs, where `needs_metadata`.

    Raises:
        InvalidRequest: if something cannot be a tensor, or an input's name is unknown.
    """
    is_alone = not isinstance(inputs, Mapping)
    if not isinstance(inputs, Mapping):
        assert specs is not None
        if len(specs) != 1:
            raise InvalidRequest(
                f"model {model!r} has {len(specs)} inputs, so each needs its name: "
                f"{describe_specs(specs)}"
            )
        inputs = {specs[0].name: inputs}
    if not inputs:
        raise InvalidRequest(f"no input is given for model {model!r}")
    by_name = None if specs is None else {spec.name: spec for spec in specs}
    described: list[dict[str, Any]] = []
    buffers: list[Buffer] = []
    for name, value in inputs.items():
        if by_name is not None and name not in by_name:
            raise InvalidRequest(
                f"model {model!r} has no input {name!r}; its inputs are "
                f"{describe_specs(specs or ())}"
            )
        if isinstance(value, Mapping):
            raise InvalidRequest(
                f"input {name!r} is an object, which is no tensor: a model that takes documents is asked with predict, "
                "predict_stream or predict_later"
            )
        spec = None if by_name is None else by_name[name]
        item, buffer = _encode(name, value, spec, is_alone=is_alone)
        described.append(item)
        if buffer is not None:
            buffers.append(buffer)
    return Encoded(described, tuple(buffers))


def encode_tensors(tensors: Sequence[Tensor]) -> Encoded:
    """Encode tensors that are bytes already."""
    described = [_binary(t.name, t.datatype, t.shape, t.size_bytes) for t in tensors]
    return Encoded(described, tuple(tensor.data for tensor in tensors))


def _is_array(value: object) -> bool:
    """Whether NumPy reads it without looking at elements: arrays, NumPy's scalars, other libraries'."""
    return hasattr(value, "__array__") or hasattr(value, "__array_interface__")


def _holds_arrays(value: object) -> bool:
    """Whether it is an array, or somewhere in these nested lists is one."""
    return any(_is_array(leaf) for leaf in flatten(value))


def _takes_models_type(value: object) -> bool:
    """Whether its type is not its own choice: Python's values, and arrays of NumPy's default types."""
    arrays = [leaf for leaf in flatten(value) if _is_array(leaf)]
    return not arrays or any(_has_default_type(array) for array in arrays)


def _has_default_type(array: object) -> bool:
    return getattr(getattr(array, "dtype", None), "name", "") in _DEFAULT_TYPES


def _encode(
    name: str, value: object, spec: TensorInfo | None, *, is_alone: bool
) -> tuple[dict[str, Any], Buffer | None]:
    datatype: DataType | None = None
    if isinstance(value, InputTensor):
        datatype, value, spec = _datatype(name, value.datatype), value.data, None
    if value is None:
        raise InvalidRequest(f"input {name!r} is None; give numbers, text, lists or arrays of them")
    if _holds_arrays(value):
        return _encode_array(name, value, datatype, spec, is_alone=is_alone)
    if datatype is None:
        assert spec is not None
        datatype = _datatype(name, spec.datatype)
    shape = nested_shape(name, value, None if spec is None else list(spec.shape))
    if spec is not None:
        shape = fit_shape(shape, spec.shape)
    flat = list(flatten(value))
    if any(isinstance(item, bytes | bytearray) for item in flat):
        return _encode_strings(name, datatype, shape, flat)
    described = {"name": name, "datatype": str(datatype), "shape": shape, "data": flat}
    try:
        json.dumps(flat)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"input {name!r}: {error}; give numbers, booleans, strings, lists or arrays of them"
        ) from None
    return described, None


def _encode_strings(
    name: str, datatype: DataType, shape: Sequence[int], flat: list[Any]
) -> tuple[dict[str, Any], Buffer]:
    if datatype is not DataType.BYTES:
        raise InvalidRequest(f"input {name!r} holds bytes, but the model takes {datatype}")
    data = _packed(name, flat)
    return _binary(name, datatype, shape, len(data)), data


def _packed(name: str, values: list[Any]) -> bytes:
    from meshnode.models.tensors import pack_strings

    for index, value in enumerate(values):
        if not isinstance(value, str | bytes):
            raise InvalidRequest(
                f"input {name!r}, element {index}: {type(value).__name__} cannot be sent; an array "
                "of objects must hold str or bytes"
            )
    try:
        return pack_strings(values)
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"input {name!r} holds text that is not valid: {error}") from None


def _datatype(name: str, text: str) -> DataType:
    try:
        return DataType(text)
    except ValueError:
        known = ", ".join(DataType)
        raise InvalidRequest(
            f"input {name!r}: {text!r} is no datatype of the Open Inference Protocol; known ones are "
            f"{known}"
        ) from None


def _encode_array(
    name: str,
    value: object,
    datatype: DataType | None,
    spec: TensorInfo | None,
    *,
    is_alone: bool,
) -> tuple[dict[str, Any], Buffer]:
    from meshnode.models.tensors import numpy_buffer

    array = _as_array(name, value)
    if spec is not None and datatype is None and array.dtype.name in _DEFAULT_TYPES:
        datatype = _datatype(name, spec.datatype)
    if spec is not None and (is_alone or not _is_array(value)):
        array = array.reshape(fit_shape(list(array.shape), spec.shape))
    if array.dtype.kind in "SUO":
        if datatype not in (None, DataType.BYTES):
            raise InvalidRequest(f"input {name!r} holds text or objects, which is not {datatype}")
        data: Buffer = _packed(name, array.ravel().tolist())
        return _binary(name, DataType.BYTES, array.shape, len(data)), data
    shape = array.shape  # what follows may flatten it
    array, found = _as_sent(name, array, datatype)
    data = numpy_buffer(array, found)
    return _binary(name, found, shape, array.nbytes), data


def _as_array(name: str, value: object) -> NDArray[Any]:
    import numpy as np

    try:
        return np.asarray(value)
    except Exception as error:  # noqa: BLE001 - other libraries' arrays raise what they like
        why = str(error).partition("\n")[0]
        hint = ""
        if any(type(leaf).__module__.partition(".")[0] == "torch" for leaf in flatten(value)):
            hint = "; give tensor.detach().cpu().numpy()"
        raise InvalidRequest(f"input {name!r} cannot be an array: {why}{hint}") from None


def _as_sent(
    name: str, array: NDArray[Any], datatype: DataType | None
) -> tuple[NDArray[Any], DataType]:
    """Return the array in the little-endian type that is sent, and that type's name."""
    import numpy as np

    from meshnode.models.tensors import DTYPES

    if array.dtype.name == "bfloat16":  # of ml_dtypes, which NumPy and torch users have
        if datatype in (None, DataType.BF16):
            return array.view(np.uint16), DataType.BF16
        array = array.astype(np.float32)
    if datatype is DataType.BF16:
        return _to_bf16(name, array), DataType.BF16
    if datatype is not None:
        return _converted(name, array, datatype), datatype
    little = array.dtype.newbyteorder("<")
    for known, dtype in DTYPES.items():
        if little == dtype:
            return array.astype(dtype, copy=False), known
    raise InvalidRequest(
        f"input {name!r} is an array of {array.dtype}, which the Open Inference Protocol cannot carry; "
        "it carries bool, integers and floats of up to 64 bits, str and bytes"
    )


def _converted(name: str, array: NDArray[Any], datatype: DataType) -> NDArray[Any]:
    """Return an array in another type, if nothing but precision is lost."""
    import numpy as np

    from meshnode.models.tensors import DTYPES

    target = DTYPES[datatype]
    if array.dtype.kind in "iu" and target.kind in "iu":
        _check_integers(name, array, datatype)
    elif datatype is DataType.BYTES or not np.can_cast(array.dtype, target, "same_kind"):
        wanted = "str" if datatype is DataType.BYTES else target.name
        raise InvalidRequest(
            f"input {name!r} is an array of {array.dtype}, which cannot become {datatype} without "
            f'a change of kind; convert it with astype("{wanted}") if that is meant'
        )
    return _narrowed(name, array, datatype, target)


def _check_integers(name: str, array: NDArray[Any], datatype: DataType) -> None:
    """Refuse integers that another integer type would wrap around."""
    import numpy as np

    from meshnode.models.tensors import DTYPES

    target = DTYPES[datatype]
    if not array.size or np.can_cast(array.dtype, target, "safe"):
        return
    takes = np.iinfo(target)
    for value in (int(array.min()), int(array.max())):
        if not takes.min <= value <= takes.max:
            raise InvalidRequest(
                f"input {name!r} holds {value}, which {datatype} cannot: it goes from {takes.min} to "
                f"{takes.max}"
            )


def _narrowed(
    name: str, array: NDArray[Any], datatype: DataType, target: np.dtype[Any]
) -> NDArray[Any]:
    """Convert; refuse finite values that would become infinite."""
    import numpy as np

    try:
        with np.errstate(over="raise"):
            return array.astype(target, copy=False)
    except FloatingPointError:
        largest = np.abs(array[np.isfinite(array)]).max()
        raise InvalidRequest(
            f"input {name!r} holds {largest:.6g}, which {datatype} cannot: it goes up to "
            f"{np.finfo(target).max:.6g}"
        ) from None


def _to_bf16(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Round to the upper half of an FP32, to nearest, ties to even; a NaN stays one."""
    import numpy as np

    if array.dtype.kind not in "fiu":
        raise InvalidRequest(f"input {name!r} is an array of {array.dtype}, which is not BF16")
    singles = _narrowed(name, array, DataType.BF16, np.dtype("<f4"))
    words = np.ascontiguousarray(singles).reshape(-1).view("<u4")
    rounded = (words + np.uint32(0x7FFF) + ((words >> 16) & 1)) >> 16
    is_nan = (words & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, (words >> 16) | 0x40, rounded).astype("<u2")


def _binary(name: str, datatype: DataType, shape: Sequence[int], size_bytes: int) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": str(datatype),
        "shape": list(shape),
        "parameters": {"binary_data_size": size_bytes},
    }


# Answers


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    parameters: dict[str, Scalar] | None = None
    data: list[Any] | None = None


class Answer(msgspec.Struct):
    """The JSON part of an answer, with its outputs as arrays in `arrays`."""

    model_name: str
    outputs: list[_Output]
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Scalar] | None = None
    arrays: dict[str, Any] = msgspec.field(default_factory=dict)


_ANSWER = msgspec.json.Decoder(Answer)


def decode_answer(reply: Reply) -> Answer:
    """Decode an answer to `infer`, its arrays over the memory of the reply.

    Raises:
        ProtocolError: if it is none.
    """
    body = memoryview(reply.body)
    length = _head_length(reply, len(body))
    answer = _parsed(bytes(body[:length]), reply.url)
    answer.arrays = {}
    position = length
    for output in answer.outputs:
        try:
            datatype = DataType(output.datatype)
        except ValueError:
            raise _bad(reply.url, f"unknown datatype {output.datatype[:40]!r}") from None
        size = (output.parameters or {}).get("binary_data_size")
        if size is None:
            answer.arrays[output.name] = _from_json(output, datatype, reply.url)
            continue
        if type(size) is not int or not 0 <= size <= len(body) - position:
            raise _bad(reply.url, f"output {output.name!r} is not there completely")
        data = body[position : position + size]
        position += size
        answer.arrays[output.name] = _from_bytes(output, datatype, data, reply.url)
    if position != len(body):
        raise _bad(reply.url, f"{len(body) - position} bytes too many")
    return answer


def _parsed(text: bytes, url: str) -> Answer:
    try:
        return _ANSWER.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        try:  # with NaN and infinities, which only Python's reader takes
            return msgspec.convert(json.loads(text), Answer)
        except (ValueError, RecursionError, msgspec.ValidationError):
            raise _bad(url, str(error)) from None


def _head_length(reply: Reply, size: int) -> int:
    text = reply.headers.get(HEADER_LENGTH.lower())
    if text is None:
        return size
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > size:
        raise _bad(reply.url, f"its {HEADER_LENGTH} is {text[:40]!r}")
    return int(text)


def _bad(url: str, what: str) -> ProtocolError:
    return ProtocolError(f"the answer of {url} is no inference response: {what}")


def output_array(
    name: str, datatype: str, shape: tuple[int, ...], data: Buffer, url: str
) -> NDArray[Any]:
    """Return a tensor of an answer, as its bytes, as an array over their memory.

    Raises:
        ProtocolError: if they are none of this type and shape.
    """
    try:
        known = DataType(datatype)
    except ValueError:
        raise _bad(url, f"unknown datatype {datatype[:40]!r}") from None
    return _from_bytes(_Output(name, datatype, shape), known, memoryview(data), url)


def _from_bytes(output: _Output, datatype: DataType, data: memoryview, url: str) -> NDArray[Any]:
    from meshnode.models.tensors import to_numpy

    if datatype is DataType.BYTES:
        try:
            elements = [bytes(element) for element in split_elements(data)]
        except ValueError as error:
            raise _bad(url, f"output {output.name!r}: {error}") from None
        return _objects(output, elements, url)
    try:
        if datatype is DataType.BF16:
            halves = to_numpy(Tensor(output.name, DataType.UINT16, output.shape, data))
            words = halves.reshape(-1).astype("<u4") << 16
            return words.view("<f4").reshape(output.shape)
        return to_numpy(Tensor(output.name, datatype, output.shape, data))
    except InvalidRequest as error:
        raise _bad(url, str(error)) from None


def _from_json(output: _Output, datatype: DataType, url: str) -> NDArray[Any]:
    import numpy as np

    from meshnode.models.tensors import DTYPES

    flat = list(flatten(output.data or []))
    if datatype is DataType.BYTES:
        texts = [item.encode() if isinstance(item, str) else item for item in flat]
        return _objects(output, texts, url)
    dtype = np.dtype("<f4") if datatype is DataType.BF16 else DTYPES[datatype]
    try:
        return np.array(flat, dtype).reshape(output.shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise _bad(url, f"output {output.name!r}: {error}") from None


def _objects(output: _Output, elements: list[Any], url: str) -> NDArray[Any]:
    import numpy as np

    if len(elements) != math.prod(output.shape):
        raise _bad(url, f"output {output.name!r} has {len(elements)} elements")
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(output.shape)
