"""The way of an inference through a gateway, the same for every dialect.

    resolve ─> decode ─> pipeline ─┬─> one part: encode
                                   └─> a stream: one piece of the body per part, begun when the first part is here

What an answer needs whatever its dialect is done here: the trace, metrics, the log of what fails early, `Mesh-Route`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import msgspec

from meshnode.cache_control import read_cache_control
from meshnode.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, MeshError
from meshnode.gateway.metrics import OTHER, GatewayMetrics
from meshnode.gateway.protocols.dialect import Enough
from meshnode.gateway.protocols.hints import hints_of
from meshnode.gateway.protocols.http import HttpResponse, HttpStream
from meshnode.gateway.taking_up import take_up
from meshnode.gateway.targets import Answered
from meshnode.limits import DEFAULT_REQUEST_TIMEOUT_S, JOB_TIMEOUT_S, MODEL_CALL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from meshnode.gateway.matching import Reply
    from meshnode.gateway.pipeline import Pipeline
    from meshnode.gateway.protocols.dialect import Asked, Call, Dialect, PartEncoder
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.gateway.targets import Target
    from meshnode.models.manifest import Manifest
    from meshnode.tracing import Trace
    from meshnode.types import (
        Buffer,
        InferRequest,
        InferResponse,
        KeptAs,
        NodeId,
        ResponsePart,
        RoutingHints,
    )

_T = TypeVar("_T")


class Begun(NamedTuple):
    """A stream, encoded, and the answer that it is made of."""

    answer: HttpStream
    response: InferResponse


_TRACEPARENT = "traceparent"
_CACHE_CONTROL = "cache-control"
_WITHOUT_A_WISH = (DEFAULT_REQUEST_TIMEOUT_S, MODEL_CALL_TIMEOUT_S)  # of who named no time


class Inference:
    """Answers inferences of any dialect."""

    def __init__(self, pipeline: Pipeline, metrics: GatewayMetrics) -> None:
        """Answer through a pipeline."""
        self.pipeline = pipeline
        self._metrics = metrics

    def __repr__(self) -> str:
        return f"<Inference through {self.pipeline!r}>"

    def answer(self, dialect: Dialect, asked: Asked, request_id: str) -> Reply:
        """Answer a request: at once where that can be, else when awaited.

        Raises:
            InvalidRequest: if the request is malformed, or does not fit the model.
            MeshError: as `Pipeline.infer`; at once, or when awaited.
        """
        if self.pipeline.cold_starts.is_unheard_of(asked.model, asked.version):
            return self._once_known(dialect, asked, request_id)
        target, call = self.decoded(asked, request_id, dialect.decode)
        call = _for_job(call, asked.http)
        answered = self.pipeline.answer(call.request, target, asked.http.headers)
        if not isinstance(answered, Answered) or call.stream is not None:
            return _later(dialect, answered, call, asked.http)
        part = answered.response.single
        assert part is not None  # what is answered at once is complete
        return routed(dialect.encode(answered.response, part, call.form), answered)

    async def streamed(
        self, dialect: Dialect, asked: Asked, request_id: str, keep: KeptAs | None
    ) -> Begun:
        """Answer a request with a stream.

        Args:
            dialect: Gives every answer as a stream.
            asked: The request.
            request_id: For logs and headers.
            keep: How the answer is kept where it is made.

        Raises:
            MeshError: as `answer`.
        """
        target, call = self._decoded_stream(dialect, asked, request_id, keep)
        answer = self.pipeline.answer(call.request, target, asked.http.headers)
        answered = answer if isinstance(answer, Answered) else await answer
        assert call.stream is not None
        try:
            due = _due(call.request) if asked.http.caller.job else None
            begun = await _begun(call.stream(answered.response), answered, due)
        except MeshError as error:
            error.mesh_route = error.mesh_route or answered.route_header
            raise
        return Begun(begun, answered.response)

    async def taken_up(
        self, dialect: Dialect, asked: Asked, request_id: str, keep: KeptAs, executor: NodeId
    ) -> Begun:
        """Go on with a stream that another gateway began; see `meshnode.gateway.taking_up`."""
        target, call = self._decoded_stream(dialect, asked, request_id, keep)
        response, header = await take_up(self.pipeline, call.request, target, executor)
        assert call.stream is not None
        encoder = call.stream(response)
        headers = {**encoder.headers, "Mesh-Route": header}
        return Begun(HttpStream(200, headers, _pieces(encoder, b"", aiter(response))), response)

    def _decoded_stream(
        self, dialect: Dialect, asked: Asked, request_id: str, keep: KeptAs | None
    ) -> tuple[Target, Call]:
        target, call = self.decoded(asked, request_id, dialect.decode)
        call = _for_job(call, asked.http)
        return target, call._replace(request=msgspec.structs.replace(call.request, keep=keep))

    async def _once_known(
        self, dialect: Dialect, asked: Asked, request_id: str
    ) -> HttpResponse | HttpStream:
        await self.pipeline.cold_starts.until_known(asked.model, asked.version)
        target, call = self.decoded(asked, request_id, dialect.decode)
        call = _for_job(call, asked.http)
        answer = self.pipeline.answer(call.request, target, asked.http.headers)
        return await _later(dialect, answer, call, asked.http)

    def manifest(self, model: str, version: int | None = None) -> Manifest | None:
        """Return what is known of a model version that is served; None if there is none, which `answer` tells."""
        try:
            return self.pipeline.table.lookup(model, version).manifest
        except MeshError:
            return None

    def decoded(
        self,
        asked: Asked,
        request_id: str,
        decode: Callable[[Asked, Manifest, str, Trace | None], _T],
    ) -> tuple[Target, _T]:
        """Return the model version that a request is for, and what `decode` makes of the request.

        Raises:
            MeshError: as `Pipeline.resolve` and `decode`; it is counted and logged.
        """
        pipeline = self.pipeline
        label = OTHER
        parent = asked.http.headers.get(_TRACEPARENT)
        record = asked.http.record
        trace = (
            None if parent is None and record is None else pipeline.request_log.traces.join(parent)
        )
        if record is not None:
            record.model, record.trace = asked.model, trace
        try:
            target = pipeline.target(asked.model, asked.version)
            label = target.manifest.model
            return target, decode(asked, target.manifest, request_id, trace)
        except MeshError as error:
            self._metrics.failed(label, error.code)
            pipeline.request_log.failed(asked.model, request_id, trace, error)
            raise


class _Raising:
    """Encodes as another does, but has no place for errors: for readers that would take them for a part."""

    def __init__(self, encoder: PartEncoder) -> None:
        self._encoder = encoder
        self.part = encoder.part
        self.end = encoder.end

    @property
    def headers(self) -> Mapping[str, str]:
        return self._encoder.headers

    def failed(self, _error: MeshError) -> None:
        return None


def _for_job(call: Call, http: HttpRequest) -> Call:
    """Return a call as its HTTP request wants it; its stream raises its error where a job collects it, which failed."""
    request = with_cache_control(call.request, http)
    if request is not call.request:
        call = call._replace(request=request)
    stream = call.stream
    if not http.caller.job or stream is None:
        return call
    return call._replace(stream=lambda response: _Raising(stream(response)))


async def _later(
    dialect: Dialect, answer: Answered | Awaitable[Answered], call: Call, http: HttpRequest
) -> HttpResponse | HttpStream:
    due = _due(call.request)
    answered = answer if isinstance(answer, Answered) else await answer
    response = answered.response
    try:
        if call.stream is not None:
            whole_due = due if http.caller.job else None
            return await _begun(call.stream(response), answered, whole_due)
        if call.joined is not None and response.single is None:
            return routed(await _joined(call.joined(response), response, due), answered)
        part = response.single or await only_part(response, due)
        return routed(dialect.encode(response, part, call.form), answered)
    except MeshError as error:
        error.mesh_route = error.mesh_route or answered.route_header
        raise


def _due(request: InferRequest) -> float:
    """Return when a request's time is over that is asked now, in the loop's seconds."""
    return asyncio.get_running_loop().time() + request.timeout_s


async def _in_time(
    response: InferResponse, due: float | None
) -> AsyncGenerator[ResponsePart, None]:
    """Yield the parts of an answer that is wanted whole: its last part has no more time than its first.

    Raises:
        DeadlineExceeded: if they are not all here when they are due.
    """
    async with aclosing(aiter(response)) as parts:
        while True:
            try:
                async with asyncio.timeout_at(due):
                    part = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise DeadlineExceeded(
                    f"model {response.model!r} was still answering at the deadline; give it more time, or ask for a stream"
                ) from None
            yield part


async def _joined(encoder: PartEncoder, response: InferResponse, due: float) -> HttpResponse:
    """Return the answer that all parts make together."""
    async with aclosing(_in_time(response, due)) as parts:
        with suppress(Enough):
            async for part in parts:
                encoder.part(part)
    return HttpResponse(200, encoder.headers, encoder.end())


async def _begun(encoder: PartEncoder, answered: Answered, due: float | None) -> HttpStream:
    """Return a stream whose first part is here, so that what fails before it has a status of its own.

    Somebody who collects all of it says when it is `due`.
    """
    response = answered.response
    parts = aiter(response) if due is None else _in_time(response, due)
    try:
        first = encoder.part(await anext(parts))
    except StopAsyncIteration:
        first = b""
    except Enough as enough:
        first = enough.piece
        await parts.aclose()
    except BaseException:
        await parts.aclose()
        raise
    headers = {**encoder.headers, "Mesh-Route": answered.route_header, **answered.cache_headers}
    return HttpStream(200, headers, _pieces(encoder, first, parts))


async def _pieces(
    encoder: PartEncoder, first: bytes, parts: AsyncGenerator[ResponsePart, None]
) -> AsyncGenerator[Buffer, None]:
    async with aclosing(parts):
        if first:
            yield first
        try:
            try:
                async for part in parts:
                    piece = encoder.part(part)
                    if piece:
                        yield piece
            except Enough as enough:
                await parts.aclose()
                if enough.piece:
                    yield enough.piece
            end = encoder.end()
        except MeshError as error:
            last = encoder.failed(error)
            if last is None:
                raise
            yield last
            return
        if end:
            yield end


def with_cache_control(request: InferRequest, http: HttpRequest) -> InferRequest:
    """Return an inference with what its HTTP request says about kept answers, and with a job's time if it has none."""
    if http.caller.job and request.timeout_s in _WITHOUT_A_WISH:
        request = msgspec.structs.replace(request, timeout_s=JOB_TIMEOUT_S)
    header = http.headers.get(_CACHE_CONTROL)
    asks = "" if header is None else read_cache_control(header).text
    hints = hints_for(http)
    if not asks and hints is request.hints:
        return request
    return msgspec.structs.replace(request, cache_control=asks, hints=hints)


