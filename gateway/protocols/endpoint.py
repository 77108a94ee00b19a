"""Endpoint style: a JSON document or a file to `/inference/NAME`, and JSON, a file or a stream back.

    body ─┬─ JSON ───────────────────────────────┐
          ├─ a form: fields and files ───────────┼─> a document, or tensors by name ─> ...
          └─ a file of a type that it takes ─────┘

A body is JSON unless its Content-Type is a form's (`multipart/form-data`) or a file's: curl's default,
`application/x-www-form-urlencoded`, is read as JSON too. Files are taken for inputs that take them
(`meshnode.models.uploads`), all others are refused (415).

Models that take tensors are given plain values by the names of their inputs, `{"x": [[1, 2]]}`, or only the value where
they have one input, and answer `{"y": [[3, 4]]}`. `"stream": true` makes each of their answers a line of JSON, or an
event for `Accept: text/event-stream`. An Accept that names another type gets the content of an output of BYTES.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest, MeshError, UnsupportedMedia
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import HttpResponse, json_response
from meshnode.gateway.protocols.multipart import FORM_DATA, media_type, parse
from meshnode.gateway.protocols.plain_tensors import nested, tensor_of
from meshnode.gateway.protocols.tensors import split_elements
from meshnode.limits import MAX_ACCEPT_LENGTH, MAX_BODY_BYTES
from meshnode.models.execution import Interface, Spelling
from meshnode.models.http_calls import ACCEPT, CONTENT_TYPE, document
from meshnode.models.media_types import (
    EVENTS,
    LINES,
    accepted,
    answered_as,
    asks_for_stream,
    by_ending,
    framing,
    plain_name,
    sniffed,
    wants_json,
)
from meshnode.models.uploads import ANYTHING, Kind, Upload, request_schema, uploads_of
from meshnode.types import DataType, InferRequest, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.gateway.protocols.multipart import Part
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, ResponsePart, Scalar

GUARDS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox allow-scripts allow-forms allow-popups allow-downloads",
}
"""A model's page is somebody else's code on the gateway's own origin: a browser gives it an origin of its own,
so that it can neither call the mesh with the reader's rights nor read what other pages store."""

_FORM: Final = "application/x-www-form-urlencoded"
_UNKNOWN: Final = "application/octet-stream"
_TEXT: Final = "text/plain"
_STREAM: Final = "stream"
_PARAMETERS: Final = "parameters"
_FILE: Final = "file"
_B64: Final = "b64"


class Sent(NamedTuple):
    """What a request's body says.

    Attributes:
        value: The JSON value, or the fields of a form.
        files: The files, each with the input that takes it.
    """

    value: Any
    files: tuple[tuple[Upload, memoryview], ...] = ()


class Form(NamedTuple):
    """How an answer is told: as JSON, or as the content of an output with one of these media types, the best first."""

    media_types: tuple[str, ...] = ()


# Models that take documents.


def decode_document(
    manifest: Manifest, http: HttpRequest, content_type: str | None = None
) -> tuple[tuple[Tensor, ...], dict[str, Scalar]]:
    """Return the input and the parameters of a model that takes JSON documents, or HTTP.

    Args:
        manifest: The model version that will answer.
        http: The request.
        content_type: Of the body, where that is known better than by its header.

    Raises:
        InvalidRequest: if the body is malformed.
        UnsupportedMedia: if it is a file that the model does not take.
        TooLarge: if a limit is exceeded.
    """
    body = _body(http)
    if content_type is None:
        content_type = http.headers.get("content-type", "")
    accept = http.headers.get("accept", "")
    execution = manifest.execution
    reads_itself = execution.interface is Interface.HTTP or execution.spelling is Spelling.ARCHIVE
    if not reads_itself and _has_files(manifest, content_type):
        sent = _read_files(manifest, body, content_type)
        body, content_type = _as_document(sent), ""
    elif not reads_itself and (sniffed(body) or media_type(content_type).startswith("text/")):
        _check_json(manifest, body, content_type)  # told here, where it is known how files are sent
    said = ((ACCEPT, accept), (CONTENT_TYPE, content_type))
    parameters: dict[str, Scalar] = {
        name: value[:MAX_ACCEPT_LENGTH] for name, value in said if value
    }
    return (document(manifest, body),), parameters


def _as_document(sent: Sent) -> bytes:
    """Return a form, or a file alone, as a JSON document in which files are base64."""
    found: dict[str, Any] = dict(sent.value)
    for upload, data in sent.files:
        text = base64.b64encode(data).decode()
        if upload.several:
            found.setdefault(upload.name, []).append(text)
        else:
            found[upload.name] = text
    return msgspec.json.encode(found)


