"""The native dialect: `POST /mesh/v1/models/M/infer` and `…/stream`, in plain JSON with the model's own names.

A request::

    {"inputs": {NAME: value, ...}, "parameters"?: {NAME: scalar}, "outputs"?: [NAME, ...],
     "version"?: number, "timeout_s"?: seconds, "encoding"?: "json" | "b64", "resume"?: true | false}

A value is a number or text, or lists of them nested as deep as the tensor has dimensions; leading dimensions
of 1 may be left out. The model says which datatype it is. JSON has no NaN and no infinities: they are the texts
`"NaN"`, `"Infinity"` and `"-Infinity"`, in both directions, so that every JSON parser can read an answer. Elements
of BYTES are texts, or `{"b64": ...}` where they are none. A whole tensor may be `{"b64", "shape"?, "datatype"?}`:
its bytes, little-endian, and for BYTES with a shape each element after its u32 length; without a shape the one
dimension that is free follows from the length, and BYTES are one element.

A model that takes a JSON document has one input, `request`, whose value is that document, whatever it is; the
answer's `response` is a document as well. One with HTTP routes of its own calls them `body`.

An answer is `{"model", "version", "outputs": {NAME: value, ...}, "parameters"?}`; with the encoding `b64` each
output is `{"b64", "datatype", "shape"}`.

A stream consists of server-sent events: `part` (`{"outputs", "parameters"?}`) for each part of the answer, and
last either `done` (`{"model", "version", "parts"}`) or `error` (`{"error", "code"}`). One that ends without either was
cut off. Who sends it numbers the events (`meshnode.gateway.event_streams`).
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest, MeshError, Saturated
from meshnode.gateway.protocols.content_coding import compress, decompress, wanted_coding
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse
from meshnode.gateway.protocols.plain_tensors import input_named, nest, plain, tensor_of
from meshnode.gateway.protocols.status import CODED, ErrorForm, status_of
from meshnode.gateway.protocols.tensors import DATATYPES, FLOATS, check_data
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_COMPRESSED_BYTES,
    MAX_REQUEST_PARAMETERS,
    MAX_REQUEST_TENSORS,
    MAX_REQUEST_TEXT_LENGTH,
    MAX_REQUEST_TIMEOUT_S,
    MAX_TENSOR_RANK,
    MAX_VERSION,
    MIN_COMPRESSED_BYTES,
)
from meshnode.models.execution import Interface
from meshnode.models.http_calls import (
    BODY,
    HEADERS,
    REQUEST,
    STATUS,
    STREAM,
    HttpHead,
    body_tensor,
    content_of,
    document_tensor,
    has_head,
    head_of,
)
from meshnode.types import DataType, InferRequest, Scalar, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, ResponsePart

EVENT_STREAM: Final = "text/event-stream"
_NUMBERS: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ABOUT_THE_ANSWER: Final = frozenset({STATUS, HEADERS})

Encoding = Literal["json", "b64"]


class NativeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a native request; see the top of this module.

    Attributes:
        inputs: By the model's names.
        parameters: For the model.
        outputs: Names of the outputs wanted; empty for all.
        version: The version that the caller insists on.
        timeout_s: Seconds until an answer must have begun.
        encoding: How the answer writes tensors.
        resume: Of a stream: whether it may be taken up again after the connection was lost. It then goes on for a
            while without its reader.
    """

    inputs: dict[str, msgspec.Raw]
    parameters: dict[str, Scalar] = {}
    outputs: Annotated[list[str], msgspec.Meta(max_length=MAX_REQUEST_TENSORS)] = []
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)] | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    encoding: Encoding = "json"
    resume: bool = True


class Form(msgspec.Struct, frozen=True):
    """How the client wants its answer.

    Attributes:
        encoding: Of tensors.
        interface: What the model gives.
        coding: `gzip`, `deflate`, or empty.
    """

    encoding: Encoding = "json"
    interface: Interface = Interface.TENSORS
    coding: str = ""


def _status(error: MeshError) -> int:
    return 429 if isinstance(error, Saturated) else status_of(error)


ERRORS: Final = ErrorForm(CODED.document, _status)
"""Of the paths below a model: as everywhere in `/mesh/v1`, but full queues are 429."""

