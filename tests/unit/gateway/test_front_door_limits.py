"""What a key may have at once, and what of a gateway one client can hold: on real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshnode.daemon.access_log import AccessLog
from meshnode.gateway import answering as answering_module
from meshnode.gateway import connections as connections_module
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.idempotency import AnswersOnce
from meshnode.gateway.key_limits import KeyLimits
from meshnode.gateway.matching import Match, RouteSet
from meshnode.gateway.protocols.cors import Cors
from meshnode.gateway.protocols.http import HttpStream
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.key_limit import KeyLimit
from meshnode.state.api_keys import ID_BYTES, SECRET_BYTES, make_api_key
from meshnode.types import Address, InferResponse, ResponsePart, Scope
from tests.unit.gateway.test_access_log import Clock, lines_of, soon
from tests.unit.gateway.test_server import GOOD, INFER, Client, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.protocols.http import HttpRequest
    from meshnode.types import InferRequest

DRAWN = bytes(range(ID_BYTES + SECRET_BYTES))
KEY, TEXT = make_api_key("phone", ["infer"], None, 1.0, DRAWN, (), limit=KeyLimit(concurrency=1))
PAGE = "https://app.example.org"


class Door:
    """A gateway whose only key may have one request at once."""

    def __init__(self, dispatcher: Dispatcher, metrics: GatewayMetrics, log: AccessLog) -> None:
        self.bodies = Bodies()
        self.limits = KeyLimits()
        cors = Cors([PAGE])
        access = GatewayAccess(
            OriginPolicy("127.0.0.1", cors=cors), {KEY.id: KEY}.get, require_key=True
        )
        self.server = HttpServer(
            dispatcher, metrics, access, bodies=self.bodies, key_limits=self.limits, grace_s=0.1,
            wall_s=lambda: 2.0, cors=cors, access_log=log,
        )  # fmt: skip
        self.address = Address("127.0.0.1", 0)
        self.clients: list[Client] = []

    async def dial(self, receives_bytes: int | None = None) -> Client:
        sock = socket.socket()
        if receives_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, tuple(self.address))
        self.clients.append(Client(*await asyncio.open_connection(sock=sock, limit=4096)))
        return self.clients[-1]


@pytest.fixture
def log(tmp_path: Path) -> AccessLog:
    return AccessLog(tmp_path / "access.log", Clock())


@pytest_asyncio.fixture
async def door(
    dispatcher: Dispatcher, metrics: GatewayMetrics, log: AccessLog
) -> AsyncIterator[Door]:
    found = Door(dispatcher, metrics, log)
    found.address = await found.server.listen_tcp(found.address)
    yield found
    for client in found.clients:
        client.writer.close()
    await found.server.stop()
    await log.close()


async def test_a_header_that_is_no_text_costs_neither_the_answer_nor_the_line(
    door: Door, tmp_path: Path
) -> None:
    client = await door.dial()
    client.writer.write(
        b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nUser-Agent: a\xff\r\nX-Api-Key: %s\r\n\r\n"
        % TEXT.encode()
    )
    assert (await client.reply()).status == 200
    path = tmp_path / "access.log"
    await soon(lambda: bool(path.read_bytes()))
    assert lines_of(path)[0]["user_agent"] == "a\\udcff"


@pytest.mark.parametrize("logged", [True, False])
async def test_a_client_that_reads_no_small_answers_is_hung_up_on(
    door: Door, metrics: GatewayMetrics, monkeypatch: pytest.MonkeyPatch, logged: bool
) -> None:
    monkeypatch.setattr(answering_module, "BODY_GRACE_S", 0.05)
    monkeypatch.setattr(connections_module, "BODY_GRACE_S", 0.05)
    client = await door.dial(receives_bytes=4096)
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]
    key = f"X-Api-Key: {TEXT}\r\n" if logged else ""
    ask = f"GET /mesh/v1/openapi.json HTTP/1.1\r\nHost: localhost\r\n{key}\r\n"
    if not logged:  # refusals are small answers, too
        ask = f"GET /v2 HTTP/1.1\r\nHost: localhost\r\n{key}\r\n"
    client.writer.write(ask.encode() * 20_000)
    await until(lambda: metrics.connections == 1)
    async with asyncio.timeout(20):
        while metrics.connections:  # noqa: ASYNC110 - the server's own state has no event to wait for
            await asyncio.sleep(0.01)


async def test_a_large_answer_counts_for_its_key_until_it_was_taken(
    door: Door, serve: Any, local: Any
) -> None:
    serve()

    async def large(asked: InferRequest) -> InferResponse:
        [x] = asked.inputs
        return InferResponse(
            asked.model, 1, ResponsePart((type(x)("y", x.datatype, (1, 2**21), bytes(2**23)),))
        )

    local.inline, local.behave = False, large
    reader, other = await door.dial(receives_bytes=4096), await door.dial()
    headers = {"X_Api_Key": TEXT, "Host": "localhost"}
    reader.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {TEXT}\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
        + GOOD
    )
    await reader.reader.readuntil(b"\r\n\r\n")
    assert (await other.ask("GET", "/healthz", **headers)).status == 429
    reader.writer.transport.abort()
    await until(lambda: repr(door.limits) and not door.limits._rows[KEY.id].running)
    assert (await other.ask("GET", "/healthz", **headers)).status == 200


async def test_work_that_goes_on_without_its_client_keeps_its_place_and_its_body(
    door: Door, serve: Any, local: Any, dispatcher: Dispatcher, metrics: GatewayMetrics
) -> None:
    serve()
    go = asyncio.Event()

    async def held(asked: InferRequest) -> InferResponse:
        await go.wait()
        return InferResponse(asked.model, 1, ResponsePart(asked.inputs))

    local.inline, local.behave = False, held
    dispatcher.answer_once = AnswersOnce(lambda: 0.0, metrics).answer
    gone, other = await door.dial(), await door.dial()
    headers = {"X_Api_Key": TEXT}
    gone.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {TEXT}\r\nIdempotency-Key: a\r\n"
        f"Content-Length: {len(GOOD)}\r\n\r\n".encode()
    )
    await asyncio.sleep(0.01)
    gone.writer.write(GOOD)
    await until(lambda: local.requests)
    gone.writer.transport.abort()
    await until(lambda: metrics.connections == 1)
    assert (await other.ask("GET", "/healthz", **headers)).status == 429
    assert door.bodies.held_bytes == len(GOOD)
    go.set()
    await until(lambda: not door.bodies.held_bytes)
    assert (await other.ask("GET", "/healthz", **headers)).status == 200


async def test_a_preflight_must_name_this_gateway(door: Door) -> None:
    client = await door.dial()
    asks = {"Origin": PAGE, "Access_Control_Request_Method": "POST"}
    assert (await client.ask("OPTIONS", INFER, **asks)).status == 200
    assert (await client.ask("OPTIONS", INFER, Host="evil.com", **asks)).status == 403


async def test_bytes_that_are_no_request_are_counted_and_logged_with_the_id_of_their_answer(
    door: Door, metrics: GatewayMetrics, tmp_path: Path
) -> None:
    client = await door.dial()
    client.writer.write(b"what is this?\r\n\r\n")
    reply = await client.reply()
    assert reply.status == 400
    assert metrics.responses.values == {("400",): 1}
    path = tmp_path / "access.log"
    await soon(lambda: bool(path.read_bytes()))
    [line] = lines_of(path)
    assert (line["status"], line["request_id"]) == (400, reply.headers["x-request-id"])


@pytest.mark.parametrize("left", [True, False])
async def test_a_stream_that_was_left_is_logged_with_what_was_sent_of_it(
    door: Door, serve: Any, dispatcher: Dispatcher, tmp_path: Path, left: bool
) -> None:
    go = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"12345"
        await go.wait()

    async def answer(_http: HttpRequest, _request_id: str) -> HttpStream:
        return HttpStream(200, {}, parts())

    dispatcher.add(RouteSet({"/flow": {"GET": Match(answer, Scope.INFER)}}, {}))
    client = await door.dial()
    client.writer.write(
        f"GET /flow HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: {TEXT}\r\n\r\n".encode()
    )
    await client.reader.readuntil(b"12345")
    if left:
        client.writer.transport.abort()
    else:
        go.set()
    path = tmp_path / "access.log"
    await soon(lambda: bool(path.read_bytes()))
    [line] = lines_of(path)
    assert (line["status"], line["response_bytes"], "broken" in line) == (200, 5, left)


async def test_every_answer_says_that_it_depends_on_the_origin(door: Door) -> None:
    client = await door.dial()
    for origin in (None, PAGE):
        reply = await client.ask("GET", "/v2", X_Api_Key=TEXT, Origin=origin)
        assert reply.headers["vary"] == "Origin"
        assert ("access-control-allow-origin" in reply.headers) is (origin is not None)


def test_an_answers_own_vary_is_kept() -> None:
    assert Cors([PAGE]).shared({"vary": "Accept"}, PAGE)["Vary"] == "Accept, Origin"
