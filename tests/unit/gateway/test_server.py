"""The server on real sockets: limits, forged headers, slow and vanishing clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import stat
import struct
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
from aiohttp import StreamReader, web
from prometheus_client.parser import text_string_to_metric_families

from meshnode.errors import ConfigError, NoReplica
from meshnode.gateway import answering as answering_module
from meshnode.gateway import connections as connections_module
from meshnode.gateway import listening
from meshnode.gateway import reading as reading_module
from meshnode.gateway import server as server_module
from meshnode.gateway.access import ChannelAccess, GatewayAccess
from meshnode.gateway.bodies import Bodies
from meshnode.gateway.dispatch import Dispatcher
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.limits import MIB
from meshnode.routing.table import Goal
from meshnode.types import Address, InferResponse, ResponsePart, Scope, Tensor

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.gateway.pipeline import Pipeline

Serve = Callable[..., None]
INFER = "/v2/models/digits/infer"
GOOD = json.dumps(
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
).encode()


async def until(condition: Callable[[], object]) -> None:
    """Let the server go on until something is so."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the server's own state has no event to wait for
            await asyncio.sleep(0)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that says exactly what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self, *, head: bool = False) -> Reply:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {}
        for line in filter(None, lines[1:]):
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        length = 0 if head else int(headers.get("content-length", 0))
        body = await self.reader.readexactly(length)
        return Reply(int(lines[0].split()[1]), headers, body)

    async def ask(
        self, method: str, path: str, body: bytes = b"", /, **headers: str | None
    ) -> Reply:
        named: dict[str, str | None] = {"Host": "localhost", "Content-Length": str(len(body))}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = [f"{name}: {value}" for name, value in named.items() if value is not None]
        self.writer.write(
            "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode() + body
        )
        return await self.reply(head=method == "HEAD")

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest_asyncio.fixture
async def server(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> AsyncIterator[tuple[HttpServer, Address]]:
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    gateway = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    address = await gateway.listen_tcp(Address("127.0.0.1", 0))
    yield gateway, address
    await gateway.stop()


@pytest_asyncio.fixture
async def connect(
    server: tuple[HttpServer, Address],
) -> AsyncIterator[Callable[[], Any]]:
    clients: list[Client] = []

    async def dial() -> Client:
        reader, writer = await asyncio.open_connection(*server[1])
        clients.append(Client(reader, writer))
        return clients[-1]

    yield dial
    for client in clients:
        client.writer.close()


@pytest_asyncio.fixture
async def client(connect: Callable[[], Any]) -> Client:
    dialled: Client = await connect()
    return dialled


# Ordinary requests.


async def test_inference_over_a_connection_that_stays_open(
    client: Client, serve: Serve, metrics: GatewayMetrics
) -> None:
    serve()
    ids = set()
    for _ in range(3):
        reply = await client.ask("POST", INFER, GOOD)
        assert reply.status == 200
        assert reply.json["outputs"][0]["data"] == [1, 2, 3, 4]
        assert reply.headers["mesh-route"].startswith("node=alpha;")
        assert reply.headers["server"] == "meshnode"
        assert reply.headers["content-type"] == "application/json"
        assert "connection" not in reply.headers
        assert "date" in reply.headers
        ids.add(reply.headers["x-request-id"])
    assert len(ids) == 3
    assert metrics.responses.values == {("200",): 3}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_head_answers_as_get_without_the_body(client: Client, method: str) -> None:
    for _ in range(2):
        reply = await client.ask(method, "/v2/health/live")
        assert (reply.status, reply.headers["content-length"]) == (200, "13")
        assert reply.body == (b"" if method == "HEAD" else b'{"live":true}')


async def test_an_old_client_and_one_that_says_close_are_let_go(connect: Any) -> None:
    old = await connect()
    old.writer.write(b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    assert (await old.reply()).status == 200
    assert await old.reader.read() == b""
    last = await connect()
    reply = await last.ask("GET", "/healthz", Connection="close")
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert await last.reader.read() == b""


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2:3/4", True), ("a b", False), ("x" * 200, False), (None, False)]
)
async def test_a_sane_request_id_is_kept(client: Client, sent: str | None, kept: bool) -> None:
    reply = await client.ask("GET", "/healthz", X_Request_Id=sent)
    assert (reply.headers["x-request-id"] == sent) is kept


async def test_the_request_id_reaches_the_model(client: Client, serve: Serve, local: Any) -> None:
    serve()
    await client.ask("POST", INFER, GOOD, X_Request_Id="mine")
    assert local.requests[0].request_id == "mine"


async def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    for path in ("/v2", "/healthz", "/v2/health/live"):
        client.writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    bodies = [(await client.reply()).json for _ in range(3)]
    assert [next(iter(body)) for body in bodies] == ["name", "status", "live"]


async def test_metrics_are_what_prometheus_reads(client: Client, serve: Serve) -> None:
    serve()
    await client.ask("POST", INFER, GOOD)
    reply = await client.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    names = {family.name for family in text_string_to_metric_families(reply.body.decode())}
    assert {"meshnode_requests", "meshnode_http_responses", "meshnode_members"} <= names


# Refusals.


@pytest.mark.parametrize(
    ("method", "path", "status", "extra"),
    [
        ("GET", "/nothing", 404, {}),
        ("GET", "/v2/models/unknown", 404, {}),
        ("POST", "/v2/models/unknown/infer", 404, {}),
        ("GET", "/v2/models/digits/versions/x", 400, {}),
        ("DELETE", "/v2", 405, {"allow": "GET, HEAD"}),
        ("GET", INFER, 405, {"allow": "POST"}),
        ("POST", "/mesh/v1/invites", 401, {"www-authenticate": 'Bearer realm="meshnode"'}),
        ("POST", "/mesh/v1/shutdown", 403, {}),
        ("GET", "/mesh/v1/models/unknown", 404, {}),
        ("GET", "http://evil.example/v2", 400, {}),
    ],
)
async def test_refusals_are_json_and_leave_the_connection_open(
    client: Client, method: str, path: str, status: int, extra: dict[str, str]
) -> None:
    reply = await client.ask(method, path)
    assert reply.status == status
    assert reply.json["error"]
    assert ("code" in reply.json) is path.startswith("/mesh/")
    assert extra.items() <= reply.headers.items()
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_no_replica_is_503_with_retry_after(client: Client, serve: Serve, peers: Any) -> None:
    serve("beta")

    async def refuse(node: Any, request: Any) -> InferResponse:
        raise NoReplica("no replica can take it")

    peers.behave = refuse
    reply = await client.ask("POST", INFER, GOOD)
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert reply.json == {"error": "no replica can take it"}
    assert "attempts=1" in reply.headers["mesh-route"]
    assert reply.headers["mesh-route"].endswith('tried="beta:no_replica"')


async def test_a_deployed_model_that_nobody_serves_is_503_and_an_undeployed_one_404(
    client: Client, router: Any, manifest: Any
) -> None:
    router.wanted_changed("digits", {1: Goal(manifest, "d", "it is placed on beta")})
    for path in (INFER, "/v2/models/digits/versions/1/infer"):
        reply = await client.ask("POST", path, GOOD)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert reply.json["error"].endswith("is ready: it is placed on beta")
        assert "mesh-route" not in reply.headers
    router.wanted_changed("digits", {})
    assert (await client.ask("POST", INFER, GOOD)).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "forged",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8470"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},
    ],
)
async def test_forged_hosts_and_origins_are_refused_on_every_method(
    client: Client, method: str, forged: dict[str, str | None]
) -> None:
    for path in (INFER, "/mesh/v1/nodes"):
        assert (await client.ask(method, path, **forged)).status == 403


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.0\r\n\r\n", 403),
    ],
)
async def test_no_host_and_two_hosts_are_refused(
    client: Client, request_head: bytes, status: int
) -> None:
    client.writer.write(request_head)
    assert (await client.reply()).status == status


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET HTTP://127.0.0.1:1/healthz?x HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n", 200),
        (b"GET http://localhost/healthz HTTP/1.0\r\n\r\n", 200),
        (b"GET http://localhost/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET http://evil.example/healthz HTTP/1.0\r\n\r\n", 403),
        (b"GET http://u@localhost/healthz HTTP/1.1\r\nHost: u@localhost\r\n\r\n", 403),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
        (b"GET //evil.example/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
async def test_a_whole_url_is_asked_for_like_its_path_and_its_host_is_checked(
    client: Client, request_head: bytes, status: int
) -> None:
    client.writer.write(request_head)
    assert (await client.reply()).status == status


async def test_a_url_to_the_mesh_api_is_refused_with_a_code(client: Client) -> None:
    url = "http://localhost/mesh/v1/nothing"
    reply = await client.ask("GET", url)
    assert (reply.status, set(reply.json)) == (404, {"error", "code"})


async def test_a_page_of_the_gateway_itself_may_ask(client: Client) -> None:
    assert (await client.ask("GET", "/v2", Origin="http://localhost")).status == 200


async def test_a_defect_is_500_with_the_id_that_the_log_has(
    client: Client, control: Any, caplog: pytest.LogCaptureFixture
) -> None:
    control.broken = True
    reply = await client.ask("GET", "/mesh/v1/status", X_Request_Id="r-7")
    assert reply.status == 500
    assert reply.json["code"] == "internal"
    assert "r-7" in reply.json["error"]
    assert b"ZeroDivisionError" not in reply.body
    assert "r-7" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_a_line_end_in_a_header_never_reaches_the_wire(
    client: Client, control: Any, caplog: pytest.LogCaptureFixture, dispatcher: Dispatcher
) -> None:
    from meshnode.gateway.matching import Match
    from meshnode.gateway.protocols.http import HttpResponse

    evil = HttpResponse(200, {"Mesh-Route": "a\r\nSet-Cookie: b"}, b"{}")
    dispatcher._fixed["/evil"] = {"GET": Match(lambda _http, _id: evil, Scope.INFER)}
    reply = await client.ask("GET", "/evil")
    assert reply.status == 500
    assert "set-cookie" not in reply.headers
    assert "line end" in caplog.text


# Limits.


async def test_a_body_over_the_limit_is_refused_by_its_length_alone(client: Client) -> None:
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 67108865\r\n\r\n".encode()
    )
    reply = await client.reply()
    assert (reply.status, reply.json) == (413, {"error": "the body is larger than 67108864 bytes"})


