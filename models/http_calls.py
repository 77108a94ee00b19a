"""HTTP requests and JSON documents as tensors and parameters, so that they travel like any inference.

A version whose interface is `HTTP` takes one UINT8 tensor `body` of shape [1, n]: the request's body.
What else an HTTP request says is in parameters; so is what an answer says beside its body:

| parameter | of | |
|---|---|---|
| `http_method`, `http_path`, `http_query` | requests | path decoded, query as sent |
| `http_headers` | both | JSON: a list of [name, value] pairs, names in lower case |
| `http_status` | the first part of an answer | 200 where it is missing; where it is there, no content type is assumed |
| `stream`, `accept`, `content_type` | documents | see below |

A version whose interface is `JSON` takes one BYTES element `request` and gives one BYTES element
`response`, or several parts with one each. A document that asks for a stream, or for something else than
JSON, says so in the parameters `stream` and `accept`, and a document that is no JSON has a `content_type`;
an answer that is no JSON has a content type among its `http_headers`. A version with HTTP routes takes JSON documents as well: a `body` without a method.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest, TooLarge
from meshnode.limits import MAX_CALL_TEXT_BYTES, MAX_HEADERS
from meshnode.models.execution import Interface
from meshnode.models.manifest import TensorSpec
from meshnode.types import DataType, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.types import Buffer, Scalar

BODY: Final = "body"
REQUEST: Final = "request"
RESPONSE: Final = "response"
METHOD: Final = "http_method"
PATH: Final = "http_path"
QUERY: Final = "http_query"
HEADERS: Final = "http_headers"
STATUS: Final = "http_status"
STREAM: Final = "stream"
ACCEPT: Final = "accept"
CONTENT_TYPE: Final = "content_type"

FIELDS: Final = "application/vnd.meshnode.fields"
"""Content type of a document that is a form: a MessagePack map of the fields' contents by name."""

HTTP_TENSORS: Final = (TensorSpec(BODY, DataType.UINT8, (1, -1)),)
"""Inputs, and outputs, of a version with HTTP routes. The first dimension makes a request one row."""

_LENGTH: Final = struct.Struct("<I")
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
    | {"te", "trailer", "transfer-encoding", "upgrade", "expect", "content-length"}
)
"""Headers about one connection (RFC 9110, 7.6.1): they say nothing about what is asked or answered."""
_OURS: Final = frozenset({"date", "server", "mesh-route", "mesh-error", "x-request-id"})
_Pairs = tuple[tuple[str, str], ...]


def json_tensors(max_batch_size: int = 0) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return inputs and outputs of a version that takes JSON documents, that many at once."""
    shape = (-1 if max_batch_size else 1,)
    return (
        (TensorSpec(REQUEST, DataType.BYTES, shape),),
        (TensorSpec(RESPONSE, DataType.BYTES, shape),),
    )


@dataclass(frozen=True, slots=True)
class HttpCall:
    """An HTTP request on its way to a model.

    Attributes:
        method: Upper case.
        path: Decoded, beginning with `/`.
        query: What follows `?`, as sent.
        headers: Names in lower case; those about the connection and the mesh's API keys left out.
        body: The bytes as sent.
    """

    method: str
    path: str
    query: str = ""
    headers: _Pairs = ()
    body: Buffer = b""


@dataclass(frozen=True, slots=True)
class HttpHead:
    """What an answer says before its body."""

    status: int = 200
    headers: _Pairs = ()

    def header(self, name: str, default: str = "") -> str:
        """Return the value of a header; `name` in lower case."""
        return next((value for key, value in self.headers if key == name), default)


def passed_on(headers: Iterable[tuple[str, str]], secret: Iterable[str] = ()) -> _Pairs:
    """Return the headers of a request that a model is given.

    Args:
        headers: All of them.
        secret: Lower-case names that hold what is meant for the gateway only.
    """
    hidden = {*_HOP_BY_HOP, *secret}
    return tuple((name.lower(), value) for name, value in headers if name.lower() not in hidden)


def answer_headers(head: HttpHead) -> dict[str, str]:
    """Return the headers of a model's answer that a gateway sends; several of a name are joined.

    Raises:
        InferenceFailed: if a name or value cannot be a header.
    """
    found: dict[str, str] = {}
    for name, value in head.headers:
        key = name.lower()
        if key in _HOP_BY_HOP or key in _OURS:
            continue
        if not _is_token(key) or any(ord(char) < 32 and char != "\t" for char in value):
            raise InferenceFailed(f"the model answered with a malformed header {name[:40]!r}")
        title = "-".join(word.capitalize() for word in key.split("-"))
        found[title] = f"{found[title]}, {value}" if title in found else value
    return found


def encode_call(call: HttpCall) -> tuple[Tensor, dict[str, Scalar]]:
    """Return an HTTP request as a tensor and parameters.

    Raises:
        TooLarge: if its headers and query take too many bytes.
    """
    headers = msgspec.json.encode(call.headers).decode()
    if len(headers) + len(call.path) + len(call.query) > MAX_CALL_TEXT_BYTES:
        raise TooLarge(
            f"path, query and headers have more than {MAX_CALL_TEXT_BYTES} bytes; send less in them"
        )
    parameters: dict[str, Scalar] = {METHOD: call.method, PATH: call.path, HEADERS: headers}
    if call.query:
        parameters[QUERY] = call.query
    return body_tensor(call.body), parameters


def decode_call(body: Buffer, parameters: Mapping[str, Scalar]) -> HttpCall | None:
    """Return the HTTP request that an inference is, or None if it is a JSON document.

    Args:
        body: Content of its only tensor.
        parameters: Of the inference.

    Raises:
        InvalidRequest: if it is neither.
    """
    method = parameters.get(METHOD)
    if method is None:
        return None
    path = parameters.get(PATH, "/")
    query = parameters.get(QUERY, "")
    if not (isinstance(method, str) and isinstance(path, str) and isinstance(query, str)):
        raise InvalidRequest(f"the parameters {METHOD}, {PATH} and {QUERY} must be texts")
    return HttpCall(method, path, query, _headers(parameters), body)


def head_parameters(head: HttpHead) -> dict[str, Scalar]:
    """Return an answer's status and headers as parameters."""
    parameters: dict[str, Scalar] = {STATUS: head.status}
    if head.headers:
        parameters[HEADERS] = msgspec.json.encode(head.headers).decode()
    return parameters