def check(manifest: Manifest, http: HttpRequest) -> None:
    """Refuse a request whose body no replica has to see to refuse it; no picture is decoded.

    Raises:
        InvalidRequest, UnsupportedMedia, TooLarge: as `decode_document` and `decode`.
    """
    execution = manifest.execution
    if execution.interface is Interface.TENSORS:
        sent = read(manifest, http)
        _named(manifest, sent.value)
        return
    decode_document(manifest, http)
    if execution.interface is Interface.HTTP or execution.spelling is Spelling.ARCHIVE:
        return  # it reads bodies of any kind itself
    if not _has_files(manifest, http.headers.get("content-type", "")):
        read(manifest, http)


# Models that take tensors.


def decode(asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None) -> Call:
    """Return the inference that a request asks for, of a model that takes tensors.

    Args:
        asked: The request; its `body` has the tensors of its pictures by name, which take a while to decode, or
            the error that this ended in. None if it has no pictures.
        manifest: The model version that will answer.
        request_id: For logs and headers.
        trace: The request's.

    Raises:
        InvalidRequest: with what was expected.
        UnsupportedMedia: if the body is a file that the model does not take.
        TooLarge: if a limit is exceeded.
    """
    if isinstance(asked.body, MeshError):
        raise asked.body
    http = asked.http
    sent = read(manifest, http)
    values, parameters, streams = _named(manifest, sent.value)
    pictures: Mapping[str, Tensor] = asked.body or {}
    inputs = dict(pictures)
    for upload, data in sent.files:
        if upload.kind is Kind.BYTES:
            inputs[upload.name] = _as_bytes(manifest, upload.name, data)
    specs = {spec.name: spec for spec in manifest.inputs}
    for name, value in values.items():
        if name not in inputs:
            inputs[name] = tensor_of(manifest, specs[name], value)
    accept = http.headers.get("accept", "")
    request = InferRequest(
        manifest.model,
        tuple(inputs.values()),
        manifest.version,
        (),
        request_id,
        parameters,
        trace=trace,
    )
    if streams or asks_for_stream(accept):
        kind = EventEncoder if framing(accept) == EVENTS else LineEncoder
        return Call(request, Form(), lambda _response: kind())
    return Call(request, Form(() if wants_json(accept) else accepted(accept)))


def encode(response: InferResponse, part: ResponsePart, form: Form) -> HttpResponse:
    """Return an answer of one part.

    Raises:
        InvalidRequest: if another type than JSON is wanted, and no output has it.
    """
    if not form.media_types:
        return json_response(plain(part))
    data = _content(response, part, form.media_types[0])
    kind = answered_as(form.media_types, sniffed(data))
    return HttpResponse(200, {"Content-Type": kind, **GUARDS}, data)


def plain(part: ResponsePart) -> dict[str, Any]:
    """Return a part's outputs as JSON values, by their names."""
    return {tensor.name: nested(tensor) for tensor in part.outputs}


class LineEncoder:
    """Each part is a line of JSON."""

    headers: Mapping[str, str] = {"Content-Type": LINES}

    def part(self, part: ResponsePart) -> bytes:
        """Return the line of a part."""
        return msgspec.json.encode(plain(part)) + b"\n" if part.outputs else b""

    def end(self) -> bytes:
        """Return nothing: the last line was the last part's."""
        return b""

    def failed(self, error: MeshError) -> bytes | None:
        """Return the last line of an answer that broke off."""
        return _told(error) + b"\n"


class EventEncoder:
    """Each part is an event (server-sent events)."""

    headers: Mapping[str, str] = {"Content-Type": EVENTS, "Cache-Control": "no-cache"}

    def part(self, part: ResponsePart) -> bytes:
        """Return the event of a part."""
        return b"data: " + msgspec.json.encode(plain(part)) + b"\n\n" if part.outputs else b""

    def end(self) -> bytes:
        """Return nothing: the last event was the last part's."""
        return b""

    def failed(self, error: MeshError) -> bytes | None:
        """Return the last event of an answer that broke off."""
        return b"event: error\ndata: " + _told(error) + b"\n\n"


def has_pictures(manifest: Manifest, http: HttpRequest) -> bool:
    """Whether a request may have pictures, whose decoding takes a while."""
    if not any(each.kind is Kind.PICTURE for each in uploads_of(manifest)):
        return False
    if _has_files(manifest, http.headers.get("content-type", "")):
        return True
    return b'"b64"' in memoryview(http.body).tobytes() or "content-encoding" in http.headers