_BODY = msgspec.json.Decoder(NativeBody)
_VALUE = msgspec.json.Decoder()


def read_body(http: HttpRequest) -> NativeBody:
    """Read the body of a request.

    Raises:
        InvalidRequest: if it is no native request; names the field.
        TooLarge: if the decompressed body exceeds its limit.
    """
    text: Buffer = http.body
    coding = http.headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        text = decompress(text, coding, MAX_BODY_BYTES)
    try:
        body = _BODY.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(
            f'the body is no native inference request, such as {{"inputs": {{"NAME": [1, 2]}}}}: {error}'
        ) from error
    _check_sizes(body)
    return body


def what_is_asked(body: NativeBody) -> bytes:
    """Return all of a request that decides about its answer: not how long its client waits, nor whether it comes back."""
    return msgspec.json.encode(
        (body.inputs, body.parameters, body.outputs, body.version, body.encoding)
    )


def _check_sizes(body: NativeBody) -> None:
    if len(body.inputs) > MAX_REQUEST_TENSORS:
        raise InvalidRequest(f"a request has at most {MAX_REQUEST_TENSORS} inputs")
    if len(body.parameters) > MAX_REQUEST_PARAMETERS:
        raise InvalidRequest(
            f"a request has at most {MAX_REQUEST_PARAMETERS} parameters, not {len(body.parameters)}"
        )
    characters = sum(map(len, body.outputs)) + sum(
        len(name) + (len(value) if isinstance(value, str) else 24)
        for name, value in body.parameters.items()
    )
    if characters > MAX_REQUEST_TEXT_LENGTH:
        raise InvalidRequest(
            f"the outputs' names and the parameters have more than {MAX_REQUEST_TEXT_LENGTH} characters"
        )
    if len(set(body.outputs)) != len(body.outputs):
        raise InvalidRequest("an output is asked for twice")


class InferDialect:
    """`…/infer`: one answer."""

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for; see `Dialect.decode`."""
        body = asked.body if asked.body is not None else read_body(asked.http)
        coding = wanted_coding(asked.http.headers.get("accept-encoding"))
        form = Form(body.encoding, manifest.execution.interface, coding)
        request = _request(body, manifest, request_id, trace, body.parameters)
        return Call(request, form, joined=lambda response: _Only(self, response, form))

    def encode(self, response: InferResponse, part: ResponsePart, form: Form) -> HttpResponse:
        """Return a complete answer of one part."""
        outputs, parameters = _plain(part, form, head_of(part.parameters))
        answer: dict[str, Any] = {
            "model": response.model,
            "version": response.version,
            "outputs": outputs,
        }
        if parameters:
            answer["parameters"] = parameters
        text = msgspec.json.encode(answer)
        if form.coding and MIN_COMPRESSED_BYTES <= len(text) <= MAX_COMPRESSED_BYTES:
            headers = {**JSON_HEADERS, "Content-Encoding": form.coding}
            return HttpResponse(200, headers, compress([text], form.coding))
        return HttpResponse(200, JSON_HEADERS, text)


class _Only:
    """Takes the one part of an answer that has outputs; models that could give more often end with an empty one."""

    headers: Mapping[str, str] = JSON_HEADERS

    def __init__(self, dialect: InferDialect, response: InferResponse, form: Form) -> None:
        self._dialect = dialect
        self._response = response
        self._form = form
        self._found: ResponsePart | None = None

    def part(self, part: ResponsePart) -> bytes:
        if part.outputs:
            if self._found is not None:
                raise InvalidRequest(
                    f"model {self._response.model!r} answers in several parts; ask …/stream instead of …/infer"
                )
            self._found = part
        return b""

    def end(self) -> bytes:
        if self._found is None:
            raise InferenceFailed(
                f"model {self._response.model!r} ended its answer without a result"
            )
        form = msgspec.structs.replace(self._form, coding="")
        made = self._dialect.encode(self._response, self._found, form).body
        return made if isinstance(made, bytes) else b"".join(made)

    def failed(self, _error: MeshError) -> bytes | None:
        return None


class StreamDialect(InferDialect):
    """`…/stream`: server-sent events."""

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for; see `Dialect.decode`."""
        body = asked.body if asked.body is not None else read_body(asked.http)
        form = Form(body.encoding, manifest.execution.interface)
        parameters = body.parameters
        if form.interface is not Interface.TENSORS:
            parameters = {**parameters, STREAM: True}
        request = _request(body, manifest, request_id, trace, parameters)
        return Call(request, form, stream=lambda response: Events(response, form))


