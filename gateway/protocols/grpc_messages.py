"""Open Inference Protocol over gRPC: `ModelInfer` and `ModelStreamInfer`, to and from inferences.

A tensor's data is in `raw_input_contents` (one entry for each input, in their order), or in the input's typed
`contents`, or in a region of shared memory that the caller has registered. Answers use `raw_output_contents`,
or the region that the caller wants an output in.

The parameter `timeout` (microseconds) and the call's own deadline, whichever comes first, become the request's; those
that begin with `triton_` are for the protocol; the others reach the model.

In a stream, an error is told in its place among the answers, with the request's id: the stream itself goes on.
Each answer says with `triton_final_response` whether it is the request's last. An answer in several parts has no
such end, since nobody knows which part is the last before the model says so; a client that wants one asks with
`triton_enable_empty_final_response`, and gets an empty answer at the end.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from meshnode.errors import InvalidRequest, MeshError
from meshnode.gateway.protocols.classification import classified
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.grpc_schema import messages
from meshnode.gateway.protocols.http import HttpResponse
from meshnode.gateway.protocols.oip import check_scheduling, refuse_parts
from meshnode.gateway.protocols.tensors import DATATYPES, check_data, count_elements, pack_values
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_REQUEST_PARAMETERS,
    MAX_REQUEST_TENSORS,
    MAX_REQUEST_TEXT_LENGTH,
    MAX_REQUEST_TIMEOUT_S,
)
from meshnode.types import Buffer, DataType, InferRequest, Scalar, Tensor

if TYPE_CHECKING:
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import InferResponse, ResponsePart

_CONTENTS: Final = {
    DataType.BOOL: "bool_contents", DataType.INT8: "int_contents", DataType.INT16: "int_contents",
    DataType.INT32: "int_contents", DataType.INT64: "int64_contents", DataType.UINT8: "uint_contents",
    DataType.UINT16: "uint_contents", DataType.UINT32: "uint_contents", DataType.UINT64: "uint64_contents",
    DataType.FP32: "fp32_contents", DataType.FP64: "fp64_contents", DataType.BYTES: "bytes_contents",
}  # fmt: skip
"""Fields of typed contents; FP16 and BF16 have none."""

_REGION: Final = "shared_memory_region"
_REGION_SIZE: Final = "shared_memory_byte_size"
_REGION_OFFSET: Final = "shared_memory_offset"
_OURS: Final = "triton_"  # parameters of the protocol begin so
_WANTS_END: Final = "triton_enable_empty_final_response"
_IS_LAST: Final = "triton_final_response"
_RAW_OUTPUT: Final = b"\x32"  # field 6 of ModelInferResponse, raw_output_contents, with its length
_INFER_RESPONSE: Final = b"\x12"  # field 2 of ModelStreamInferResponse, likewise
_U32: Final = struct.Struct("<I")

NO_TIMEOUT: Final = "grpc-timeout-s"
"""The header in which the server says how many seconds a call has left; absent where it has no deadline."""


class Regions(Protocol):
    """The shared memory that a caller may name."""

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return what is there; InvalidRequest if the region is unknown or smaller."""
        ...

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Put it there; InvalidRequest likewise."""
        ...


class NoRegions:
    """Of callers who may not use shared memory."""

    def __init__(self, reason: str) -> None:
        """Refuse with this sentence."""
        self._reason = reason

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Refuse."""
        del name, offset, size_bytes
        raise InvalidRequest(self._reason)

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Refuse."""
        del name, offset, data
        raise InvalidRequest(self._reason)


class Place(NamedTuple):
    """Where in shared memory a tensor is, or is wanted."""

    region: str
    offset: int
    size_bytes: int


class AnswerForm(msgspec.Struct, frozen=True):
    """How the caller wants its answer.

    Attributes:
        id: The request's own id, which the answer repeats.
        places: Outputs that are wanted in shared memory, by name.
        classes: Outputs of which only the highest values are wanted, and how many.
        batched: Whether an output's first dimension is the batch.
        wants_end: Whether a stream of parts ends with an empty one.
        labels: Names of an output's classes, by output.
    """

    id: str = ""
    places: Mapping[str, Place] = {}
    classes: Mapping[str, int] = {}
    batched: bool = False
    wants_end: bool = False


class Unary:
    """The dialect of `ModelInfer`, for callers who may use these regions."""

    def __init__(self, regions: Regions) -> None:
        """Read and write there."""
        self._regions = regions

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Decode a `ModelInferRequest` (`asked.body`); see `Dialect`."""
        refuse_parts(manifest)
        request, form = decode(asked, manifest, request_id, trace, self._regions)
        return Call(request, form)

    def encode(self, response: InferResponse, part: ResponsePart, form: AnswerForm) -> HttpResponse:
        """Return a `ModelInferResponse` as bytes; see `Dialect`."""
        return HttpResponse(200, {}, encode(response, part, form, self._regions))