def pictures(manifest: Manifest, http: HttpRequest) -> list[tuple[Upload, bytes]]:
    """Return the pictures of a request, each with the input that takes it.

    Raises:
        InvalidRequest, UnsupportedMedia, TooLarge: as `decode`.
    """
    sent = read(manifest, http)
    values, _, _ = _named(manifest, sent.value)
    found = [(upload, bytes(data)) for upload, data in sent.files if upload.kind is Kind.PICTURE]
    for upload in uploads_of(manifest):
        value = values.get(upload.name)
        if upload.kind is Kind.PICTURE and isinstance(value, dict) and value.keys() == {_B64}:
            found.append((upload, _decoded(upload.name, value[_B64])))
    return found


def read(manifest: Manifest, http: HttpRequest) -> Sent:
    """Return what a request's body says.

    Raises:
        InvalidRequest: if it is malformed.
        UnsupportedMedia: if it is a file that the model does not take.
        TooLarge: if a limit is exceeded.
    """
    body, content_type = _body(http), http.headers.get("content-type", "")
    if _has_files(manifest, content_type):
        return _read_files(manifest, body, content_type)
    try:
        return Sent(msgspec.json.decode(body) if memoryview(body).nbytes else {})
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_json(manifest, body, content_type, str(error)) from None


# Inside


def _no_json(manifest: Manifest, body: Buffer, content_type: str, why: str) -> MeshError:
    """Return the error for a body that was to be JSON: of what clearly is a file, how files are sent."""
    kind = media_type(content_type)
    found = sniffed(body)
    uploads = uploads_of(manifest)
    if kind.startswith("text/") and kind != _TEXT:
        return _unsupported(manifest, uploads, kind)
    hint = f" -H 'Content-Type: {found}'" if found else ""
    return InvalidRequest(
        f"the body is not JSON: {why}; send a file with its own Content-Type{hint}{_taken(uploads)}"
    )


def _check_json(manifest: Manifest, body: Buffer, content_type: str) -> None:
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_json(manifest, body, content_type, str(error)) from None


def _taken(uploads: Iterable[Upload]) -> str:
    """Return which files a model takes, in brackets; empty for none."""
    takes = "; ".join(f"{each.name!r}: {', '.join(each.media_types)}" for each in uploads)
    return f" ({takes})" if takes else ""


def _body(http: HttpRequest) -> Buffer:
    coding = http.headers.get("content-encoding", "").strip().lower()
    return (
        http.body if coding in ("", "identity") else decompress(http.body, coding, MAX_BODY_BYTES)
    )


def _has_files(manifest: Manifest, content_type: str) -> bool:
    """Whether a body is a form or a file, and not JSON."""
    kind = media_type(content_type)
    if kind in ("", "application/json", _FORM) or kind.endswith("+json"):
        return False
    if kind.startswith("text/"):  # a careless client's JSON, unless the model takes such texts
        exact = any(kind in each.media_types for each in uploads_of(manifest))
        return exact or (kind == _TEXT and _takes_text_alone(manifest))
    return True


def _takes_text_alone(manifest: Manifest) -> bool:
    return len(manifest.inputs) == 1 and [each.kind for each in uploads_of(manifest)] == [
        Kind.BYTES
    ]


def _read_files(manifest: Manifest, body: Buffer, content_type: str) -> Sent:
    kind = media_type(content_type)
    uploads = uploads_of(manifest)
    if kind == FORM_DATA:
        return _read_form(manifest, uploads, parse(content_type, body))
    data = memoryview(body).cast("B")
    fitting = [each for each in uploads if each.takes(_precise(kind, "", data))]
    exact = [each for each in fitting if ANYTHING not in each.media_types]
    fitting = exact or fitting  # who names its types means them more than who takes anything
    if len(fitting) > 1:
        names = ", ".join(each.name for each in fitting)
        raise InvalidRequest(
            f"model {manifest.model!r} takes such a file in several places ({names}); send a form "
            "(multipart/form-data) that names one"
        )
    if not fitting:
        raise _unsupported(manifest, uploads, kind)
    return Sent({}, ((fitting[0], data),))


def _read_form(manifest: Manifest, uploads: Sequence[Upload], parts: Sequence[Part]) -> Sent:
    by_name = {each.name: each for each in uploads}
    texts = _texts(manifest)
    alone = sum(part.is_file for part in parts) == 1 and len(uploads) == 1
    fields: dict[str, Any] = {}
    files: list[tuple[Upload, memoryview]] = []
    taken: set[str] = set()
    for part in parts:
        if part.name in fields:
            raise InvalidRequest(f"the form has several fields {part.name[:60]!r}; send one")
        upload = by_name.get(part.name)
        if upload is None and part.is_file and part.content_type == "application/json":
            fields[part.name] = _json(part)
            continue
        if upload is None and not part.is_file:
            fields[part.name] = _field(part, texts)
            continue
        if upload is None and (alone or (part.name == _FILE and len(uploads) == 1)):
            upload = uploads[0]
        kind = _precise(part.content_type, part.filename, part.data)
        if upload is None and any(each.takes(kind) for each in uploads):
            raise InvalidRequest(
                f"field {part.name[:60]!r} is a file of {kind[:60]}, and model {manifest.model!r} has no such field; it "
                f"takes files as {', '.join(each.name for each in uploads)}"
            )
        if upload is not None and not part.is_file and not upload.takes(kind):
            fields[part.name] = _field(part, texts | {part.name})  # base64, as in JSON
            continue
        if upload is None or not upload.takes(kind):
            raise _unsupported(manifest, uploads, kind, part.name)
        if upload.name in taken and not upload.several:
            raise InvalidRequest(f"the form has several files for {upload.name!r}; it takes one")
        taken.add(upload.name)
        files.append((upload, part.data))
    return Sent(fields, tuple(files))


