"""Open Inference Protocol (KServe v2) over REST, with Triton's extensions: `…/infer`.

A request is a JSON object; its tensors' data is inside it, or follows it as bytes::

    {"id"?, "parameters"?, "inputs": [{"name", "shape", "datatype", "parameters"?, "data"}],
     "outputs"?: [{"name", "parameters"?}]}                       <bytes of input 1><bytes of input 2>

`Inference-Header-Content-Length` is the length of the JSON when bytes follow. An input whose bytes
follow has the parameter `binary_data_size`; an output with `binary_data` is answered so, and
`binary_data_output` of the request is the default for all of them. A header of 0 means that the
whole body is the one input of the model, at batch size 1; all outputs are then binary.

gzip and deflate cover the whole body, in both directions. Unknown members are ignored.

`timeout` (microseconds) becomes the request's deadline; `binary_data_output` is consumed here; the
other parameters reach the model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols.classification import classified
from meshnode.gateway.protocols.content_coding import compress, decompress, wanted_coding
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.protocols.tensors import (
    DATATYPES,
    FLOATS,
    check_data,
    pack_json,
    pack_values,
    unpack,
)
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_COMPRESSED_BYTES,
    MAX_REQUEST_PARAMETERS,
    MAX_REQUEST_TENSORS,
    MAX_REQUEST_TEXT_LENGTH,
    MAX_REQUEST_TIMEOUT_S,
    MAX_TENSOR_ELEMENTS,
    MAX_TENSOR_RANK,
    MIN_COMPRESSED_BYTES,
)
from meshnode.models.execution import Interface
from meshnode.models.manifest import check_form
from meshnode.types import (
    Buffer,
    DataType,
    InferRequest,
    InferResponse,
    ResponsePart,
    Scalar,
    Tensor,
)

if TYPE_CHECKING:
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.tracing import Trace

_HEADER_LENGTH = "inference-header-content-length"

Parameters = dict[str, Scalar]


_NO_DATA = msgspec.Raw()


class _Input(msgspec.Struct, gc=False):
    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters | None = None
    data: msgspec.Raw = _NO_DATA


class _LooseInput(msgspec.Struct):
    """As `_Input`, for bodies with the literals that only Python's json reads."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: Parameters | None = None
    data: Any = _NO_DATA


class _WantedOutput(msgspec.Struct, gc=False):
    name: str
    parameters: Parameters | None = None


class _Body(msgspec.Struct, gc=False):
    inputs: list[_Input]
    id: str = ""
    parameters: Parameters | None = None
    outputs: list[_WantedOutput] = []


class _LooseBody(msgspec.Struct):
    inputs: list[_LooseInput]
    id: str = ""
    parameters: Parameters | None = None
    outputs: list[_WantedOutput] = []