@pytest.fixture
def small_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "MAX_BODY_BYTES", 1000)


@pytest.mark.usefixtures("small_bodies")
async def test_a_body_over_the_limit_is_refused_in_one_piece_and_in_chunks(
    connect: Any, serve: Serve
) -> None:
    serve()
    whole = await connect()
    assert (await whole.ask("POST", INFER, bytes(1001))).status == 413
    chunked = await connect()
    chunked.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    chunked.writer.write((b"64\r\n" + bytes(100) + b"\r\n") * 11)
    assert (await chunked.reply()).status == 413


def _holds(server: HttpServer, size_bytes: int) -> bool:
    return server._bodies.held_bytes >= size_bytes


async def test_a_chunked_body_is_read(client: Client, server: Any, serve: Serve) -> None:
    serve()
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    for start in range(0, len(GOOD), 10):
        piece = GOOD[start : start + 10]
        client.writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await until(partial(_holds, server[0], start))
    client.writer.write(b"0\r\n\r\n")
    assert (await client.reply()).status == 200


async def test_broken_chunks_are_refused_at_the_latest_when_their_time_is_over(
    client: Client, server: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiohttp's parser stops at them, and does not tell who waits for the rest of the body."""
    serve()
    monkeypatch.setattr(reading_module, "BODY_GRACE_S", 0.05)
    monkeypatch.setattr(reading_module, "MIN_BODY_BYTES_PER_S", 10**6)
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab".encode()
    )
    await until(lambda: server[0]._bodies.held_bytes == 2)
    client.writer.write(b"cdeXX\r\nzz\r\n")
    assert (await client.reply()).status in (400, 408)


