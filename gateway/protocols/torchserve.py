"""TorchServe's inference API: `/predictions/MODEL`, and how it tells errors.

A model that takes documents (an archive, a predictor) is given the body as it was sent, or the fields of a form; one
that says which files it takes (`meshnode.models.uploads`) is given those as it is at `/inference/MODEL`. A model that takes
tensors is given plain JSON, or bytes:

| body | tensors |
|---|---|
| a JSON object with the inputs' names | these |
| any other JSON, of a model with one input | that one; `data`, `instances` or `inputs` may be around it |
| a form | each field is an input by its name; a single field is the only input |
| a picture, as a body or a field, for an input that has the shape of one | the picture's points |
| anything else, of a model with one input | its bytes: the elements, or one element of BYTES |

One row may be sent without a dimension for the batch; then the answer has none either. The answer is the only
output, or an object of all by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest, MeshError, ModelNotFound
from meshnode.gateway.protocols import multipart
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.endpoint import decode_document
from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.gateway.protocols.oip import raw_input
from meshnode.gateway.protocols.plain_tensors import input_named, nested, tensor_of, text_or_b64
from meshnode.gateway.protocols.status import ErrorForm
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_ACCEPT_LENGTH,
    MAX_BODY_BYTES,
    MODEL_CALL_TIMEOUT_S,
)
from meshnode.models.execution import Interface, Spelling
from meshnode.models.http_calls import (
    ACCEPT,
    CONTENT_TYPE,
    FIELDS,
    answer_headers,
    content_of,
    document,
    has_head,
    head_of,
)
from meshnode.models.media_types import sniffed
from meshnode.models.uploads import PICTURES, Kind, Upload, uploads_of
from meshnode.types import DataType, InferRequest, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.models.manifest import Manifest, TensorSpec
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, Scalar

_AROUND: Final = frozenset({"data", "instances", "inputs"})
_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_FORM_DATA: Final = "multipart/form-data"
_UNKNOWN: Final = "application/octet-stream"
_TYPES: Final = {
    400: "BadRequestException",
    401: "InvalidKeyException",
    403: "ForbiddenException",
    404: "ResourceNotFoundException",
    405: "MethodNotAllowedException",
    408: "RequestTimeoutException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    429: "TooManyRequestsException",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
}
"""TorchServe's word for an error of each status; words of its kind where it has none."""


class Form(NamedTuple):
    """How an answer is written.

    Attributes:
        is_document: Whether the model answers with a document, and not with tensors.
        drops_batch: Whether the caller sent one row without a dimension for the batch.
    """

    is_document: bool
    drops_batch: bool = False


def _document(status: int, sentence: str, code: str) -> dict[str, Any]:
    kind = "ModelNotFoundException" if code == ModelNotFound.code else _TYPES.get(status)
    return {"code": status, "type": kind or "InternalServerException", "message": sentence}


ERRORS: Final = ErrorForm(_document)
"""`{"code", "type", "message"}`."""


def decode(asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None) -> Call:
    """Return the inference that a request asks for; see `Dialect.decode`.

    The `body` of `asked` has the tensors of its `pictures` by name, or the error that their decoding ended in.
    """
    if isinstance(asked.body, MeshError):
        raise asked.body
    http = asked.http
    body = _body(http)
    content_type = http.headers.get("content-type", "")
    if manifest.execution.interface is not Interface.TENSORS:
        return _to_document(asked, manifest, body, content_type, request_id, trace)
    inputs, drops_batch = _tensors(manifest, body, content_type, asked.body or {})
    request = InferRequest(
        manifest.model, tuple(inputs), manifest.version, (), request_id, {}, DEFAULT_REQUEST_TIMEOUT_S, trace
    )  # fmt: skip
    return Call(request, Form(False, drops_batch))


def has_pictures(manifest: Manifest, http: HttpRequest) -> bool:
    """Whether a request may have pictures of a model that takes tensors; decoding them takes a while."""
    if manifest.execution.interface is not Interface.TENSORS or not _takers(manifest):
        return False
    kind = multipart.media_type(http.headers.get("content-type", ""))
    is_coded = "content-encoding" in http.headers
    return kind == _FORM_DATA or is_coded or _is_picture(kind, http.body)