class _Output(msgspec.Struct, gc=False, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: Mapping[str, Scalar] | None = None
    data: Any = None


class _Answer(msgspec.Struct, gc=False, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_Output]
    id: str = ""
    parameters: Mapping[str, Scalar] | None = None


_BODY = msgspec.json.Decoder(_Body)
_ENCODER = msgspec.json.Encoder()
_NO_PARAMETERS: Parameters = {}
_NO_CLASSES: Mapping[str, int] = {}


class AnswerForm(msgspec.Struct, frozen=True):
    """How the client wants its answer.

    Attributes:
        id: The request's own id, which the answer repeats; empty if it has none.
        binary: Whether outputs are binary unless named in `by_output`.
        by_output: Outputs that ask for one of both by name.
        coding: `gzip`, `deflate`, or empty.
        classes: How many classes are wanted of outputs that are wanted so.
        batched: Whether the first dimension of outputs is the batch; said where classes are wanted only.
    """

    id: str = ""
    binary: bool = False
    by_output: Mapping[str, bool] = {}
    coding: str = ""
    classes: Mapping[str, int] = {}
    batched: bool = False


class InferCall(NamedTuple):
    """A decoded request and the form of its answer."""

    request: InferRequest
    form: AnswerForm


_PLAIN = AnswerForm()


def decode_infer(
    http: HttpRequest,
    manifest: Manifest,
    version: int | None,
    request_id: str = "",
    trace: Trace | None = None,
) -> InferCall:
    """Decode the body of a request to `…/infer`.

    Args:
        http: The request.
        manifest: The model asked for. Its tensors are read for a raw body, and to say what is
            wrong; the pipeline checks every request against it.
        version: The version in the path, or None.
        request_id: The id for logs. The body's own only comes back in the answer: a client may
            use the same for every request, and the answer's header must lead to the right lines.
        trace: The request's, if its caller named one.

    Returns:
        The request, whose tensors are views of the body where they came as bytes, so that it
        lives as long as they do, and the form of its answer.

    Raises:
        InvalidRequest: with what was expected.
        TooLarge: if the decompressed body exceeds its limit.
    """
    headers = http.headers
    body: Buffer = http.body
    if (coding := headers.get("content-encoding")) and coding.strip().lower() != "identity":
        body = decompress(body, coding, MAX_BODY_BYTES)
    wanted = wanted_coding(headers.get("accept-encoding"))
    header_length = headers.get(_HEADER_LENGTH)
    if header_length is None:
        return _decode(body, b"", manifest, version, request_id, trace, wanted)
    length = _length(header_length, memoryview(body).nbytes)
    if length == 0:
        tensor = raw_input(manifest, body)
        return InferCall(
            InferRequest(manifest.model, (tensor,), version, (), request_id, trace=trace),
            AnswerForm(binary=True, coding=wanted),
        )
    view = memoryview(body)
    return _decode(view[:length], view[length:], manifest, version, request_id, trace, wanted)


def decode(asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None) -> Call:
    """Decode a request to `…/infer`; see `decode_infer`."""
    refuse_parts(manifest)
    request, form = decode_infer(asked.http, manifest, manifest.version, request_id, trace)
    return Call(request, form)


def refuse_parts(manifest: Manifest) -> None:
    """Refuse a request for one answer to a model that is declared to give any number, before it runs.

    A predictor of JSON documents is declared so because it may stream; what it answers in one part is an answer.

    Raises:
        HttpRefusal: 501, as Triton says.
    """
    execution = manifest.execution
    if execution.decoupled and execution.interface is Interface.TENSORS:
        raise HttpRefusal(
            501,
            f"model {manifest.model!r} answers in any number of parts (decoupled), which this call cannot carry; nothing "
            f"ran: use gRPC's ModelStreamInfer, or POST /v2/models/{manifest.model}/generate_stream",
        )


def _length(text: str, body_bytes: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10 or int(text) > body_bytes:
        raise InvalidRequest(
            f"Inference-Header-Content-Length is {text[:40]!r}; it must be the length of the JSON "
            f"at the front of the body, which has {body_bytes} bytes"
        )
    return int(text)


def _decode(
    text: Buffer,
    binary: Buffer,
    manifest: Manifest,
    version: int | None,
    request_id: str,
    trace: Trace | None,
    coding: str,
) -> InferCall:
    model = manifest.model
    body = _parse(text)
    if len(body.inputs) > MAX_REQUEST_TENSORS or len(body.outputs) > MAX_REQUEST_TENSORS:
        raise InvalidRequest(f"a request has at most {MAX_REQUEST_TENSORS} inputs and outputs")
    inputs: list[Tensor] = []
    used = 0
    for item in body.inputs:
        tensor = _tensor(manifest, item, binary, used)
        if item.data is _NO_DATA:
            used += tensor.size_bytes
        inputs.append(tensor)
    if used != len(binary):
        raise InvalidRequest(
            f"{len(binary)} bytes follow the JSON, but the inputs' binary_data_size add up to {used}"
        )
    if len(inputs) != 1:
        _refuse_duplicates([tensor.name for tensor in inputs], "input")
    parameters = body.parameters
    if not parameters and not body.outputs and not body.id and not coding:
        return InferCall(
            InferRequest(model, tuple(inputs), version, (), request_id, trace=trace), _PLAIN
        )
    _check_texts(body)
    left, timeout_s, binary_outputs = take_parameters(parameters or _NO_PARAMETERS)
    classes = _classes(body) if body.outputs else _NO_CLASSES
    batched = bool(classes) and manifest.max_batch_size > 0
    outputs = tuple([output.name for output in body.outputs])
    _refuse_duplicates(outputs, "output")
    by_output = {
        output.name: _flag(output.parameters, "binary_data")
        for output in body.outputs
        if output.parameters and "binary_data" in output.parameters
    }
    return InferCall(
        InferRequest(model, tuple(inputs), version, outputs, request_id, left, timeout_s, trace),
        AnswerForm(body.id, binary_outputs, by_output, coding, classes, batched),
    )


def _classes(body: _Body | _LooseBody) -> Mapping[str, int]:
    """Return how many classes are wanted of each output; those that want all of their values are left out."""
    found: dict[str, int] = {}
    for output in body.outputs:
        count = (output.parameters or _NO_PARAMETERS).get("classification", 0)
        if type(count) is not int or count < 0:
            raise InvalidRequest(
                f"output {output.name!r}: the parameter 'classification' is the number of classes wanted"
            )
        if count:
            found[output.name] = count
    return found or _NO_CLASSES


def _parse(text: Buffer) -> _Body | _LooseBody:
    try:
        return _BODY.decode(text)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is no inference request: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body's JSON is nested too deeply") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if b"NaN" in (plain := bytes(text)) or b"Infinity" in plain:
            return _parse_loosely(plain)
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def _parse_loosely(text: bytes) -> _LooseBody:
    """Read JSON with the literals NaN, Infinity and -Infinity, as Triton does."""
    try:
        return msgspec.convert(json.loads(text), _LooseBody)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"the body is no inference request: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("the body's JSON is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise InvalidRequest(f"the body is not JSON: {error}") from error


def _tensor(manifest: Manifest, item: _Input | _LooseInput, binary: Buffer, offset: int) -> Tensor:
    datatype = DATATYPES.get(item.datatype)
    if datatype is None:
        raise InvalidRequest(
            f"input {item.name!r} has datatype {item.datatype[:40]!r}; known ones are "
            f"{', '.join(DATATYPES)}"
        )
    parameters = item.parameters
    data: Buffer | None = None
    if parameters and "binary_data_size" in parameters:
        data = _binary_input(item, binary, offset)
    elif item.data is _NO_DATA:
        raise InvalidRequest(_no_data(item))
    try:
        if data is not None:
            check_data(item.name, datatype, item.shape, data)
        elif isinstance(item, _Input):
            data = pack_json(item.name, datatype, item.shape, item.data)
        else:
            data = pack_values(item.name, datatype, item.shape, item.data)
    except InvalidRequest:
        _explain(manifest, item, datatype)
        raise
    return Tensor(item.name, datatype, item.shape, data)


def _explain(manifest: Manifest, item: _Input | _LooseInput, datatype: DataType) -> None:
    """Raise what the model expected, if an input whose data is wrong has a wrong form as well.

    Data of the wrong length is mostly a wrong shape, and a sentence about lengths leads astray.
    """
    spec = next((spec for spec in manifest.inputs if spec.name == item.name), None)
    possible = len(item.shape) <= MAX_TENSOR_RANK and all(
        0 <= n <= MAX_TENSOR_ELEMENTS for n in item.shape
    )
    if spec is not None and possible:
        check_form(manifest, spec, Tensor(item.name, datatype, item.shape, b""))


def _no_data(item: _Input | _LooseInput) -> str:
    if item.parameters and "shared_memory_region" in item.parameters:
        return (
            f"input {item.name!r} is in shared memory, which a mesh cannot reach; send its data "
            "as JSON or as binary_data_size bytes"
        )
    return f"input {item.name!r} has neither data nor the parameter binary_data_size"


def _binary_input(item: _Input | _LooseInput, binary: Buffer, offset: int) -> Buffer:
    assert item.parameters is not None
    size = item.parameters["binary_data_size"]
    if item.data is not _NO_DATA:
        raise InvalidRequest(f"input {item.name!r} has both data and binary_data_size")
    if type(size) is not int or size < 0:
        raise InvalidRequest(f"input {item.name!r}: binary_data_size must be a number of bytes")
    if offset + size > len(binary):
        raise InvalidRequest(
            f"input {item.name!r} has a binary_data_size of {size}, but {len(binary) - offset} "
            "bytes are left after the JSON; is Inference-Header-Content-Length set?"
        )
    return binary[offset : offset + size]


def _refuse_duplicates(names: list[str] | tuple[str, ...], kind: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"{kind} {twice!r} is given twice")


def _check_texts(body: _Body | _LooseBody) -> None:
    parameters = body.parameters or _NO_PARAMETERS
    if len(parameters) > MAX_REQUEST_PARAMETERS:
        raise InvalidRequest(
            f"a request has at most {MAX_REQUEST_PARAMETERS} parameters, not {len(parameters)}"
        )
    characters = (
        len(body.id)
        + sum(len(output.name) for output in body.outputs)
        + sum(len(name) + len(str(value)) for name, value in parameters.items())
    )
    if characters > MAX_REQUEST_TEXT_LENGTH:
        raise InvalidRequest(
            "the id, the outputs' names and the parameters have more than "
            f"{MAX_REQUEST_TEXT_LENGTH} characters"
        )


def take_parameters(parameters: Parameters) -> tuple[Parameters, float, bool]:
    """Return the model's parameters, the deadline in seconds, and whether outputs are binary.

    Raises:
        InvalidRequest: if one of the protocol's own is malformed.
    """
    if not parameters:
        return _NO_PARAMETERS, DEFAULT_REQUEST_TIMEOUT_S, False
    left = dict(parameters)
    timeout = left.pop("timeout", 0)
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout >= 0:
        raise InvalidRequest("parameter 'timeout' must be a number of microseconds, 0 or more")
    check_scheduling(left)
    binary = _flag(left, "binary_data_output")
    left.pop("binary_data_output", None)
    timeout_s = min(timeout / 1e6, MAX_REQUEST_TIMEOUT_S) if timeout else DEFAULT_REQUEST_TIMEOUT_S
    return left, timeout_s, binary


def check_scheduling(parameters: Parameters) -> None:
    """Check what the protocol lets a request say of its place: its priority, and its sequence.

    Raises:
        InvalidRequest: about the first that is malformed.
    """
    priority, sequence = parameters.get("priority", 0), parameters.get("sequence_id", 0)
    if not _is_count(priority):
        raise InvalidRequest("parameter 'priority' must be a whole number, 0 or more")
    if not _is_count(sequence) and type(sequence) is not str:
        raise InvalidRequest(
            "parameter 'sequence_id' must be a whole number from 0 to 2^64-1, or a string"
        )
    for name in ("sequence_start", "sequence_end"):
        _flag(parameters, name)


def _is_count(value: Scalar) -> bool:
    return type(value) is int and 0 <= value < 2**64


def _flag(parameters: Mapping[str, Scalar] | None, name: str) -> bool:
    value = (parameters or _NO_PARAMETERS).get(name, False)
    if type(value) is not bool:
        raise InvalidRequest(f"parameter {name!r} must be true or false")
    return value


def raw_input(manifest: Manifest, body: Buffer) -> Tensor:
    """Return the one input of a model made from a whole body, at batch size 1.

    Raises:
        InvalidRequest: if the model has several inputs, or the body is not of its size.
    """
    if len(manifest.inputs) != 1:
        raise InvalidRequest(
            f"a raw body (Inference-Header-Content-Length: 0) is for models with one input; "
            f"{manifest.model!r} has {len(manifest.inputs)}"
        )
    spec = manifest.inputs[0]
    shape = list(spec.shape)
    if manifest.max_batch_size > 0 and shape:
        shape[0] = 1
    if spec.datatype is DataType.BYTES:
        return _raw_string(manifest, spec, shape, body)
    element_bytes = spec.datatype.size_bytes
    assert element_bytes is not None
    size_bytes = memoryview(body).nbytes
    if shape.count(-1) > 1:
        raise InvalidRequest(
            f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)}: with "
            "more than one variable dimension it cannot be read from a raw body"
        )
    if -1 in shape:
        unit_bytes = element_bytes * math.prod(size for size in shape if size != -1)
        if unit_bytes == 0 or size_bytes % unit_bytes:
            raise InvalidRequest(
                f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)} of "
                f"{spec.datatype}, so a multiple of {unit_bytes} bytes is expected, not {size_bytes}"
            )
        shape[shape.index(-1)] = size_bytes // unit_bytes
    check_data(spec.name, spec.datatype, shape, body)
    return Tensor(spec.name, spec.datatype, tuple(shape), body)