def head_of(parameters: Mapping[str, Scalar]) -> HttpHead:
    """Return what an answer's parameters say of its status and headers.

    Raises:
        InferenceFailed: if they are malformed.
    """
    status = parameters.get(STATUS, 200)
    if not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599:
        raise InferenceFailed(f"the model answered with the HTTP status {status!r}")
    try:
        return HttpHead(status, _headers(parameters))
    except InvalidRequest as error:
        raise InferenceFailed(f"the model answered with headers that are none: {error}") from None


def has_head(parameters: Mapping[str, Scalar]) -> bool:
    """Whether an answer says what it is; one that does not is a JSON document.

    A framework's answer always does, also where it names no header at all.
    """
    return STATUS in parameters or HEADERS in parameters


def body_tensor(data: Buffer) -> Tensor:
    """Return bytes as the tensor `body`."""
    return Tensor(BODY, DataType.UINT8, (1, memoryview(data).nbytes), data)


def document_tensor(name: str, data: Buffer) -> Tensor:
    """Return bytes as one BYTES element, `request` or `response`."""
    text = bytes(data)
    return Tensor(name, DataType.BYTES, (1,), _LENGTH.pack(len(text)) + text)


def document(manifest: Manifest, data: Buffer) -> Tensor:
    """Return a JSON document as the input that a version takes.

    Raises:
        InvalidRequest: if it takes tensors.
    """
    match manifest.execution.interface:
        case Interface.JSON:
            return document_tensor(REQUEST, data)
        case Interface.HTTP:
            return body_tensor(data)
    raise InvalidRequest(
        f"model {manifest.model!r} takes tensors, not a JSON document; use "
        f"/v2/models/{manifest.model}/infer"
    )


def content_of(tensors: Sequence[Tensor]) -> memoryview:
    """Return the bytes of a request or of a part of an answer; empty if there are none.

    Raises:
        InvalidRequest: if they are in no known form.
    """
    if not tensors:
        return memoryview(b"")
    if len(tensors) > 1:
        raise InvalidRequest(f"one tensor was expected, not {len(tensors)}")
    (tensor,) = tensors
    data = memoryview(tensor.data).cast("B")
    if tensor.datatype is DataType.UINT8:
        return data
    if tensor.datatype is not DataType.BYTES or tensor.elements != 1 or data.nbytes < 4:
        raise InvalidRequest(
            f"tensor {tensor.name!r} must be one {DataType.BYTES} element or {DataType.UINT8}"
        )
    (length,) = _LENGTH.unpack_from(data)
    if length != data.nbytes - 4:
        raise InvalidRequest(f"tensor {tensor.name!r} has {data.nbytes - 4} bytes, not {length}")
    return data[4:]


def _headers(parameters: Mapping[str, Scalar]) -> _Pairs:
    text = parameters.get(HEADERS)
    if text is None:
        return ()
    try:
        pairs = msgspec.json.decode(text if isinstance(text, str) else "", type=_Pairs)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidRequest(f"parameter {HEADERS} is not a list of pairs: {error}") from None
    if len(pairs) > 4 * MAX_HEADERS:
        raise InvalidRequest(f"parameter {HEADERS} has {len(pairs)} headers; that is too many")
    return pairs


def _is_token(name: str) -> bool:
    return bool(name) and all(
        char.isascii() and (char.isalnum() or char in "!#$%&'*+-.^_`|~") for char in name
    )
