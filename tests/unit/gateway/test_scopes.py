"""Every route, every method, every kind of caller: who gets in, on a real socket.

The table names each route with the scope that it needs. It is compared with what the dispatcher
has, so a route that is added without a thought of who may use it fails here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.server import HttpServer
from meshnode.state.api_keys import ApiKey, make_api_key
from meshnode.types import Address, Scope
from tests.unit.gateway.test_server import GOOD, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
INFER, DEPLOY, ADMIN, OWNER = Scope

NEEDED: dict[str, dict[str, Scope]] = {
    "/v2": {"GET": INFER},
    "/v2/health/live": {"GET": INFER},
    "/v2/health/ready": {"GET": INFER},
    "/healthz": {"GET": INFER},
    "/readyz": {"GET": INFER},
    "/metrics": {"GET": INFER},
    "/v2/models/digits": {"GET": INFER},
    "/v2/models/digits/ready": {"GET": INFER},
    "/v2/models/digits/config": {"GET": INFER},
    "/v2/models/digits/infer": {"POST": INFER},
    "/v2/models/digits/versions/1": {"GET": INFER},
    "/v2/models/digits/versions/1/ready": {"GET": INFER},
    "/v2/models/digits/versions/1/infer": {"POST": INFER},
    "/mesh/v1/status": {"GET": INFER},
    "/mesh/v1/nodes": {"GET": INFER},
    "/mesh/v1/rtt": {"GET": INFER},
    "/mesh/v1/models": {"GET": INFER},
    "/mesh/v1/models/digits": {"GET": INFER},
    "/mesh/v1/deployments": {"POST": DEPLOY},
    "/mesh/v1/deployments/digits": {"DELETE": DEPLOY},
    "/mesh/v1/uploads": {"GET": ADMIN, "POST": DEPLOY},
    "/mesh/v1/uploads/u1": {"GET": DEPLOY, "DELETE": DEPLOY},
    "/mesh/v1/uploads/u1/0": {"PUT": DEPLOY},
    "/mesh/v1/invites": {"POST": ADMIN},
    "/mesh/v1/join-requests": {"GET": ADMIN},
    "/mesh/v1/join-requests/approve": {"POST": ADMIN},
    "/mesh/v1/evictions": {"POST": ADMIN},
    "/mesh/v1/roles/beta": {"PUT": ADMIN},
    "/mesh/v1/trust": {"GET": ADMIN},
    "/mesh/v1/trust/rotate": {"POST": OWNER},
    "/mesh/v1/trust/seal": {"POST": OWNER},
    "/mesh/v1/keys": {"GET": ADMIN, "POST": ADMIN},
    "/mesh/v1/keys/phone": {"DELETE": ADMIN},
    "/mesh/v1/doctor": {"POST": ADMIN},
    "/mesh/v1/shutdown": {"POST": OWNER},
}
BODIES = {
    "/v2/models/digits/infer": GOOD,
    "/v2/models/digits/versions/1/infer": GOOD,
    "/mesh/v1/deployments": b'{"upload":"u1"}',
    "/mesh/v1/uploads": b'{"files":[{"path":"a/1/model.onnx","size_bytes":1}]}',
    "/mesh/v1/keys": b'{"name":"phone"}',
    "/mesh/v1/join-requests/approve": b'{"code":"123456"}',
    "/mesh/v1/evictions": b'{"node":"beta"}',
    "/mesh/v1/roles/beta": b'{"role":"member"}',
}

QUERIES = {"/mesh/v1/uploads/u1/0": "?offset=0", "/mesh/v1/rtt": "?from=alpha&to=beta"}


def routes_of(dispatcher: Dispatcher) -> dict[str, dict[str, Scope]]:
    """Ask the dispatcher for the scope of each path of the table, and of each that it lists."""
    found: dict[str, dict[str, Scope]] = {}
    for path in {*NEEDED, *(path for path in dispatcher._fixed if not path.endswith("/"))}:
        for method in METHODS:
            with contextlib.suppress(HttpRefusal):
                scope = dispatcher.match(method, path).scope
                if method != "HEAD":
                    found.setdefault(path, {})[method] = scope
    return found


def test_the_table_has_every_route(dispatcher: Dispatcher) -> None:
    assert routes_of(dispatcher) == NEEDED
    for prefix in dispatcher._named:
        assert any(path.startswith(prefix) for path in NEEDED), f"{prefix} has no line in the table"


@pytest_asyncio.fixture
async def keys() -> dict[Scope, tuple[ApiKey, str]]:
    return {
        scope: make_api_key(scope, [scope], None, 1e9, os.urandom(42), [])
        for scope in (INFER, DEPLOY, ADMIN)
    }


@pytest_asyncio.fixture
async def client(
    dispatcher: Dispatcher, metrics: GatewayMetrics, keys: dict[Scope, tuple[ApiKey, str]]
) -> AsyncIterator[Client]:
    known = {key.id: key for key, _ in keys.values()}
    access = GatewayAccess(OriginPolicy("0.0.0.0"), known.get)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1)
    address = await server.listen_tcp(Address("127.0.0.1", 0))
    client = Client(*await asyncio.open_connection(*address))
    yield client
    await client.close()
    await server.stop()


def expected(method: str, needed: dict[str, Scope], held: Scope | None, keyed: bool) -> int | None:
    """Return the status of a refusal, or None where the request gets through."""
    if held is None:
        return 401
    scope = needed.get("GET" if method == "HEAD" else method)
    if scope is None:
        return 405
    if held.allows(scope):
        return None
    return 403 if keyed or scope is OWNER else 401


@pytest.mark.parametrize("path", NEEDED)
@pytest.mark.parametrize("held", [None, "local", INFER, DEPLOY, ADMIN])
async def test_each_caller_gets_what_its_scope_allows_and_no_more(
    client: Client,
    serve: Callable[..., None],
    control: Any,
    keys: dict[Scope, tuple[ApiKey, str]],
    path: str,
    held: Any,
) -> None:
    serve()
    headers: dict[str, str | None] = {"Host": "192.168.1.5:8470"}
    scope: Scope | None = held
    if held == "local":
        headers["Host"], scope = "localhost", INFER
    elif held is not None:
        headers["Authorization"] = f"Bearer {keys[held][1]}"
    query = QUERIES.get(path, "")
    for method in METHODS:
        control.calls.clear()
        reply = await client.ask(method, path + query, BODIES.get(path, b""), **headers)
        status = expected(method, NEEDED[path], scope, held != "local")
        if status is None:
            assert reply.status < 300, (method, reply)
            continue
        assert reply.status == status, (method, reply)
        assert control.calls == []
        assert ("www-authenticate" in reply.headers) is (status == 401)
        if method != "HEAD":
            assert set(reply.json) == (
                {"error", "code"} if path.startswith("/mesh/") else {"error"}
            )


async def test_strangers_do_not_learn_which_paths_there_are(client: Client) -> None:
    for path in ("/nothing", "/v2/models/nothing", "/mesh/v1/models/nothing", "/mesh/v1/keys/x"):
        for method in METHODS:
            assert (await client.ask(method, path, Host="192.168.1.5")).status == 401


async def test_a_strangers_body_is_not_read(client: Client) -> None:
    """It hears the refusal before it has sent anything."""
    client.writer.write(
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: 192.168.1.5\r\n"
        b"Content-Length: 50000000\r\nExpect: 100-continue\r\n\r\n"
    )
    assert (await client.reply()).status == 401


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X_Real_IP", "via"])
async def test_a_proxy_on_this_machine_brings_strangers(client: Client, header: str) -> None:
    assert (await client.ask("GET", "/healthz", Host="localhost")).status == 200
    reply = await client.ask("GET", "/healthz", Host="localhost", **{header: "203.0.113.9"})
    assert (reply.status, reply.headers["www-authenticate"]) == (401, 'Bearer realm="meshnode"')


async def test_guesses_end_in_429_with_a_time(client: Client) -> None:
    wrong = f"Bearer mesh_{'a' * 16}_{'b' * 52}"
    for _ in range(20):
        await client.ask("GET", "/v2", Host="192.168.1.5", Authorization=wrong)
    reply = await client.ask("GET", "/v2", Host="192.168.1.5", Authorization=wrong)
    assert reply.status == 429
    assert 0 < int(reply.headers["retry-after"]) <= 6
    assert "too many wrong API keys" in reply.json["error"]


async def test_no_key_is_ever_logged_or_counted(
    client: Client,
    control: Any,
    keys: dict[Scope, tuple[ApiKey, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    control.broken = True  # a defect, with a stack trace in the log
    text = keys[INFER][1]
    for shown in (text, text[:-1] + "a", text + "x"):
        for name in ("Authorization", "X_API_Key"):
            value = f"Bearer {shown}" if name == "Authorization" else shown
            reply = await client.ask("GET", "/mesh/v1/status", Host="192.168.1.5", **{name: value})
            assert text[-40:-2] not in reply.body.decode()
            assert text[-40:-2] not in str(reply.headers)
    metrics = await client.ask("GET", "/metrics", Host="localhost")
    assert text[-40:-2] not in metrics.body.decode()
    assert text[-40:-2] not in caplog.text
    assert "ZeroDivisionError" in caplog.text
