"""What answers gRPC calls: who asks, within which limits, by which path, and how that is told.

    metadata ── who asks? ──> message ── inference ──> the dialect of `grpc_messages`, through `Inference`
                                      ├─ other calls ─> the REST path that answers the same (`grpc_rest`)
                                      └─ shared memory ─> `shared_memory`

Who asks is decided before a message is read. An error of a call is its status, with a sentence for people and
`mesh-error` in the trailing metadata; in a stream of inferences it is a message, and the stream goes on.

gRPC does not tell Python which host a call names. No web page can make such a call (a browser neither speaks
HTTP/2 without TLS, nor sends this content type to another origin without asking first), so the check of Host, which
is about pages, has nothing to do here; a call that comes with an Origin is refused like a foreign page's.
"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote

import msgspec
from msgspec import structs

from meshnode.errors import Forbidden, InvalidRequest, MeshError
from meshnode.gateway.access import Approach, require
from meshnode.gateway.grpc_reading import Places
from meshnode.gateway.matching import Match, version_of
from meshnode.gateway.protocols import grpc_status
from meshnode.gateway.protocols.access_record import CLIENT_GONE
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.grpc_status import Status
from meshnode.gateway.protocols.header_lines import each_once
from meshnode.gateway.protocols.holding import Holding
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal, status_of
from meshnode.gateway.shared_memory import NOT_HERE, OFF
from meshnode.limits import (
    GRPC_MESSAGE_TIMEOUT_S,
    GRPC_SMALL_MESSAGE_TIMEOUT_S,
    MAX_GRPC_READS,
    MAX_GRPC_READS_PER_CALLER,
    MAX_GRPC_SMALL_READS,
    MAX_REQUEST_ID_LENGTH,
)
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meshnode.gateway.access import GatewayAccess
    from meshnode.gateway.bodies import Bodies, Body
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.key_limits import KeyLimits
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.access_record import AccessRecord
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.gateway.protocols.grpc_messages import Regions
    from meshnode.gateway.protocols.grpc_rest import RestCall
    from meshnode.gateway.server import AccessLog
    from meshnode.gateway.shared_memory import SharedMemory

log = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(rf"[A-Za-z0-9._:/+=-]{{1,{MAX_REQUEST_ID_LENGTH}}}")
_HTTP_OK: Final = 200
_LARGE: Final = frozenset({"ModelInfer", "RepositoryModelLoad"})
"""Calls whose messages carry tensors or files; those of all others are names and numbers."""


class Asking(NamedTuple):
    """A call whose caller is known.

    Attributes:
        path: `/service/method`.
        headers: Its metadata, keys in lower case.
        caller: Who asks.
        is_here: Whether that is a program on this machine, as far as shows.
        request_id: For logs and metadata.
        remaining_s: Seconds until its deadline; None for no deadline.
        record: What the access log will tell of it; None where there is no such log.
        holding: What it takes of the gateway until its answer has ended.
    """

    path: str
    headers: Mapping[str, str]
    caller: Caller
    is_here: bool
    request_id: str
    remaining_s: float | None
    record: AccessRecord | None
    holding: Holding


class Parts(NamedTuple):
    """What calls are answered with; the owner of the entrance owns all of it.

    Attributes:
        dispatcher: Answers REST paths and inferences.
        metrics: Where calls are counted.
        access: Who may ask.
        bodies: Counts the memory of messages, together with that of HTTP bodies.
        key_limits: Counts what callers with keys ask, likewise.
        access_log: Told of every call; None for no such log.
        shared_memory: The regions of clients on this machine.
        wall_s: Returns seconds since the Unix epoch.
        new_id: Returns an id for a call that has none.
    """

    dispatcher: Dispatcher
    metrics: GatewayMetrics
    access: GatewayAccess
    bodies: Bodies
    key_limits: KeyLimits
    access_log: AccessLog | None
    shared_memory: SharedMemory
    wall_s: Callable[[], float]
    new_id: Callable[[], str]


class GrpcCalls:
    """Answers calls at one entrance. `context` is always a `grpc.aio.ServicerContext`."""

    def __init__(self, parts: Parts) -> None:
        """Answer with these; call within a running loop."""
        self.parts = parts
        self._loop = asyncio.get_running_loop()
        self._reading = Places(MAX_GRPC_READS, MAX_GRPC_READS_PER_CALLER, GRPC_MESSAGE_TIMEOUT_S)
        self._reading_small = Places(
            MAX_GRPC_SMALL_READS, MAX_GRPC_READS_PER_CALLER, GRPC_SMALL_MESSAGE_TIMEOUT_S
        )
        self.leaving = asyncio.Event()
        """Set when the node leaves: streams end then."""

    def __repr__(self) -> str:
        return f"<GrpcCalls of {self.parts.dispatcher!r}>"

    async def call(
        self,
        path: str,
        context: Any,
        answer: Callable[[Asking, Any], Any],
        scope: Scope = Scope.INFER,
    ) -> Any:
        """Answer one call, whatever happens; return its answer, if it has just one.

        Args:
            path: `/service/method`.
            context: The call's.
            answer: Reads what the caller sends, and answers; what it raises is the call's status.
            scope: What the caller needs.
        """
        method = path.rpartition("/")[2]
        parts = self.parts
        headers = dict(_lines(context))
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = parts.new_id()
        peer = peer_host(context.peer())
        record = None
        if parts.access_log is not None:
            agent = headers.get("user-agent", "")
            record = parts.access_log.begin(request_id, "POST", path, peer, agent)
        holding = Holding()
        status = Status(grpc_status.CANCELLED, "")
        told = CLIENT_GONE  # the HTTP status that says the same, for the access log
        try:
            headers = each_once(_lines(context))
            caller, is_here = self._admit(peer, headers)
            if record is not None:
                record.caller = caller
            require(caller, scope)
            if caller.limit is not None and parts.key_limits.begin(caller, self._loop.time()):
                holding.place = partial(parts.key_limits.end, caller)
            remaining_s = context.time_remaining()
            asking = Asking(
                path, headers, caller, is_here, request_id, remaining_s, record, holding
            )
            found = await answer(asking, context)
            status, told = Status(grpc_status.OK, ""), _HTTP_OK
            return found
        except MeshError as error:
            parts.metrics.errors.add((error.code,))
            status, told = grpc_status.status_from(error), status_of(error)
            if record is not None:
                record.error = error.code
        except HttpRefusal as refusal:
            status, told = grpc_status.status_from_refusal(refusal), refusal.status
        except Exception:
            log.exception("call %s failed: %s", request_id, path, extra={"request_id": request_id})
            sentence = f"the gateway failed to handle this call; its log has request {request_id}"
            status, told = Status(grpc_status.INTERNAL, sentence), 500
        finally:
            holding.end()
            parts.metrics.grpc_calls.add((method, grpc_status.NAMES[status.code]))
            if record is not None:
                assert parts.access_log is not None
                record.status = told
                parts.access_log.end(record)
        await self._abort(context, status, request_id)
        return None

    def _admit(self, peer: str, headers: Mapping[str, str]) -> tuple[Caller, bool]:
        """Say who asks, and whether from this machine."""
        approach = Approach(
            peer,
            "localhost",  # see the top of this module
            headers.get("origin"),
            headers.get("authorization"),
            headers.get("x-api-key"),
            "\n".join(headers).encode(),
        )
        access = self.parts.access
        caller = access.admit(approach, self._loop.time(), self.parts.wall_s())
        return caller, access.is_here(approach)

    async def _abort(self, context: Any, status: Status, request_id: str) -> None:
        from grpc import StatusCode
        from grpc.aio import InternalError

        code = next(each for each in StatusCode if each.value[0] == status.code)
        metadata = (*status.metadata, ("x-request-id", request_id))
        try:
            await context.abort(code, status.sentence[:4000], metadata)
        except InternalError:  # the call has ended already: nobody is left to be told
            raise asyncio.CancelledError from None

    # Messages

    async def read(self, context: Any) -> tuple[bytes, Body] | None:
        """Return a caller's next message, and what counts its memory until `end`; None after the last.

        Raises:
            Saturated: if too much is held already.
        """
        from grpc.aio import EOF

        data = await context.read()
        if data is EOF:
            return None
        held = self.parts.bodies.begin(len(data), _nothing)
        try:
            held.grow(len(data))
        except BaseException:
            held.end()
            raise
        held.complete()
        self.parts.metrics.request_body_bytes += len(data)
        return data, held

    async def read_only(self, asking: Asking, context: Any) -> tuple[bytes, Body]:
        """Return the message of a call that has one.

        Raises:
            InvalidRequest: if it has none, or does not send it in time.
            Saturated: as `read`, or if too many messages are being read.
        """
        is_large = asking.path.rpartition("/")[2] in _LARGE
        places = self._reading if is_large else self._reading_small
        # Behind one connection may be many callers; one without a key is known by nothing else.
        async with places.place(asking.caller.key_id or context.peer()):
            found = await self.read(context)
        if found is None:
            raise InvalidRequest("this call has no message")
        if asking.record is not None:
            asking.record.request_bytes = len(found[0])
        return found

    # Calls

    async def infer(self, asking: Asking, context: Any) -> bytes:
        """Answer `ModelInfer`."""
        from meshnode.gateway.protocols.grpc_messages import Unary

        data, held = await self.read_only(asking, context)
        asking.holding.body = held.end
        try:
            message = parse("ModelInferRequest", data)
            dialect = Unary(self.regions(asking))
            inference = self.parts.dispatcher.inference
            http = structs.replace(self.http_of(asking, data), holding=asking.holding)
            asked = Asked(http, message.model_name, version_in(message.model_version), message)
            match = Match(
                lambda _http, request_id: inference.answer(dialect, asked, request_id),
                Scope.INFER,
                takes_body=True,
            )
            reply = self.parts.dispatcher.answer(match, http, asking.request_id)
            response = reply if isinstance(reply, HttpResponse) else await reply
        finally:
            asking.holding.answered()
        assert isinstance(response, HttpResponse)  # `Unary` has no stream
        return self._unary(asking, response, context)

    def _unary(self, asking: Asking, response: HttpResponse, context: Any) -> bytes:
        """Return an answer's bytes, its headers told as trailing metadata."""
        if response.status != _HTTP_OK:
            raise HttpRefusal(response.status, _sentence(response))
        self.parts.metrics.response_body_bytes += response.size_bytes
        if asking.record is not None:
            asking.record.answered(response.status, response.headers, response.size_bytes)
        told = grpc_status.metadata(response.headers)
        context.set_trailing_metadata((*told, ("x-request-id", asking.request_id)))
        return _bytes(response)

    async def translated(self, asking: Asking, context: Any) -> bytes:
        """Answer a call that has a REST path."""
        from meshnode.gateway.protocols.grpc_rest import TRANSLATIONS, encode_reply

        translation = TRANSLATIONS[asking.path.rpartition("/")[2]]
        data, held = await self.read_only(asking, context)
        try:
            try:
                response = await self._asked(
                    translation.asked(parse(translation.request, data)), asking
                )
            except MeshError as error:
                if (
                    translation.otherwise is None
                    or grpc_status.code_of(error) != grpc_status.NOT_FOUND
                ):
                    raise
                return encode_reply(translation, translation.otherwise)
        finally:
            held.end()
        document = msgspec.json.decode(_bytes(response) or b"null")
        # What is not ready says so with a status, too; that is no error of this call.
        if response.status >= 400 and not (isinstance(document, dict) and "ready" in document):
            raise HttpRefusal(response.status, _sentence(response))
        return encode_reply(translation, translation.told(document))

    async def _asked(self, wanted: RestCall, asking: Asking) -> HttpResponse:
        match = self.parts.dispatcher.match(wanted.method, wanted.path)
        require(asking.caller, match.scope)
        body = b"" if wanted.body is None else msgspec.json.encode(wanted.body)
        http = HttpRequest(
            wanted.method, wanted.path, "", asking.headers, body, asking.caller, asking.record
        )
        reply = match.answer(http, asking.request_id)
        response = reply if isinstance(reply, HttpResponse) else await reply
        assert isinstance(response, HttpResponse)  # none of these paths streams
        return response

    # Shared memory

    def regions(self, asking: Asking) -> Regions:
        """Return the shared memory that a caller may name."""
        from meshnode.gateway.protocols.grpc_messages import NoRegions

        memory = self.parts.shared_memory
        if asking.is_here and memory.is_on:
            return memory
        return NoRegions(NOT_HERE if memory.is_on else OFF)

    async def shared_memory(self, asking: Asking, context: Any) -> bytes:
        """Answer the calls about system shared memory."""
        name = asking.path.rpartition("/")[2]
        data, held = await self.read_only(asking, context)
        held.end()
        message = parse(f"{name}Request", data)
        memory = self.parts.shared_memory
        if not asking.is_here:
            raise Forbidden(NOT_HERE)
        reply = parse(f"{name}Response", b"")
        match name.removeprefix("SystemSharedMemory"):
            case "Register":
                memory.register(message.name, message.key, message.offset, message.byte_size)
            case "Unregister":
                memory.unregister(message.name)
            case _:
                for region in memory.status(message.name):
                    told = reply.regions[region.name]
                    told.name, told.key = region.name, region.key
                    told.offset, told.byte_size = region.offset, region.size_bytes
        encoded: bytes = reply.SerializeToString()
        return encoded

    async def gpu_memory(self, asking: Asking, context: Any) -> bytes:
        """Answer the calls about CUDA shared memory: there is none, so none is registered or forgotten."""
        _, held = await self.read_only(asking, context)
        held.end()
        if asking.path.endswith("Register") and not asking.path.endswith("Unregister"):
            raise HttpRefusal(
                501,
                "CUDA shared memory is not supported: a mesh has no GPU memory in common with its clients; "
                "use system shared memory, or send the tensors with the request",
            )
        return b""

    # Parts of calls

    def http_of(self, asking: Asking, data: bytes) -> HttpRequest:
        """Return the HTTP request that a call is, for what is the same over HTTP."""
        from meshnode.gateway.protocols.grpc_messages import NO_TIMEOUT

        headers = asking.headers
        if asking.remaining_s is not None:
            headers = {**headers, NO_TIMEOUT: f"{max(0.0, asking.remaining_s):.6f}"}
        return HttpRequest("POST", asking.path, "", headers, data, asking.caller, asking.record)