class Events:
    """Encodes an answer as server-sent events, without their ids."""

    headers: Mapping[str, str] = {
        "Content-Type": EVENT_STREAM,
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # nginx would collect events
    }

    def __init__(self, response: InferResponse, form: Form) -> None:
        """Encode an answer in this form, or what follows of it."""
        self._response = response
        self._form = form
        self._parts = response.after
        self._head: HttpHead | None = None

    def __repr__(self) -> str:
        return f"<Events of {self._response!r}: {self._parts} parts>"

    def part(self, part: ResponsePart) -> bytes:
        """Return the event of a part; nothing for one that only says that the answer has ended."""
        if not part.says_something:
            return b""
        if self._head is None:
            first = self._response.head if self._parts else None
            self._head = head_of(part.parameters if first is None else first)
        self._parts += 1
        outputs, parameters = _plain(part, self._form, self._head)
        told: dict[str, Any] = {"outputs": outputs}
        if parameters:
            told["parameters"] = parameters
        return event("part", told)

    def end(self) -> bytes:
        """Return the event that says that nothing is missing."""
        told = {
            "model": self._response.model,
            "version": self._response.version,
            "parts": self._parts,
        }
        return event("done", told)

    def failed(self, _error: MeshError) -> None:
        """Leave the error to who keeps the stream: it may go on elsewhere, and one that failed is not given again."""
        return


def event(name: str, data: object) -> bytes:
    """Return a server-sent event without an id; JSON has no line ends, so one line of data holds it."""
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n"


def failure_event(error: MeshError) -> bytes:
    """Return the event that is the last of a stream that failed."""
    sentence = str(error) or f"the request failed ({error.code})"
    return event("error", {"error": sentence, "code": error.code})


# Requests


def _request(
    body: NativeBody,
    manifest: Manifest,
    request_id: str,
    trace: Trace | None,
    parameters: Mapping[str, Scalar],
) -> InferRequest:
    inputs = tuple(_input(manifest, name, value) for name, value in body.inputs.items())
    timeout_s = min(body.timeout_s or DEFAULT_REQUEST_TIMEOUT_S, MAX_REQUEST_TIMEOUT_S)
    return InferRequest(
        manifest.model, inputs, manifest.version, tuple(body.outputs), request_id, parameters,
        timeout_s, trace,
    )  # fmt: skip


def _input(manifest: Manifest, name: str, raw: msgspec.Raw) -> Tensor:
    spec = input_named(manifest, name)
    if spec is None:
        known = ", ".join(f"{each.name!r}" for each in manifest.inputs)
        raise InvalidRequest(
            f"model {manifest.model!r} has no input {name[:80]!r}; its inputs are {known}"
        )
    interface = manifest.execution.interface
    if interface is Interface.JSON and name == REQUEST:
        return document_tensor(REQUEST, bytes(raw))
    try:
        value = _VALUE.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"input {name!r} cannot be read: {error}") from error
    if interface is Interface.HTTP and name == BODY:
        return body_tensor(_from_base64(name, value["b64"]) if _is_base64(value) else bytes(raw))
    if _is_base64(value):
        return _typed(manifest, spec, value)
    if spec.datatype in FLOATS and b'"' in bytes(raw):
        value = _with_numbers(value)
    return tensor_of(manifest, spec, value)


def _is_base64(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("b64"), str)


def _with_numbers(value: object) -> object:
    """Return a value in which the texts of NaN and the infinities are numbers."""
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