def _raw_string(manifest: Manifest, spec: TensorSpec, shape: list[int], body: Buffer) -> Tensor:
    if any(size not in (1, -1) for size in shape):
        raise InvalidRequest(
            f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)} of "
            "BYTES; a raw body can only be a single element"
        )
    data = struct.pack("<I", memoryview(body).nbytes) + bytes(body)
    return Tensor(spec.name, spec.datatype, (1,) * len(shape), data)


def encode(response: InferResponse, part: ResponsePart, form: AnswerForm) -> HttpResponse:
    """Encode an answer.

    Args:
        response: Tells which model and version answered.
        part: The answer's only part.
        form: What `decode_infer` returned with the request.

    Raises:
        InvalidRequest: if an output cannot be JSON.
    """
    outputs: list[_Output] = []
    buffers: list[Buffer] = []
    for tensor in part.outputs:
        if form.classes and (count := form.classes.get(tensor.name)):
            tensor = classified(tensor, count, batched=form.batched)
        if form.by_output.get(tensor.name, form.binary):
            size: Parameters = {"binary_data_size": tensor.size_bytes}
            outputs.append(_Output(tensor.name, tensor.datatype, tensor.shape, size))
            buffers.append(tensor.data)
        else:
            outputs.append(
                _Output(tensor.name, tensor.datatype, tensor.shape, None, unpack(tensor))
            )
    answer = _Answer(
        response.model, str(response.version), outputs, form.id, part.parameters or None
    )
    text = _ENCODER.encode(answer)
    if b"null" in text:
        text = _with_literals(answer)
    if not buffers and not form.coding:
        return HttpResponse(200, JSON_HEADERS, text)
    return _framed(text, buffers, form.coding)


def _with_literals(answer: _Answer) -> bytes:
    """Encode again: msgspec writes NaN and infinities as null, Triton's clients read literals."""
    for output in answer.outputs:
        if output.data is not None and DATATYPES[output.datatype] in FLOATS:
            text = json.dumps(output.data, separators=(",", ":"))
            output.data = msgspec.Raw(text.encode())
    return _ENCODER.encode(answer)


def _framed(text: bytes, buffers: list[Buffer], coding: str) -> HttpResponse:
    headers = dict(JSON_HEADERS)
    parts: list[Buffer] = [text, *buffers]
    if buffers:
        headers["Content-Type"] = "application/octet-stream"
        headers["Inference-Header-Content-Length"] = str(len(text))
    response = HttpResponse(200, headers, parts)
    if coding and MIN_COMPRESSED_BYTES <= response.size_bytes <= MAX_COMPRESSED_BYTES:
        headers["Content-Encoding"] = coding
        return HttpResponse(200, headers, compress(parts, coding))
    return response