def _texts(manifest: Manifest) -> frozenset[str]:
    """Return the fields whose values are texts, also where they look like something else."""
    if manifest.execution.interface is Interface.TENSORS:
        return frozenset(spec.name for spec in manifest.inputs if spec.datatype is DataType.BYTES)
    members = request_schema(manifest).get("properties")
    if not isinstance(members, dict):
        return frozenset()
    return frozenset(
        name
        for name, member in members.items()
        if isinstance(member, dict) and member.get("type") == "string"
    )


def _field(part: Part, texts: frozenset[str]) -> Any:
    """Return a field's value: JSON where it can be, text otherwise."""
    try:
        text = str(part.data, "utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"field {part.name!r} of the form is no UTF-8 text") from None
    if part.name in texts:
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def _json(part: Part) -> Any:
    try:
        return msgspec.json.decode(part.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidRequest(f"field {part.name!r} of the form is no JSON: {error}") from None


def _precise(kind: str, filename: str, data: memoryview) -> str:
    """Return a file's media type, guessed where the client says that it does not know."""
    if kind not in (_UNKNOWN, "", _TEXT):
        return plain_name(kind)
    return sniffed(data) or by_ending(filename) or kind or _UNKNOWN


def _unsupported(
    manifest: Manifest, uploads: Iterable[Upload], kind: str, field: str = ""
) -> UnsupportedMedia:
    takes = _taken(uploads)
    what = f"field {field!r} is a file of {kind[:60]}" if field else f"the body is {kind[:60]}"
    return UnsupportedMedia(
        f"{what}, which model {manifest.model!r} does not take; it takes JSON"
        + (f", and files in a form{takes}" if takes else "")
    )


def _named(manifest: Manifest, value: Any) -> tuple[dict[str, Any], dict[str, Scalar], bool]:
    """Return plain values by the names of inputs, the parameters, and whether a stream is asked for.

    Raises:
        InvalidRequest: naming what is not known.
    """
    names = [spec.name for spec in manifest.inputs]
    if not isinstance(value, dict) or (len(names) == 1 and value.keys() == {_B64}):
        if len(names) != 1:
            raise InvalidRequest(
                f"model {manifest.model!r} has the inputs {', '.join(names)}: send a JSON object with their values"
            )
        return {names[0]: value}, {}, False
    values = dict(value)
    streams = _STREAM not in names and values.pop(_STREAM, False) is True
    said = {} if _PARAMETERS in names else values.pop(_PARAMETERS, {})
    unknown = next((name for name in values if name not in names), None)
    if unknown is not None:
        raise InvalidRequest(
            f"model {manifest.model!r} has no input {str(unknown)[:60]!r}; its inputs are {', '.join(names)}"
        )
    if not isinstance(said, dict) or not all(
        isinstance(each, str | int | float | bool) for each in said.values()
    ):
        raise InvalidRequest("parameters must be an object of texts, numbers and booleans")
    return values, said, streams


def _as_bytes(manifest: Manifest, name: str, data: memoryview) -> Tensor:
    spec = next(each for each in manifest.inputs if each.name == name)
    content = data.nbytes.to_bytes(4, "little") + bytes(data)
    return Tensor(name, DataType.BYTES, (1,) * len(spec.shape), content)


def _decoded(name: str, text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "!", validate=True)
    except ValueError as error:
        raise InvalidRequest(f"input {name!r}: b64 is no base64: {error}") from None


def _content(response: InferResponse, part: ResponsePart, wanted: str) -> bytes:
    """Return the content of the only output that may be a file."""
    files = [
        tensor
        for tensor in part.outputs
        if tensor.datatype is DataType.BYTES and tensor.elements == 1
    ]
    if len(files) != 1:
        raise InvalidRequest(
            f"model {response.model!r} answers with tensors, not with {wanted[:60]}; ask with Accept: application/json"
        )
    return bytes(next(iter(split_elements(files[0].data))))


def _told(error: MeshError) -> bytes:
    return msgspec.json.encode({"error": str(error), "code": error.code})
