"""Answers HTTP by models that take JSON documents or bring routes of their own, on whichever node they are.

    POST /inference/M, and the path that it is offered at ─> a document ─┐
    a route of a model ──────────────────────────────────────> a call ───┴> pipeline ─> one answer, or parts

An answer in JSON is sent when it is complete, so that what goes wrong has its own status. Anything else is
sent as it is made: events, text, files, and what a framework gives no content type.
"""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import unquote

from meshnode.errors import InferenceFailed, InvalidRequest, MeshError, TooLarge
from meshnode.gateway.access import key_shown
from meshnode.gateway.inference import Inference, with_cache_control
from meshnode.gateway.matching import Match, Methods
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.endpoint import GUARDS, decode_document
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.targets import Answered
from meshnode.limits import MAX_BODY_BYTES, MODEL_CALL_TIMEOUT_S
from meshnode.models.http_calls import (
    HttpCall,
    HttpHead,
    answer_headers,
    content_of,
    encode_call,
    has_head,
    head_of,
    passed_on,
)
from meshnode.models.routes import Owner, RouteTable
from meshnode.types import InferRequest, Scalar, Scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from meshnode.models.execution import Route
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import Buffer, InferResponse, ResponsePart, Tensor

_JSON: Final = "application/json"
_STATUSES: Final = frozenset(status.value for status in HTTPStatus)
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT.value, HTTPStatus.NOT_MODIFIED.value})

_Made = tuple[tuple["Tensor", ...], dict[str, Scalar]]


class _Begun(NamedTuple):
    """An answer whose first part is here."""

    head: HttpHead
    is_document: bool
    first: memoryview
    rest: AsyncGenerator[Buffer, None] | None


class ModelCalls:
    """The part of a gateway's paths that models answer by themselves."""

    def __init__(self, inference: Inference) -> None:
        """Answer through this."""
        self._inference = inference
        self._pipeline = inference.pipeline
        self._known: dict[str, tuple[Route, ...]] = {}
        self._routes = RouteTable({})
        self._offered: dict[str, str] = {}  # the model, by the path at which its deployer offers it
        self._revision = -1

    def __repr__(self) -> str:
        return f"<ModelCalls {self._routes}>"

    def offered_at(self, path: str) -> str | None:
        """Return the model whose deployer offers it at a path, with or without a slash at its end."""
        self._refresh()
        return self._offered.get(path.rstrip("/"))

    def methods(self, path: str) -> Methods:
        """Return the routes that models bring for a path as it was sent; none if it is no model's."""
        self._refresh()
        plain = unquote(path)
        _, allowed = self._routes.find("", plain)
        return {method: self._match(method, plain) for method in sorted(allowed)}

    def _match(self, method: str, path: str) -> Match:
        owner, _ = self._routes.find(method, path)
        assert owner is not None  # the path has this method
        is_post = method == "POST"
        return Match(partial(self.call, owner), Scope.INFER, takes_body=True, infers=is_post)

    def _refresh(self) -> None:
        """Look again at what models bring, if any has changed."""
        table = self._pipeline.table
        if table.revision == self._revision:
            return
        self._revision = table.revision
        known: dict[str, tuple[Route, ...]] = {}
        offered: dict[str, str] = {}
        for manifest in sorted(table.manifests(), key=lambda each: each.model):
            if manifest.execution.routes:
                known[manifest.model] = manifest.execution.routes
            if manifest.exposure.path:
                offered.setdefault(manifest.exposure.path, manifest.model)
        self._offered = offered
        if known != self._known:
            self._known, self._routes = known, RouteTable(known)

    async def ask(
        self, model: str, http: HttpRequest, request_id: str
    ) -> HttpResponse | HttpStream:
        """Answer `POST /inference/MODEL` of a model that takes documents.

        Raises:
            MeshError: as `decode_document` and `Pipeline.infer`.
        """
        return await self._answer(model, http, request_id, partial(decode_document, http=http))

    async def call(
        self, owner: Owner, http: HttpRequest, request_id: str
    ) -> HttpResponse | HttpStream:
        """Answer a request to a model's own route.

        Raises:
            MeshError: as `Pipeline.infer`.
        """

        def made(_manifest: Manifest) -> _Made:
            headers = passed_on(http.headers.items(), _secret(http))
            method = "GET" if http.method == "HEAD" else http.method
            call = HttpCall(method, unquote(http.path), http.query, headers, http.body)
            tensor, parameters = encode_call(call)
            return (tensor,), parameters

        return await self._answer(owner.model, http, request_id, made)

    async def _answer(
        self,
        model: str,
        http: HttpRequest,
        request_id: str,
        made: Callable[[Manifest], _Made],
    ) -> HttpResponse | HttpStream:
        def decode(
            _asked: Asked, manifest: Manifest, request_id: str, trace: Trace | None
        ) -> InferRequest:
            inputs, parameters = made(manifest)
            return InferRequest(
                manifest.model,
                inputs,
                manifest.version,
                (),
                request_id,
                parameters,
                MODEL_CALL_TIMEOUT_S,
                trace,
            )

        target, request = self._inference.decoded(Asked(http, model), request_id, decode)
        answered = self._pipeline.answer(with_cache_control(request, http), target, http.headers)
        if not isinstance(answered, Answered):
            answered = await answered
        try:
            begun = await _begin(answered.response)
            sources = {"Mesh-Route": answered.route_header, **answered.cache_headers}
            return await _as_http(begun, sources)
        except MeshError as error:
            error.mesh_route = error.mesh_route or answered.route_header
            raise