def hints_for(http: HttpRequest) -> RoutingHints:
    """Return what a request's headers and its key say of where it may run; the same for every dialect.

    Raises:
        InvalidRequest: if a header is not of its form.
    """
    hints = hints_of(http.headers)
    caller, limit = http.caller.key_id, http.caller.limit
    if not caller:
        return hints
    if limit is None:
        return msgspec.structs.replace(hints, caller=caller)
    priority = limit.capped(hints.priority)
    return msgspec.structs.replace(hints, caller=caller, priority=priority, share=limit.share)


async def only_part(response: InferResponse, due: float | None = None) -> ResponsePart:
    """Return the only part of a response whose `single` is None.

    Args:
        response: The response.
        due: When all of it must be here, in the loop's seconds; None where somebody else sees to that.

    Raises:
        DeadlineExceeded: if it is not.
        InferenceFailed: if the model answers in no part.
        InvalidRequest: if it answers in several, where the caller can take only one; its work ends then.
    """
    found: ResponsePart | None = None
    async with aclosing(_in_time(response, due)) as parts:
        async for part in parts:
            if found is not None:
                raise InvalidRequest(
                    f"model {response.model!r} answers in several parts, which this path cannot carry; ask where answers "
                    f"are streamed: /mesh/v1/models/{response.model}/stream, /v2/models/{response.model}/generate_stream, "
                    "or /v1/completions for text"
                )
            found = part
    if found is None:
        raise InferenceFailed(f"model {response.model!r} ended its answer without a result")
    return found


def routed(response: HttpResponse, answered: Answered) -> HttpResponse:
    """Return an answer with the headers that say where it came from."""
    headers = {**response.headers, "Mesh-Route": answered.route_header}
    if answered.cache:
        headers.update(answered.cache_headers)
    return HttpResponse(response.status, headers, response.body)
