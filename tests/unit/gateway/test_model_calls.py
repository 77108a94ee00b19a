"""Documents and routes that models answer by themselves, through the dispatcher and on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshnode.errors import InferenceFailed, InvalidRequest, NoReplica
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.caller import LOCAL, OWNER
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.server import HttpServer
from meshnode.models.execution import Execution, Interface, Route
from meshnode.models.http_calls import (
    HTTP_TENSORS,
    HttpHead,
    body_tensor,
    content_of,
    decode_call,
    document_tensor,
    head_parameters,
    json_tensors,
)
from meshnode.models.manifest import Manifest
from meshnode.types import Address, InferRequest, InferResponse, ReplicaState, ResponsePart

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.routing.router import Router

Serve = Callable[..., None]
KEY = "mesh_" + "a" * 16 + "_" + "b" * 52


def chat() -> Manifest:
    inputs, outputs = json_tensors()
    execution = Execution(interface=Interface.JSON, decoupled=True)
    return Manifest("chat", 1, "python", "python", inputs, outputs, 0, (), "", execution)


def shop(*routes: Route, model: str = "shop") -> Manifest:
    execution = Execution(
        interface=Interface.HTTP, decoupled=True, routes=routes or (Route("POST", "/buy/{item}"),)
    )
    return Manifest(model, 1, "python", "python", HTTP_TENSORS, HTTP_TENSORS, 0, (), "", execution)


def answer(*parts: ResponsePart, error: Exception | None = None) -> Callable[[InferRequest], Any]:
    async def stream() -> AsyncIterator[ResponsePart]:
        for part in parts:
            yield part
        if error is not None:
            raise error

    async def behave(request: InferRequest) -> InferResponse:
        return InferResponse(request.model, 1, stream())

    return behave


def said(data: bytes, content_type: str = "", status: int = 200, **headers: str) -> ResponsePart:
    pairs = [(name.replace("_", "-"), value) for name, value in headers.items()]
    if content_type:
        pairs.append(("content-type", content_type))
    parameters = head_parameters(HttpHead(status, tuple(pairs))) if pairs or status != 200 else {}
    return ResponsePart((document_tensor("response", data),), parameters)


async def ask(
    dispatcher: Dispatcher,
    method: str,
    path: str,
    body: bytes = b"",
    caller: Caller = LOCAL,
    **headers: str,
) -> HttpResponse | HttpStream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    match = dispatcher.match(method, path)
    reply = match.answer(HttpRequest(method, path, "a=1", named, body, caller), "r1")
    return reply if isinstance(reply, HttpResponse) else await reply


async def whole(response: HttpResponse | HttpStream) -> bytes:
    assert isinstance(response, HttpStream)
    return b"".join([bytes(part) async for part in response.parts])


@pytest.fixture
def own(local: Any) -> Any:
    local.inline = False
    return local


async def test_a_document_goes_to_the_model_as_it_is_and_its_answer_comes_back(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b'{"text":"hi"}'))
    response = await ask(
        dispatcher, "POST", "/inference/chat", b'{"q":1}', accept="*/*", content_type="text/x"
    )
    assert isinstance(response, HttpResponse)
    assert (response.status, response.body) == (200, b'{"text":"hi"}')
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Mesh-Route"].startswith("node=alpha;")
    (request,) = own.requests
    assert bytes(content_of(request.inputs)) == b'{"q":1}'
    assert dict(request.parameters) == {"accept": "*/*", "content_type": "text/x"}


async def test_a_document_is_answered_by_another_node(
    dispatcher: Dispatcher, serve: Serve, peers: Any
) -> None:
    serve("beta", chat())
    peers.behave = lambda _node, request: answer(said(b"[1]"), said(b""))(request)
    response = await ask(dispatcher, "POST", "/inference/chat")
    assert isinstance(response, HttpResponse)
    assert response.body == b"[1]"


async def test_events_are_passed_on_one_by_one(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"data: 1\n\n", "text/event-stream"), said(b"data: 2\n\n"))
    response = await ask(dispatcher, "POST", "/inference/chat", b'{"stream": true}')
    assert isinstance(response, HttpStream)
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.size_bytes is None
    assert await whole(response) == b"data: 1\n\ndata: 2\n\n"


async def test_what_a_framework_gives_no_content_type_is_sent_as_it_is_made(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    head = head_parameters(HttpHead(200, ()))
    own.behave = answer(
        ResponsePart((document_tensor("response", b"on"),), head),
        said(b"e"),
        error=InferenceFailed("it has no end"),
    )
    response = await ask(dispatcher, "POST", "/inference/chat")
    assert isinstance(response, HttpStream)
    assert "Content-Type" not in response.headers
    assert bytes(await anext(aiter(response.parts))) == b"on"


async def test_a_status_that_has_no_body_is_no_stream(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(ResponsePart((document_tensor("response", b""),), {"http_status": 204}))
    response = await ask(dispatcher, "POST", "/inference/chat")
    assert isinstance(response, HttpResponse)
    assert (response.status, response.body) == (204, b"")


async def test_a_file_has_the_length_that_its_node_says(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"ab", "image/png", content_length="3"), said(b"c"))
    response = await ask(dispatcher, "POST", "/inference/chat", accept="image/png")
    assert isinstance(response, HttpStream)
    assert response.size_bytes == 3
    assert await whole(response) == b"abc"


async def test_an_answer_in_json_that_breaks_off_has_the_status_of_its_error(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"[1,"), error=InferenceFailed("it broke"))
    with pytest.raises(InferenceFailed, match="it broke") as raised:
        await ask(dispatcher, "POST", "/inference/chat")
    assert raised.value.mesh_route.startswith("node=alpha;")


async def test_an_answer_without_parts_has_failed(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer()
    with pytest.raises(InferenceFailed, match="without a result"):
        await ask(dispatcher, "POST", "/inference/chat")


async def test_an_impossible_status_has_failed(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"", status=299))
    with pytest.raises(InferenceFailed, match="299"):
        await ask(dispatcher, "POST", "/inference/chat")


def test_documents_are_posted(dispatcher: Dispatcher) -> None:
    with pytest.raises(HttpRefusal) as refusal:
        dispatcher.match("GET", "/inference/chat")
    assert refusal.value.status == 405
    with pytest.raises(HttpRefusal) as refusal:
        dispatcher.match("POST", "/inference/chat/more")
    assert refusal.value.status == 404


async def test_a_route_of_a_model_is_answered_by_it(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=shop())
    own.behave = answer(
        ResponsePart(
            (body_tensor(b"ok"),),
            head_parameters(HttpHead(201, (("etag", "x"), ("content-security-policy", "none")))),
        )
    )
    response = await ask(dispatcher, "POST", "/buy/blue%20hat", b"body", x_trace="1")
    assert (response.status, await whole_or_body(response)) == (201, b"ok")
    assert response.headers["Etag"] == "x"
    assert response.headers["Content-Security-Policy"].startswith("sandbox ")
    (request,) = own.requests
    call = decode_call(bytes(content_of(request.inputs)), request.parameters)
    assert call is not None
    assert (call.method, call.path, call.query) == ("POST", "/buy/blue hat", "a=1")
    assert (bytes(call.body), call.headers) == (b"body", (("x-trace", "1"),))


async def whole_or_body(response: HttpResponse | HttpStream) -> bytes:
    if isinstance(response, HttpStream):
        return await whole(response)
    assert isinstance(response.body, bytes)
    return response.body


async def test_head_is_asked_as_get(dispatcher: Dispatcher, serve: Serve, own: Any) -> None:
    serve(what=shop(Route("GET", "/page")))
    own.behave = answer(ResponsePart((body_tensor(b"page"),), {}))
    await ask(dispatcher, "HEAD", "/page")
    assert own.requests[0].parameters["http_method"] == "GET"


@pytest.mark.parametrize(
    ("caller", "header", "seen"),
    [
        (LOCAL, f"Bearer {KEY}", False),
        (LOCAL, "Bearer the-models-own", True),
        (OWNER, "Bearer channel-token", False),
    ],
)
async def test_a_model_never_sees_a_key_of_the_mesh(
    dispatcher: Dispatcher, serve: Serve, own: Any, caller: Caller, header: str, seen: bool
) -> None:
    serve(what=shop())
    own.behave = answer(ResponsePart((body_tensor(b""),), {}))
    await ask(dispatcher, "POST", "/buy/x", caller=caller, authorization=header)
    assert ("authorization" in str(own.requests[0].parameters["http_headers"])) is seen


def test_the_meshs_own_paths_win_over_a_models(dispatcher: Dispatcher, serve: Serve) -> None:
    before = dispatcher.match("GET", "/healthz")
    serve(what=shop(Route("GET", "/healthz"), Route("GET", "/v2/x")))
    assert dispatcher.match("GET", "/healthz") is before
    with pytest.raises(HttpRefusal):
        dispatcher.match("GET", "/v2/models/x/y/z")


def test_a_path_that_no_model_has_is_unknown_and_another_method_is_told(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=shop(Route("GET", "/page")))
    with pytest.raises(HttpRefusal) as unknown:
        dispatcher.match("GET", "/nothing")
    assert unknown.value.status == 404
    with pytest.raises(HttpRefusal) as wrong:
        dispatcher.match("PUT", "/page")
    assert wrong.value.status == 405
    assert wrong.value.headers["Allow"] == "GET, HEAD"


async def test_a_route_appears_with_its_model_and_goes_with_it(
    dispatcher: Dispatcher, serve: Serve, router: Router
) -> None:
    with pytest.raises(HttpRefusal):
        dispatcher.match("POST", "/buy/x")
    serve(what=shop())
    assert dispatcher.match("POST", "/buy/x").takes_body
    group = router.table.group("shop", 1)
    assert group is not None
    (replica,) = group.members.values()
    failed = type(replica)(
        replica.node, "alpha", "eu-west", "", "shop", 1, ReplicaState.FAILED, "broken", shop()
    )
    router.replica_changed(failed, 101.0)
    with pytest.raises(NoReplica, match="broken"):
        await ask(dispatcher, "POST", "/buy/x")
    router.replica_removed(replica.node, "shop", 1)
    with pytest.raises(HttpRefusal):
        dispatcher.match("POST", "/buy/x")


# On real sockets.


@pytest_asyncio.fixture
async def address(dispatcher: Dispatcher, metrics: GatewayMetrics) -> AsyncIterator[Address]:
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    gateway = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    yield await gateway.listen_tcp(Address("127.0.0.1", 0))
    await gateway.stop()


async def raw(address: Address, path: str, method: str = "POST") -> bytes:
    """Return all bytes of an answer, until the server closes."""
    reader, writer = await asyncio.open_connection(*address)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        "Content-Length: 2\r\n\r\n{}".encode()
    )
    async with asyncio.timeout(10):
        data = await reader.read()
    writer.close()
    return data


async def test_a_stream_is_written_in_chunks(address: Address, serve: Serve, own: Any) -> None:
    serve(what=chat())
    own.behave = answer(said(b"one ", "text/plain"), said(b"two"))
    data = await raw(address, "/inference/chat")
    assert b"Transfer-Encoding: chunked" in data
    assert data.endswith(b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n")


async def test_a_stream_of_events_that_fails_ends_with_an_event_that_says_so(
    address: Address, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"data: 1\n\n", "text/event-stream"), error=InferenceFailed("oh"))
    data = await raw(address, "/inference/chat")
    assert b'event: error\ndata: {"error":"oh","code":"inference_failed"}\n\n' in data
    assert data.endswith(b"0\r\n\r\n")


async def test_another_stream_that_fails_never_seems_complete(
    address: Address, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    own.behave = answer(said(b"half", "text/plain"), error=InferenceFailed("oh"))
    data = await raw(address, "/inference/chat")
    assert b"half" in data
    assert not data.endswith(b"0\r\n\r\n")


async def test_a_client_that_hangs_up_stops_the_stream(
    address: Address, serve: Serve, own: Any
) -> None:
    serve(what=chat())
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[ResponsePart]:
        try:
            while True:
                yield said(b"x" * 1000, "text/plain")
                await asyncio.sleep(0)
        finally:
            ended.set()

    async def behave(request: InferRequest) -> InferResponse:
        return InferResponse(request.model, 1, endless())

    own.behave = behave
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"POST /inference/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
    await reader.readexactly(2000)
    writer.transport.abort()
    async with asyncio.timeout(10):
        await ended.wait()


async def test_head_of_a_stream_has_no_body(address: Address, serve: Serve, own: Any) -> None:
    serve(what=shop(Route("GET", "/page")))
    head = head_parameters(HttpHead(200, (("content-type", "text/html"),)))
    own.behave = answer(ResponsePart((body_tensor(b"<p>"),), head))
    data = await raw(address, "/page", "HEAD")
    assert data.startswith(b"HTTP/1.1 200")
    assert b"<p>" not in data


async def test_an_error_of_a_route_is_json(address: Address, serve: Serve, own: Any) -> None:
    serve(what=shop())
    own.fail = InvalidRequest("no such hat")
    data = await raw(address, "/buy/x")
    assert data.startswith(b"HTTP/1.1 400")
    assert json.loads(data.partition(b"\r\n\r\n")[2]) == {"error": "no such hat"}