async def _begin(response: InferResponse) -> _Begun:
    """Return the first part of an answer, and those that follow."""
    if response.single is not None:
        return _begun(response.single, None)
    parts = _parts(response)
    try:
        first = await anext(parts)
    except StopAsyncIteration:
        raise InferenceFailed(
            f"model {response.model!r} ended its answer without a result"
        ) from None
    return _begun(first, _rest(parts))


def _begun(first: ResponsePart, rest: AsyncGenerator[Buffer, None] | None) -> _Begun:
    parameters = first.parameters
    return _Begun(head_of(parameters), not has_head(parameters), _content(first.outputs), rest)


async def _parts(response: InferResponse) -> AsyncGenerator[ResponsePart, None]:
    async for part in response:
        yield part


async def _rest(parts: AsyncGenerator[ResponsePart, None]) -> AsyncGenerator[Buffer, None]:
    async with aclosing(parts):
        async for part in parts:
            if part.outputs:
                yield _content(part.outputs)


async def _as_http(begun: _Begun, sources: Mapping[str, str]) -> HttpResponse | HttpStream:
    head = begun.head
    if head.status not in _STATUSES:
        raise InferenceFailed(f"the model answered with the HTTP status {head.status}")
    headers = {"Content-Type": _JSON} if begun.is_document else {}
    headers |= {**answer_headers(head), **GUARDS, **sources}
    if begun.rest is None:
        return HttpResponse(head.status, headers, bytes(begun.first))
    media_type = head.header("content-type").partition(";")[0].strip().lower()
    if begun.is_document or media_type == _JSON or head.status in _BODILESS:
        return HttpResponse(head.status, headers, await _whole(begun))
    length = head.header("content-length")
    size_bytes = int(length) if length.isascii() and length.isdigit() else None
    return HttpStream(head.status, headers, _joined(begun), size_bytes)


async def _whole(begun: _Begun) -> bytes:
    data = bytearray(begun.first)
    assert begun.rest is not None
    async with aclosing(begun.rest) as rest:
        async for piece in rest:
            data += piece
            if len(data) > MAX_BODY_BYTES:
                raise TooLarge(f"the model's answer has more than {MAX_BODY_BYTES} bytes of JSON")
    return bytes(data)


async def _joined(begun: _Begun) -> AsyncGenerator[Buffer, None]:
    assert begun.rest is not None
    async with aclosing(begun.rest) as rest:
        if begun.first.nbytes:
            yield begun.first
        async for piece in rest:
            yield piece


def _content(outputs: tuple[Tensor, ...]) -> memoryview:
    try:
        return content_of(outputs)
    except InvalidRequest as error:
        raise InferenceFailed(f"the model's answer is no document: {error}") from None


def _secret(http: HttpRequest) -> list[str]:
    """Return the headers whose values are for this gateway: API keys, the control channel's token."""
    names = ["authorization", "x-api-key"]
    if http.caller.scope is Scope.OWNER:
        return names
    return [
        name
        for name in names
        if (value := http.headers.get(name)) is not None and key_shown({name: value}) is not None
    ]