def _typed(manifest: Manifest, spec: TensorSpec, value: dict[str, Any]) -> Tensor:
    """Return a tensor given as its bytes.

    Raises:
        InvalidRequest: if they are not what its shape says, or there is something else beside them.
    """
    name = spec.name
    others = value.keys() - {"b64", "shape", "datatype"}
    if others:
        raise InvalidRequest(
            f'input {name!r} has {min(others)[:40]!r} beside "b64"; "shape" and "datatype" may be there'
        )
    data = _from_base64(name, value["b64"])
    datatype = DATATYPES.get(str(value.get("datatype", spec.datatype)))
    if datatype is None:
        raise InvalidRequest(
            f"input {name!r} has datatype {str(value['datatype'])[:40]!r}; known ones are "
            f"{', '.join(DATATYPES)}"
        )
    if "shape" in value:
        shape = _shape(name, value["shape"])
    elif datatype is DataType.BYTES:
        shape = (1,) * len(spec.shape)
        data = struct.pack("<I", len(data)) + data
    else:
        shape = _implied_shape(manifest, spec, len(data) // (datatype.size_bytes or 1))
    check_data(name, datatype, shape, data)
    return Tensor(name, datatype, shape, data)


def _shape(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int for size in value):
        raise InvalidRequest(f"input {name!r}: shape must be a list of whole numbers")
    if len(value) > MAX_TENSOR_RANK:
        raise InvalidRequest(
            f"input {name!r} has {len(value)} dimensions; at most {MAX_TENSOR_RANK} are allowed"
        )
    return tuple(value)


def _implied_shape(manifest: Manifest, spec: TensorSpec, elements: int) -> tuple[int, ...]:
    """Return the shape of so many elements where only one dimension is free."""
    shape = list(spec.shape)
    if shape.count(-1) > 1 and shape[0] == -1:
        shape[0] = 1
    if shape.count(-1) > 1:
        raise InvalidRequest(
            f"input {spec.name!r} of model {manifest.model!r} has shape {list(spec.shape)}: bytes alone do "
            'not tell it; send "shape" beside "b64"'
        )
    if -1 in shape:
        fixed = math.prod(size for size in shape if size != -1)
        shape[shape.index(-1)] = elements // fixed if fixed else 0
    return tuple(shape)


def _from_base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"input {name!r}: b64 is no base64: {error}") from None


# Answers


def _plain(
    part: ResponsePart, form: Form, head: HttpHead
) -> tuple[dict[str, Any], dict[str, Scalar]]:
    """Return the outputs and the parameters of a part as JSON can carry them."""
    if form.interface is not Interface.TENSORS and len(part.outputs) == 1:
        name = part.outputs[0].name
        parameters = {
            key: value for key, value in part.parameters.items() if key not in _ABOUT_THE_ANSWER
        }
        return {name: _document(part, head)}, parameters
    encode = _exact if form.encoding == "b64" else _value
    return {each.name: encode(each) for each in part.outputs}, dict(part.parameters)


def _document(part: ResponsePart, head: HttpHead) -> Any:
    """Return what a model answers that takes documents: JSON, text, or bytes in base64.

    Raises:
        InvalidRequest: if the model refused the request.
        InferenceFailed: if it failed, or its answer is no document.
    """
    try:
        content = bytes(content_of(part.outputs))
    except InvalidRequest as error:
        raise InferenceFailed(f"the model's answer is no document: {error}") from None
    if head.status >= 400:
        refusal = InvalidRequest if head.status < 500 else InferenceFailed
        raise refusal(
            f"the model answered with {head.status}: {content[:1000].decode(errors='replace')}"
        )
    media_type = head.header("content-type").partition(";")[0].strip().lower()
    if not has_head(part.parameters) and not media_type:
        media_type = "application/json"
    if media_type.endswith("json"):
        try:
            return _VALUE.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass
    try:
        return content.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(content).decode(), "content_type": media_type}


def _exact(tensor: Tensor) -> dict[str, Any]:
    data = base64.b64encode(tensor.data).decode()
    return {"b64": data, "datatype": str(tensor.datatype), "shape": [*tensor.shape]}


def _value(tensor: Tensor) -> Any:
    values: list[Any] = plain(tensor)
    if tensor.datatype in FLOATS and not all(map(math.isfinite, values)):
        values = [value if math.isfinite(value) else _text(value) for value in values]
    return nest(values, tensor.shape)


def _text(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"