def pictures(manifest: Manifest, http: HttpRequest) -> list[tuple[Upload, bytes]]:
    """Return the pictures of a request, each with the input that takes it.

    Raises:
        InvalidRequest, TooLarge: as `decode`.
    """
    takers = _takers(manifest)
    body, content_type = _body(http), http.headers.get("content-type", "")
    kind = multipart.media_type(content_type)
    if kind != _FORM_DATA:
        only = takers.get(manifest.inputs[0].name) if len(manifest.inputs) == 1 else None
        return [(only, bytes(body))] if only is not None and _is_picture(kind, body) else []
    parts = multipart.parse(content_type, body)
    found = [(takers.get(_name(manifest, part.name, len(parts))), part) for part in parts]
    return [
        (taker, bytes(part.data))
        for taker, part in found
        if taker is not None and _is_picture(part.content_type, part.data)
    ]


def encode(response: InferResponse, part: ResponsePart, form: Form) -> HttpResponse:
    """Return a complete answer of one part."""
    if form.is_document:
        joined = Joined(response)
        joined.part(part)
        return HttpResponse(joined.status, joined.headers, joined.end())
    outputs = {tensor.name: _plain(tensor, form) for tensor in part.outputs}
    return json_response(next(iter(outputs.values())) if len(outputs) == 1 else outputs)


class Joined:
    """Tells an answer of several parts as one body."""

    def __init__(self, _response: InferResponse) -> None:
        """Begin with nothing."""
        self.status = 200
        self._headers: dict[str, str] = {}
        self._pieces: list[Buffer] = []

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer."""
        return self._headers

    def part(self, part: ResponsePart) -> bytes:
        """Take a part; the first says of which type all are."""
        if not self._pieces:
            head = head_of(part.parameters)
            self.status = head.status
            told = answer_headers(head)
            self._headers = told if has_head(part.parameters) else {"Content-Type": _JSON, **told}
        self._pieces.append(content_of(part.outputs))
        return b""

    def end(self) -> bytes:
        """Return the whole body."""
        return b"".join(self._pieces)

    def failed(self, _error: MeshError) -> None:
        """Return None: there is no place for an error in a body of any type."""


def _to_document(
    asked: Asked,
    manifest: Manifest,
    body: Buffer,
    content_type: str,
    request_id: str,
    trace: Trace | None,
) -> Call:
    parameters: dict[str, Scalar] = {}
    if accept := asked.http.headers.get("accept", ""):
        parameters[ACCEPT] = accept[:MAX_ACCEPT_LENGTH]
    kind = multipart.media_type(content_type)
    is_typed = manifest.execution.interface is Interface.JSON and bool(uploads_of(manifest))
    if is_typed and manifest.execution.spelling is not Spelling.ARCHIVE:
        unsaid = kind in ("", _FORM)
        if not unsaid or (sniffed(body) and not _is_json(body)):
            inputs, parameters = decode_document(manifest, asked.http, _UNKNOWN if unsaid else None)
            return _document_call(manifest, inputs, parameters, request_id, trace)
    if kind == _FORM_DATA:
        fields = {part.name: bytes(part.data) for part in multipart.parse(content_type, body)}
        if manifest.execution.spelling is Spelling.ARCHIVE:
            body, content_type = msgspec.msgpack.encode(fields), FIELDS
        else:
            plain = {name: text_or_b64(content) for name, content in fields.items()}
            body, content_type = msgspec.json.encode(plain), _JSON
    elif kind in ("", _FORM) and _is_json(body):
        content_type = _JSON  # curl's default says nothing of the body
    if content_type:
        parameters[CONTENT_TYPE] = content_type[:MAX_ACCEPT_LENGTH]
    return _document_call(manifest, (document(manifest, body),), parameters, request_id, trace)


def _document_call(
    manifest: Manifest,
    inputs: tuple[Tensor, ...],
    parameters: dict[str, Scalar],
    request_id: str,
    trace: Trace | None,
) -> Call:
    request = InferRequest(
        manifest.model, inputs, manifest.version, (), request_id, parameters, MODEL_CALL_TIMEOUT_S, trace
    )  # fmt: skip
    return Call(request, Form(True), joined=Joined)


def _tensors(
    manifest: Manifest, body: Buffer, content_type: str, decoded: Mapping[str, Tensor]
) -> tuple[list[Tensor], bool]:
    """Return a model's inputs, and whether they were sent without a dimension for the batch."""
    kind = multipart.media_type(content_type)
    if kind == _FORM_DATA:
        parts = multipart.parse(content_type, body)
        specs = [_known(manifest, _name(manifest, part.name, len(parts))) for part in parts]
        return [
            decoded.get(spec.name) or _of_field(manifest, spec, part.data)
            for spec, part in zip(specs, parts, strict=True)
        ], False
    if decoded:
        return list(decoded.values()), False
    if kind == _JSON or kind.endswith("+json") or (kind in ("", _FORM) and _is_json(body)):
        return _of_json(manifest, _read(body))
    return [raw_input(manifest, body)], False