async def test_a_body_that_the_parser_gives_up_is_no_http(
    client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def give_up(_reader: Any) -> bytes:
        raise web.RequestPayloadError

    serve()
    monkeypatch.setattr(StreamReader, "readany", give_up)
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab".encode()
    )
    reply = await client.reply()
    assert (reply.status, reply.json) == (400, {"error": "the body is not valid HTTP"})


async def test_a_client_that_waits_for_permission_gets_it(client: Client, serve: Serve) -> None:
    serve()
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(GOOD)}\r\n\r\n".encode()
    )
    assert (await client.reply()).status == 100
    client.writer.write(GOOD)
    assert (await client.reply()).status == 200


async def test_a_slow_body_is_given_up(
    client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setattr(reading_module, "BODY_GRACE_S", 0.01)
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab".encode()
    )
    reply = await client.reply()
    assert (reply.status, reply.headers["connection"]) == (408, "close")


async def test_a_body_that_keeps_its_pace_has_more_time(
    client: Client, server: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setattr(reading_module, "BODY_GRACE_S", 0.0)
    monkeypatch.setattr(reading_module, "MIN_BODY_BYTES_PER_S", 1)
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
        + GOOD[:-1]
    )
    await until(lambda: server[0]._bodies.held_bytes == len(GOOD) - 1)
    client.writer.write(GOOD[-1:])
    assert (await client.reply()).status == 200