class Streamed(Unary):
    """The dialect of `ModelStreamInfer`: each piece of the answer is a whole `ModelStreamInferResponse`."""

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Decode a `ModelInferRequest` (`asked.body`); see `Dialect`."""
        request, form = decode(asked, manifest, request_id, trace, self._regions)
        return Call(request, form, lambda response: _StreamEncoder(response, form, self._regions))


class _StreamEncoder:
    """Encodes the answer of one request of a stream."""

    headers: Mapping[str, str] = {}

    def __init__(self, response: InferResponse, form: AnswerForm, regions: Regions) -> None:
        self._response = response
        self._form = form
        self._regions = regions
        self._is_told = False

    def part(self, part: ResponsePart) -> bytes:
        """Return a part as a message of the stream; nothing for an empty one, by which a model only ends its answer."""
        if not part.outputs and not part.parameters:
            return b""
        self._is_told = True
        is_last = self._response.single is not None
        return in_stream(encode(self._response, part, self._form, self._regions, is_last))

    def end(self) -> bytes:
        """Return the empty answer that ends several parts, or none, for who asked for it."""
        if not self._form.wants_end or (self._response.single is not None and self._is_told):
            return b""
        return in_stream(_head(self._response, self._form, {_IS_LAST: True}).SerializeToString())

    def failed(self, error: MeshError) -> bytes:
        """Return the message that tells an error after the first part."""
        return error_in_stream(str(error), self._response.model, self._form.id)


def in_stream(answer: bytes) -> bytes:
    """Return an encoded `ModelInferResponse` as the encoded `ModelStreamInferResponse` that has it."""
    return b"".join((_INFER_RESPONSE, _varint(len(answer)), answer))


def error_in_stream(sentence: str, model: str, asked_id: str) -> bytes:
    """Return the message of a stream that tells an error of one request."""
    found = messages().ModelStreamInferResponse(error_message=sentence)
    found.infer_response.model_name = model
    found.infer_response.id = asked_id
    encoded: bytes = found.SerializeToString()
    return encoded


def decode(
    asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None, regions: Regions
) -> tuple[InferRequest, AnswerForm]:
    """Decode a `ModelInferRequest`.

    Args:
        asked: Its `body` is the message.
        manifest: The model version that will answer.
        request_id: For logs.
        trace: The call's, if its caller named one.
        regions: Shared memory that the caller may name.

    Raises:
        InvalidRequest: with what was expected.
    """
    message = asked.body
    _check_texts(message)
    inputs = _inputs(message, regions)
    parameters, timeout_s, wants_end = _parameters(message)
    left = asked.http.headers.get(NO_TIMEOUT)
    if left is not None:
        timeout_s = min(timeout_s, float(left))
    outputs = tuple([each.name for each in message.outputs])
    _refuse_duplicates([tensor.name for tensor in inputs], "input")
    _refuse_duplicates(outputs, "output")
    places, classes = _wishes(message)
    request = InferRequest(
        manifest.model, inputs, manifest.version, outputs, request_id, parameters, timeout_s, trace
    )
    form = AnswerForm(message.id, places, classes, manifest.max_batch_size > 0, wants_end)
    return request, form


def _check_texts(message: Any) -> None:
    if len(message.inputs) > MAX_REQUEST_TENSORS or len(message.outputs) > MAX_REQUEST_TENSORS:
        raise InvalidRequest(f"a request has at most {MAX_REQUEST_TENSORS} inputs and outputs")
    parameters = message.parameters
    if len(parameters) > MAX_REQUEST_PARAMETERS:
        raise InvalidRequest(
            f"a request has at most {MAX_REQUEST_PARAMETERS} parameters, not {len(parameters)}"
        )
    characters = (
        len(message.id)
        + sum(len(output.name) for output in message.outputs)
        + sum(len(name) + len(value.string_param) for name, value in parameters.items())
    )
    if characters > MAX_REQUEST_TEXT_LENGTH:
        raise InvalidRequest(
            "the id, the outputs' names and the parameters have more than "
            f"{MAX_REQUEST_TEXT_LENGTH} characters"
        )


def _inputs(message: Any, regions: Regions) -> tuple[Tensor, ...]:
    raw = message.raw_input_contents
    used = 0
    tensors: list[Tensor] = []
    for item in message.inputs:
        datatype = DATATYPES.get(item.datatype)
        if datatype is None:
            raise InvalidRequest(
                f"input {item.name!r} has datatype {item.datatype[:40]!r}; known ones are "
                f"{', '.join(DATATYPES)}"
            )
        shape = tuple(item.shape)
        count_elements(item.name, shape)
        data: Buffer
        place = _place(item, "input")
        if place is not None:
            data = regions.read(*place)
            check_data(item.name, datatype, shape, data)
        elif raw:
            if used >= len(raw):
                raise InvalidRequest(_uneven(message))
            if item.HasField("contents"):
                raise InvalidRequest(
                    f"input {item.name!r} has contents, and the request has raw_input_contents as well; "
                    "send one of them"
                )
            data = raw[used]
            used += 1
            check_data(item.name, datatype, shape, data)
        else:
            data = _typed(item, datatype, shape)
        tensors.append(Tensor(item.name, datatype, shape, data))
    if used != len(raw):
        raise InvalidRequest(_uneven(message))
    return tuple(tensors)


def _uneven(message: Any) -> str:
    return (
        f"the request has {len(message.raw_input_contents)} raw_input_contents for {len(message.inputs)} "
        "inputs; there must be one for each input that is not in shared memory, in their order"
    )


def _typed(item: Any, datatype: DataType, shape: tuple[int, ...]) -> bytes:
    """Return the bytes of an input whose elements are in its typed contents."""
    wanted = _CONTENTS.get(datatype)
    given = [field.name for field, _ in item.contents.ListFields()]
    if wanted is None or any(name != wanted for name in given):
        where = f"in contents.{wanted} or " if wanted else ""
        found = f", not in contents.{given[0]}" if given else ""
        raise InvalidRequest(
            f"input {item.name!r} is {datatype}: its data goes {where}in raw_input_contents{found}"
        )
    values = getattr(item.contents, wanted)
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidRequest(
            f"input {item.name!r} has shape {list(shape)}, so {count} elements are expected in "
            f"contents.{wanted} (or raw_input_contents), not {len(values)}"
        )
    if datatype is DataType.BYTES:
        return b"".join([piece for each in values for piece in (_U32.pack(len(each)), each)])
    return pack_values(item.name, datatype, shape, list(values))


def _place(item: Any, kind: str) -> Place | None:
    """Return where in shared memory an input is, or an output is wanted; None if it is nowhere there."""
    parameters = item.parameters
    if _REGION not in parameters:
        return None
    region, what = parameters[_REGION].string_param, f"{kind} {item.name!r}"
    if not region:
        raise InvalidRequest(f"{what}: {_REGION} must be the name of a region")
    if _REGION_SIZE not in parameters:
        raise InvalidRequest(f"{what}: {_REGION_SIZE} is missing: how many bytes of {region!r}?")
    size_bytes = _number(parameters[_REGION_SIZE], f"{what}: {_REGION_SIZE}")
    offset = 0
    if _REGION_OFFSET in parameters:
        offset = _number(parameters[_REGION_OFFSET], f"{what}: {_REGION_OFFSET}")
    return Place(region, offset, size_bytes)


def _number(parameter: Any, what: str) -> int:
    value = _value(parameter, what)
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"{what} must be a whole number, 0 or more")
    return value


def _wishes(message: Any) -> tuple[dict[str, Place], dict[str, int]]:
    """Return outputs that are wanted in shared memory, and those of which only the highest values are."""
    places: dict[str, Place] = {}
    classes: dict[str, int] = {}
    for output in message.outputs:
        parameters = output.parameters
        if not parameters:
            continue
        place = _place(output, "output")
        if place is not None:
            places[output.name] = place
        if "classification" in parameters:
            what = f"output {output.name!r}: classification"
            count = _number(parameters["classification"], what)
            if count:
                classes[output.name] = count
    both = places.keys() & classes.keys()
    if both:
        raise InvalidRequest(
            f"output {min(both)!r} cannot be both classified and in shared memory; ask for one of them"
        )
    return places, classes


def _value(parameter: Any, what: str) -> Scalar:
    chosen = parameter.WhichOneof("parameter_choice")
    if chosen is None:
        raise InvalidRequest(f"{what} has no value")
    value: Scalar = getattr(parameter, chosen)
    return value


def _parameters(message: Any) -> tuple[dict[str, Scalar], float, bool]:
    """Return the model's parameters, the deadline in seconds, and whether an empty last answer is wanted."""
    if not message.parameters:
        return {}, DEFAULT_REQUEST_TIMEOUT_S, False
    values = {
        name: _value(each, f"parameter {name!r}") for name, each in message.parameters.items()
    }
    timeout = values.pop("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidRequest("parameter 'timeout' must be a number of microseconds, 0 or more")
    check_scheduling(values)
    wants_end = values.get(_WANTS_END, False)
    if type(wants_end) is not bool:
        raise InvalidRequest(f"parameter {_WANTS_END!r} must be true or false")
    values.pop("binary_data_output", None)  # all answers are binary here
    left = {name: value for name, value in values.items() if not name.startswith(_OURS)}
    timeout_s = min(timeout / 1e6, MAX_REQUEST_TIMEOUT_S) if timeout else DEFAULT_REQUEST_TIMEOUT_S
    return left, timeout_s, wants_end


def _refuse_duplicates(names: list[str] | tuple[str, ...], kind: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"{kind} {twice!r} is given twice")


def encode(
    response: InferResponse,
    part: ResponsePart,
    form: AnswerForm,
    regions: Regions,
    is_last: bool | None = None,
) -> bytes:
    """Return a part of an answer as an encoded `ModelInferResponse`.

    Raw contents are appended to the rest as they are, which is how protobuf has repeated fields: a message
    that held them would copy each.

    Args:
        response: Tells which model and version answered.
        part: The part.
        form: What `decode` returned with the request.
        regions: Shared memory that the caller may name.
        is_last: Whether it is the answer's last, where that is told.

    Raises:
        InvalidRequest: if an output does not fit where it is wanted.
    """
    parameters: Mapping[str, Scalar] = part.parameters
    if is_last is not None:
        parameters = {**parameters, _IS_LAST: is_last}
    head = _head(response, form, parameters)
    raw: list[Buffer] = []
    for tensor in part.outputs:
        if tensor.name in form.classes:
            tensor = classified(tensor, form.classes[tensor.name], batched=form.batched)
        told = head.outputs.add(name=tensor.name, datatype=str(tensor.datatype))
        told.shape.extend(tensor.shape)
        place = form.places.get(tensor.name)
        if place is None:
            raw += (_RAW_OUTPUT, _varint(tensor.size_bytes), tensor.data)
            continue
        if tensor.size_bytes > place.size_bytes:
            raise InvalidRequest(
                f"output {tensor.name!r} has {tensor.size_bytes} bytes, more than the {place.size_bytes} that "
                f"the request keeps for it in shared memory {place.region!r}"
            )
        regions.write(place.region, place.offset, tensor.data)
        told.parameters[_REGION].string_param = place.region
        told.parameters[_REGION_SIZE].int64_param = tensor.size_bytes
        if place.offset:
            told.parameters[_REGION_OFFSET].int64_param = place.offset
        raw += (_RAW_OUTPUT, b"\0")  # clients count outputs and raw contents alike
    return b"".join((head.SerializeToString(), *raw))


def _head(response: InferResponse, form: AnswerForm, parameters: Mapping[str, Scalar]) -> Any:
    """Return a `ModelInferResponse` without outputs."""
    head = messages().ModelInferResponse(
        model_name=response.model, model_version=str(response.version), id=form.id
    )
    for name, value in parameters.items():
        _set(head.parameters[name], value)
    return head


def _set(parameter: Any, value: Scalar) -> None:
    if isinstance(value, bool):
        parameter.bool_param = value
    elif isinstance(value, int):
        if -(2**63) <= value < 2**63:
            parameter.int64_param = value
        else:
            parameter.double_param = float(value)
    elif isinstance(value, float):
        parameter.double_param = value
    else:
        parameter.string_param = value


def _varint(number: int) -> bytes:
    """Return a length as protobuf writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