def _of_json(manifest: Manifest, value: Any) -> tuple[list[Tensor], bool]:
    if isinstance(value, dict) and len(value) == 1 and len(manifest.inputs) == 1:
        (name,) = value
        if name in _AROUND and input_named(manifest, name) is None:
            value = value[name]
    if isinstance(value, dict) and not (len(manifest.inputs) == 1 and value.keys() == {"b64"}):
        named = [(_known(manifest, name), each) for name, each in value.items()]
    elif len(manifest.inputs) == 1:
        named = [(manifest.inputs[0], value)]
    else:
        raise InvalidRequest(
            f"model {manifest.model!r} has several inputs ({_names(manifest)}): send a JSON object with them"
        )
    depths = [_depth(each) for _, each in named]
    tensors = [tensor_of(manifest, spec, each) for spec, each in named]
    drops = bool(named) and all(
        depth < len(spec.shape) for depth, (spec, _) in zip(depths, named, strict=True)
    )
    return tensors, drops


def _of_field(manifest: Manifest, spec: TensorSpec, data: Buffer) -> Tensor:
    """Return one field of a form as a tensor: JSON if it is, else bytes."""
    if spec.datatype is not DataType.BYTES and _is_json(data):
        return tensor_of(manifest, spec, _read(data))
    return raw_input(msgspec.structs.replace(manifest, inputs=(spec,)), bytes(data))


def _body(http: HttpRequest) -> Buffer:
    coding = http.headers.get("content-encoding", "")
    if not coding or coding.strip().lower() == "identity":
        return http.body
    return decompress(http.body, coding, MAX_BODY_BYTES)


def _takers(manifest: Manifest) -> dict[str, Upload]:
    """Return the inputs that take pictures, by their names."""
    return {each.name: each for each in uploads_of(manifest) if each.kind is Kind.PICTURE}


def _is_picture(kind: str, data: Buffer) -> bool:
    """Whether bytes are a picture: as their sender says, or else as their beginning does."""
    family = PICTURES.removesuffix("*")
    return kind.startswith(family) or (
        kind in ("", _FORM, _UNKNOWN) and sniffed(data).startswith(family)
    )


def _name(manifest: Manifest, field: str, fields: int) -> str:
    """Return the input that a form's field is for: a single one is for the only input."""
    return manifest.inputs[0].name if fields == len(manifest.inputs) == 1 else field


def _known(manifest: Manifest, name: str) -> TensorSpec:
    spec = input_named(manifest, name)
    if spec is None:
        raise InvalidRequest(
            f"model {manifest.model!r} has no input {name[:80]!r}; it has {_names(manifest)}"
        )
    return spec


def _names(manifest: Manifest) -> str:
    return ", ".join(repr(spec.name) for spec in manifest.inputs)


def _read(data: Buffer) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None


def _is_json(data: Buffer) -> bool:
    """Whether bytes whose type nobody says are JSON; numbers and texts alone may be anything."""
    if bytes(memoryview(data)[:64]).lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _depth(value: object) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _plain(tensor: Tensor, form: Form) -> Any:
    value = nested(tensor)
    return value[0] if form.drops_batch and tensor.shape and tensor.shape[0] == 1 else value