@pytest.mark.parametrize("chunked", [True, False])
async def test_all_large_bodies_together_are_bounded(
    connect: Any, server: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    serve()
    monkeypatch.setattr(server[0]._bodies, "limit_bytes", 50)
    client = await connect()
    kind = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100"
    client.writer.write(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n\r\n".encode())
    if chunked:
        client.writer.write(b"14\r\n" + bytes(20) + b"\r\n")
        await until(lambda: server[0]._bodies.held_bytes == 20)
        client.writer.write(b"40\r\n" + bytes(64) + b"\r\n")
        reply = await client.reply()
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    else:
        assert (await client.reply()).status == 413
    assert server[0]._bodies.held_bytes == 0


def begin_body(client: Client, size_bytes: int, sent: int) -> None:
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size_bytes}\r\n\r\n".encode()
        + bytes(sent)
    )


async def test_whoever_stops_within_the_largest_body_makes_room_for_the_others(
    connect: Any, server: Any, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    bodies = server[0]._bodies
    monkeypatch.setattr(bodies, "limit_bytes", 3 * MIB)
    stalled, second, honest = await connect(), await connect(), await connect()
    begin_body(stalled, 2 * MIB, 2 * MIB - 1)
    await until(lambda: bodies.held_bytes == 2 * MIB - 1)
    begin_body(second, MIB, 100)
    begin_body(honest, 2 * MIB, 2 * MIB - 1)
    reply = await stalled.reply()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "too many large requests" in reply.json["error"]
    honest.writer.write(b"x")
    assert (await honest.reply()).status == 400  # read, and no JSON
    await until(lambda: bodies.held_bytes == 100)
    assert (await (await connect()).ask("POST", INFER, GOOD)).status == 200


async def test_bodies_keep_to_the_memory_that_the_owner_allows(
    dispatcher: Dispatcher, metrics: GatewayMetrics, serve: Serve
) -> None:
    """The process grows by what it reads, whatever the share of bodies would allow."""
    serve()
    used = 90 * MIB
    bodies = Bodies(100 * MIB, lambda: used + bodies.held_bytes)
    assert bodies.limit_bytes == 25 * MIB
    access = GatewayAccess(OriginPolicy("127.0.0.1"), lambda _: None)
    gateway = HttpServer(dispatcher, metrics, access, bodies=bodies, grace_s=0.1)
    address = await gateway.listen_tcp(Address("127.0.0.1", 0))
    clients = [Client(*await asyncio.open_connection(*address)) for _ in range(4)]
    begin_body(clients[0], 26 * MIB, 0)
    reply = await clients[0].reply()
    assert reply.status == 413
    assert "this node may hold 25 MiB of bodies (a share of --max-memory)" in reply.json["error"]
    begin_body(clients[1], 11 * MIB, 0)
    reply = await clients[1].reply()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert "(--max-memory)" in reply.json["error"]
    begin_body(clients[2], 8 * MIB, 8 * MIB - 1)
    await until(lambda: bodies.held_bytes == 8 * MIB - 1)
    begin_body(clients[3], 2 * MIB, 1)
    await until(lambda: bodies.held_bytes == 8 * MIB)
    used += 2 * MIB
    clients[3].writer.write(bytes(MIB))
    async with asyncio.timeout(10):
        assert (await clients[2].reply()).status == 503
    for client in clients:
        await client.close()
    await until(lambda: bodies.held_bytes == 0)
    await gateway.stop()


async def test_large_answers_that_nobody_reads_are_bounded_together(
    connect: Any, server: Any, control: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.nodes = lambda: ["n" * 20 * MIB]
    monkeypatch.setattr(server[0]._bodies, "limit_bytes", 30 * MIB)
    slow, late = await connect(), await connect()
    slow.writer.write(b"GET /mesh/v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await until(lambda: server[0]._bodies._answers_bytes > 0)
    reply = await late.ask("GET", "/mesh/v1/nodes")
    assert (reply.status, reply.json["code"]) == (503, "saturated")
    assert "large answers that are not read" in reply.json["error"]
    assert len((await slow.reply()).body) > 20 * MIB
    await until(lambda: server[0]._bodies._answers_bytes == 0)
    assert (await late.ask("GET", "/mesh/v1/nodes")).status == 200


async def test_headers_are_bounded_one_by_one_and_together(connect: Any) -> None:
    together = await connect()
    many = {f"X_{n}": "v" * 4000 for n in range(5)}
    reply = await together.ask("GET", "/v2", **many)
    assert (reply.status, "16384" in reply.json["error"]) == (431, True)
    one = await connect()
    assert (await one.ask("GET", "/v2", X_Long="v" * 20_000)).status == 431
    count = await connect()
    reply = await count.ask("GET", "/v2", **{f"X_{n}": "v" for n in range(100)})
    assert (reply.status, "64 headers" in reply.json["error"]) == (431, True)


async def test_connections_beyond_the_limit_are_closed(
    connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "MAX_HTTP_CONNECTIONS", 1)
    first = await connect()
    assert (await first.ask("GET", "/healthz")).status == 200
    second = await connect()
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await second.ask("GET", "/healthz")
    await first.close()
    for _ in range(100):
        third = await connect()
        try:
            assert (await third.ask("GET", "/healthz")).status == 200
            break
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0)  # the server has not seen the first one leave
    else:
        pytest.fail("the place of a closed connection was not given away")


async def test_bytes_that_are_no_http_leave_the_server_serving(
    connect: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source = random.Random(5)
    for _ in range(40):
        client = await connect()
        client.writer.write(source.randbytes(source.randrange(1, 400)) + b"\r\n\r\n")
        reply = await client.reply()
        assert reply.status == 400
        assert reply.json == {"error": "the request is not valid HTTP"}
    assert (await (await connect()).ask("GET", "/healthz")).status == 200
    assert caplog.text == ""


# Large answers, and clients that leave.


@pytest.mark.parametrize("binary", [True, False])
async def test_a_large_answer_arrives_whole(
    client: Client, serve: Serve, make_manifest: Any, binary: bool
) -> None:
    from meshnode.models.manifest import TensorSpec

    serve(what=make_manifest(TensorSpec("x", "FP32", (-1, 4)), model="big"))  # type: ignore[arg-type]
    data = np.arange(400_000, dtype=np.float32)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [100_000, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": data.nbytes},
                }
            ],
            "parameters": {"binary_data_output": binary},
        }
    ).encode()
    reply = await client.ask(
        "POST",
        "/v2/models/big/infer",
        head + data.tobytes(),
        Inference_Header_Content_Length=str(len(head)),
    )
    assert reply.status == 200
    if binary:
        length = int(reply.headers["inference-header-content-length"])
        assert reply.body[length:] == data.tobytes()
    else:
        assert reply.json["outputs"][0]["data"] == data.tolist()
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_a_large_page_has_no_body_for_head(client: Client, control: Any) -> None:
    control.nodes = lambda: ["n" * 100_000]
    reply = await client.ask("HEAD", "/mesh/v1/nodes")
    assert reply.headers["content-length"] == "100004"
    assert (await client.ask("GET", "/healthz")).status == 200


