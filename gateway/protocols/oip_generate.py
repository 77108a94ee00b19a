"""Triton's generate extension: `…/generate` and `…/generate_stream`, for models that are asked in plain JSON.

A request is one JSON object. A member that is called as an input is that input, `parameters` holds more
members, `id` comes back, and every other member is a parameter of the request. An answer is one object again:
the model's name and version, the parameters of the answer, and each output by its name, a single element
without a list around it. `generate_stream` sends one such object per part, as server-sent events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshnode.errors import InferenceFailed, InvalidRequest
from meshnode.gateway.protocols.content_coding import decompress
from meshnode.gateway.protocols.dialect import Call
from meshnode.gateway.protocols.http import JSON_HEADERS, HttpResponse, json_response
from meshnode.gateway.protocols.oip import take_parameters
from meshnode.gateway.protocols.plain_tensors import input_named, scalar_or_list, tensor_of
from meshnode.limits import (
    MAX_BODY_BYTES,
    MAX_REQUEST_PARAMETERS,
    MAX_REQUEST_TENSORS,
    MAX_REQUEST_TEXT_LENGTH,
)
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.errors import MeshError
    from meshnode.gateway.protocols.dialect import Asked
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import InferResponse, ResponsePart, Scalar, Tensor

_EVENTS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


class Generate:
    """The dialect of `…/generate`, or of `…/generate_stream`."""

    def __init__(self, *, streams: bool) -> None:
        """Answer with one document, or with an event for each part."""
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Generate {'stream' if self._streams else 'once'}>"

    def decode(
        self, asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
    ) -> Call:
        """Return the inference that a request asks for; see `Dialect.decode`."""
        body = _body(asked)
        inputs: list[Tensor] = []
        parameters: dict[str, Scalar] = {}
        own_id = _take(manifest, body, inputs, parameters)
        if len(inputs) > MAX_REQUEST_TENSORS or len(parameters) > MAX_REQUEST_PARAMETERS:
            raise InvalidRequest(
                f"a request has at most {MAX_REQUEST_TENSORS} inputs and {MAX_REQUEST_PARAMETERS} parameters"
            )
        if sum(len(name) + len(str(value)) for name, value in parameters.items()) > (
            MAX_REQUEST_TEXT_LENGTH
        ):
            raise InvalidRequest(
                f"the parameters have more than {MAX_REQUEST_TEXT_LENGTH} characters"
            )
        left, timeout_s, _ = take_parameters(parameters)
        request = InferRequest(
            manifest.model, tuple(inputs), manifest.version, (), request_id, left, timeout_s, trace
        )
        if not self._streams:
            return Call(request, own_id, joined=lambda response: OneDocument(response, own_id))
        return Call(request, own_id, stream=lambda response: Events(response, own_id))

    def encode(self, response: InferResponse, part: ResponsePart, form: Any) -> HttpResponse:
        """Return a complete answer of one part."""
        return json_response(_document(response, part, form))


class OneDocument:
    """Takes an answer in parts of which one alone has outputs; others only say that there are no more."""

    headers: Mapping[str, str] = JSON_HEADERS

    def __init__(self, response: InferResponse, own_id: str) -> None:
        """Wait for that part."""
        self._response = response
        self._id = own_id
        self._found: ResponsePart | None = None

    def part(self, part: ResponsePart) -> bytes:
        """Take a part.

        Raises:
            InferenceFailed: if it is a second one.
        """
        if part.outputs:
            if self._found is not None:
                raise InferenceFailed(
                    f"model {self._response.model!r} answers in several parts; ask for them with generate_stream"
                )
            self._found = part
        return b""

    def end(self) -> bytes:
        """Return the document.

        Raises:
            InferenceFailed: if there was no part.
        """
        if self._found is None:
            raise InferenceFailed(
                f"model {self._response.model!r} ended its answer without a result; a model that may do so is "
                "asked with generate_stream"
            )
        return msgspec.json.encode(_document(self._response, self._found, self._id))

    def failed(self, _error: MeshError) -> None:
        """Return None: the answer's status tells it."""


class Events:
    """Encodes an answer as server-sent events."""

    def __init__(self, response: InferResponse, own_id: str) -> None:
        """Tell the parts of an answer."""
        self._response = response
        self._id = own_id

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer."""
        return _EVENTS

    def part(self, part: ResponsePart) -> bytes:
        """Return the event of a part; nothing for one that only says that there are no more."""
        if not part.outputs:
            return b""
        return _event(_document(self._response, part, self._id))

    def end(self) -> bytes:
        """Return nothing: the stream's end is the answer's."""
        return b""

    def failed(self, error: MeshError) -> bytes:
        """Return the event that tells why the answer broke off."""
        return _event({"error": str(error)})


ONCE: Final = Generate(streams=False)
"""Answers with one document."""

STREAM: Final = Generate(streams=True)
"""Answers with an event for each part."""


def _body(asked: Asked) -> dict[str, Any]:
    http = asked.http
    body = http.body
    if (coding := http.headers.get("content-encoding")) and coding.strip().lower() != "identity":
        body = decompress(body, coding, MAX_BODY_BYTES)
    try:
        return _OBJECT.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not a JSON object: {error}") from error


def _take(
    manifest: Manifest,
    members: Mapping[str, Any],
    inputs: list[Tensor],
    parameters: dict[str, Scalar],
    *,
    is_inner: bool = False,
) -> str:
    """Sort an object's members into inputs and parameters; return the request's own id."""
    own_id = ""
    for name, value in members.items():
        spec = input_named(manifest, name)
        if spec is not None:
            if any(tensor.name == name for tensor in inputs):
                raise InvalidRequest(f"input {name!r} is given twice")
            inputs.append(tensor_of(manifest, spec, value))
        elif name == "parameters" and isinstance(value, dict) and not is_inner:
            _take(manifest, value, inputs, parameters, is_inner=True)
        elif name == "id" and isinstance(value, str) and not is_inner:
            own_id = value[:MAX_REQUEST_TEXT_LENGTH]
        elif isinstance(value, str | int | float | bool):
            parameters[name] = value
        elif value is not None:
            names = ", ".join(repr(spec.name) for spec in manifest.inputs)
            raise InvalidRequest(
                f"{name[:40]!r} is no input of model {manifest.model!r} (it has {names}), so it is a "
                "parameter, and must be a text, a number, true or false"
            )
    return own_id


def _document(response: InferResponse, part: ResponsePart, own_id: str) -> dict[str, Any]:
    document: dict[str, Any] = {"id": own_id} if own_id else {}
    document |= {"model_name": response.model, "model_version": str(response.version)}
    document |= part.parameters
    document |= {tensor.name: scalar_or_list(tensor) for tensor in part.outputs}
    return document


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