def parse(name: str, data: bytes) -> Any:
    """Return a message.

    Raises:
        InvalidRequest: if the bytes are none.
    """
    from google.protobuf.message import DecodeError

    from meshnode.gateway.protocols.grpc_schema import messages

    try:
        return getattr(messages(), name).FromString(data)
    except DecodeError as error:
        raise InvalidRequest(f"the message is no {name}: {error}") from error


def version_in(text: str) -> int | None:
    """Return the version that a message names; None for none.

    Raises:
        InvalidRequest: if it is none.
    """
    return version_of(text) if text else None


def request_id_of(call: str, own: str, number: int) -> str:
    """Return the id of one request of a stream.

    Args:
        call: Of the stream.
        own: As its client calls it, or empty.
        number: Which of the stream's requests it is.
    """
    named = f"{call}:{own}"
    return named if own and _REQUEST_ID.fullmatch(named) else f"{call}:{number}"


def peer_host(peer: str) -> str:
    """Return the address in what gRPC calls a peer, such as `ipv4:127.0.0.1:5000`; empty if there is none."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return unquote(rest.rpartition(":")[0]).strip("[]")


def _lines(context: Any) -> Iterator[tuple[str, str]]:
    """Yield a call's metadata as it came."""
    from meshnode.gateway.protocols.grpc_messages import NO_TIMEOUT

    for key, value in context.invocation_metadata() or ():
        if key != NO_TIMEOUT:  # which only this gateway says
            yield key, value if isinstance(value, str) else ""


def _sentence(response: HttpResponse) -> str:
    try:
        document = msgspec.json.decode(_bytes(response))
    except msgspec.DecodeError:
        document = None
    said = document.get("error") if isinstance(document, dict) else None
    return said if isinstance(said, str) else f"the request failed with status {response.status}"


def _bytes(response: HttpResponse) -> bytes:
    body = response.body
    return body if isinstance(body, bytes) else b"".join(body)


def _nothing() -> None:
    """A message that is here is not dropped for others."""