async def test_a_client_that_does_not_read_its_answer_is_dropped(
    client: Client, server: Any, serve: Serve, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    local.inline = False

    async def huge(request: Any) -> InferResponse:
        tensor = Tensor("x", request.inputs[0].datatype, (8_000_000,), bytes(32_000_000))
        return InferResponse("digits", 1, ResponsePart((tensor,)))

    local.behave = huge
    monkeypatch.setattr(answering_module, "BODY_GRACE_S", 0.01)
    monkeypatch.setattr(answering_module, "MIN_BODY_BYTES_PER_S", 10**12)
    body = GOOD[:-1] + b', "parameters": {"binary_data_output": true}}'
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await until(lambda: local.requests and not server[0]._runner.server._open)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await client.reply()


async def test_a_client_that_hangs_up_cancels_its_request(
    client: Client, serve: Serve, peers: Any, pipeline: Pipeline
) -> None:
    serve("beta")
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def hang(node: Any, request: Any) -> InferResponse:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    peers.behave = hang
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
        + GOOD
    )
    async with asyncio.timeout(5):
        await started.wait()
        await client.close()
        await cancelled.wait()
    await until(lambda: pipeline.in_flight == 0)


async def test_a_client_that_hangs_up_in_its_body_leaves_nothing(
    client: Client, server: Any, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    serve()
    client.writer.write(
        f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nab".encode()
    )
    await until(lambda: server[0]._bodies.held_bytes == 2)
    await client.close()
    await until(lambda: server[0]._bodies.held_bytes == 0)
    assert "Traceback" not in caplog.text


async def test_a_client_that_never_finishes_its_headers_is_let_go(
    dispatcher: Dispatcher, metrics: GatewayMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "KEEP_ALIVE_S", 0.05)
    gateway = HttpServer(dispatcher, metrics, None)
    client = Client(
        *await asyncio.open_connection(*await gateway.listen_tcp(Address("127.0.0.1", 0)))
    )
    client.writer.write(b"GET /v2 HTTP/1.1\r\nHost: loc")
    async with asyncio.timeout(5):
        assert await client.reader.read() == b""
    await client.close()
    await gateway.stop()


# Listening.


async def test_a_taken_port_is_explained(dispatcher: Dispatcher, metrics: GatewayMetrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        gateway = HttpServer(dispatcher, metrics, None)
        with pytest.raises(ConfigError, match="--http HOST:PORT"):
            await gateway.listen_tcp(Address("127.0.0.1", taken.getsockname()[1]))
        await gateway.stop()


async def test_a_name_is_listened_at_under_all_its_addresses(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> None:
    gateway = HttpServer(dispatcher, metrics, None)
    address = await gateway.listen_tcp(Address("localhost", 0))
    client = Client(*await asyncio.open_connection("127.0.0.1", address.port))
    assert (await client.ask("GET", "/healthz")).status == 200
    await client.close()
    await gateway.stop()


async def over_unix(path: Path) -> Client:
    return Client(*await asyncio.open_unix_connection(path))


async def test_the_control_socket_is_its_owners_and_takes_changes(
    pipeline: Pipeline, control: Any, metrics: GatewayMetrics, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    owner = HttpServer(Dispatcher(pipeline, control, metrics), metrics, None)
    await owner.listen_unix(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = await over_unix(path)
    reply = await client.ask("POST", "/mesh/v1/invites", b'{"ttl_s":60}', Host="anything")
    assert (reply.status, reply.json["invite"]) == (200, "mesh1abc")
    assert (await client.ask("DELETE", "/mesh/v1/deployments/digits")).status == 200
    reply = await client.ask("POST", "/mesh/v1/invites", b"{}"[:1])
    assert (reply.status, reply.json["code"]) == (400, "invalid_request")
    await client.close()
    second = HttpServer(Dispatcher(pipeline, control, metrics), metrics, None)
    with pytest.raises(ConfigError, match="another daemon is running"):
        await second.listen_unix(path)
    await second.stop()
    await owner.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who connects")
async def test_another_user_gets_no_answer_at_the_control_socket_whatever_its_mode(
    pipeline: Pipeline,
    control: Any,
    metrics: GatewayMetrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "control.sock"
    server = HttpServer(Dispatcher(pipeline, control, metrics), metrics, None)
    await server.listen_unix(path)
    path.chmod(0o666)
    peer = struct.pack("3i", 1, 4711, 4711)

    class Stranger:
        family = socket.AF_UNIX

        def getsockopt(self, *_: int) -> bytes:
            return peer

    assert not listening.is_from_owner(Stranger())  # type: ignore[arg-type]
    asked = listening.is_from_owner
    monkeypatch.setattr("meshnode.gateway.connections.is_from_owner", lambda _: asked(Stranger()))  # type: ignore[arg-type]
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(ConnectionError):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await reader.read() == b""
    writer.close()
    peer = struct.pack("3i", 1, os.geteuid(), 4711)
    client = await over_unix(path)
    assert (await client.ask("GET", "/healthz")).status == 200
    await client.close()
    await server.stop()


async def test_a_socket_left_by_a_crash_is_replaced_and_other_files_are_not(
    pipeline: Pipeline, control: Any, metrics: GatewayMetrics, tmp_path: Path
) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    server = HttpServer(Dispatcher(pipeline, control, metrics), metrics, None)
    await server.listen_unix(path)
    client = await over_unix(path)
    assert (await client.ask("GET", "/healthz")).status == 200
    await client.close()
    precious = tmp_path / "file"
    precious.write_text("precious")
    with pytest.raises(ConfigError, match="cannot be opened"):
        await server.listen_unix(precious)
    assert precious.read_text() == "precious"
    await server.stop()


async def test_stopping_lets_a_running_request_finish(
    client: Client, server: Any, serve: Serve, peers: Any
) -> None:
    serve("beta")
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow(node: Any, request: Any) -> InferResponse:
        started.set()
        await go_on.wait()
        return InferResponse("digits", 1, ResponsePart(()))

    peers.behave = slow
    asking = asyncio.create_task(client.ask("POST", INFER, GOOD))
    await started.wait()
    stopping = asyncio.create_task(server[0].stop())
    await until(lambda: not server[0]._runner.addresses)
    go_on.set()
    assert (await asking).status == 200
    await stopping


# Triton's own client.


async def test_tritons_client_works_unmodified(
    server: Any, serve: Serve, make_manifest: Any
) -> None:
    from meshnode.models.manifest import TensorSpec
    from meshnode.types import DataType

    serve()
    strings = make_manifest(TensorSpec("s", DataType.BYTES, (-1,)), model="strings")
    serve(what=strings)

    def use() -> None:
        with triton.InferenceServerClient(str(server[1])) as asking:
            assert asking.is_server_live()
            assert asking.is_server_ready()
            assert asking.is_model_ready("digits")
            assert not asking.is_model_ready("nothing")
            assert asking.get_server_metadata()["name"] == "meshnode"
            assert asking.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 4]
            assert asking.get_model_config("digits")["backend"] == "onnxruntime"
            array = np.arange(4000, dtype=np.float32).reshape(1000, 4)
            for binary in (True, False):
                sent = triton.InferInput("x", [1000, 4], "FP32")
                sent.set_data_from_numpy(array, binary_data=binary)
                wanted = [triton.InferRequestedOutput("x", binary_data=binary)]
                for coding in (None, "gzip", "deflate"):
                    for outputs in (None, wanted):
                        result = asking.infer(
                            "digits",
                            [sent],
                            outputs=outputs,
                            request_id="r1",
                            timeout=5_000_000,
                            request_compression_algorithm=coding,
                            response_compression_algorithm=coding,
                        )
                        np.testing.assert_array_equal(result.as_numpy("x"), array)
                        assert result.get_response()["id"] == "r1"
            words = triton.InferInput("s", [2], "BYTES")
            words.set_data_from_numpy(np.array([b"\xff\0", b""], np.object_))
            assert list(asking.infer("strings", [words]).as_numpy("s")) == [b"\xff\0", b""]
            bad = triton.InferInput("x", [1, 5], "FP32")
            bad.set_data_from_numpy(np.zeros((1, 5), np.float32))
            with pytest.raises(
                triton.InferenceServerException, match=r"has shape \[-1, 4\]"
            ) as failed:
                asking.infer("digits", [bad])
            assert failed.value.status() == "400"

    await asyncio.to_thread(use)


async def test_a_raw_body_needs_no_json(client: Client, serve: Serve) -> None:
    serve()
    data = struct.pack("<4f", 1, 2, 3, 4)
    reply = await client.ask("POST", INFER, data, Inference_Header_Content_Length="0")
    length = int(reply.headers["inference-header-content-length"])
    assert reply.body[length:] == data


async def test_a_small_binary_answer_to_a_client_that_leaves(client: Client, serve: Serve) -> None:
    serve()
    data = struct.pack("<4f", 1, 2, 3, 4)
    reply = await client.ask(
        "POST", INFER, data, Inference_Header_Content_Length="0", Connection="close"
    )
    assert reply.body.endswith(data)
    assert await client.reader.read() == b""


async def test_an_entrance_with_a_token_refuses_everything_without_it(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> None:
    access = ChannelAccess(OriginPolicy("127.0.0.1"), lambda value: value == "Bearer t")
    guarded = HttpServer(dispatcher, metrics, access)
    address = await guarded.listen_tcp(Address("127.0.0.1", 0))
    client = Client(*await asyncio.open_connection(*address))
    assert (await client.ask("GET", "/healthz")).status == 403
    assert (await client.ask("GET", "/healthz", Authorization="Bearer t")).status == 200
    with_token: dict[str, str | None] = {"Authorization": "Bearer t"}
    assert (await client.ask("POST", "/mesh/v1/invites", b"{}", **with_token)).status == 200
    assert (await client.ask("GET", "/healthz", Host="evil.example", **with_token)).status == 403
    assert "HttpServer" in repr(guarded)
    await client.close()
    await guarded.stop()


async def test_a_server_that_stops_accepting_answers_what_stands_and_closes_it(
    server: tuple[HttpServer, Address], connect: Callable[[], Any]
) -> None:
    gateway, address = server
    standing, idle = await connect(), await connect()
    assert "connection" not in (await standing.ask("GET", "/healthz")).headers
    assert (await idle.ask("GET", "/healthz")).status == 200
    await gateway.stop_accepting()
    with pytest.raises(OSError):  # noqa: PT011 - what a refused connection is called differs
        await asyncio.open_connection(*address)
    reply = await standing.ask("GET", "/healthz")
    assert reply.status == 200
    assert reply.headers["connection"] == "close"
    assert await standing.reader.read() == b""
    gateway.close_idle()
    assert await idle.reader.read() == b""
