"""Every route, every method, every kind of caller: who gets in, on a real socket.

The table names each route with the scope that it needs. It is compared with what the dispatcher
has, so a route that is added without a thought of who may use it fails here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.server import HttpServer
from meshnode.models.manifest import TensorSpec
from meshnode.state.api_keys import ApiKey, make_api_key
from meshnode.types import Address, DataType, Scope
from tests.unit.gateway.test_model_calls import chat
from tests.unit.gateway.test_server import GOOD, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics
    from meshnode.models.manifest import Manifest

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
INFER, DEPLOY, ADMIN, OWNER = Scope

NEEDED: dict[str, dict[str, Scope]] = {
    "/v2": {"GET": INFER},
    "/v2/health/live": {"GET": INFER},
    "/v2/health/ready": {"GET": INFER},
    "/v2/models/stats": {"GET": INFER},
    "/v2/logging": {"GET": INFER, "POST": INFER},
    "/v2/trace/setting": {"GET": INFER, "POST": INFER},
    "/v2/models/digits/trace/setting": {"GET": INFER, "POST": INFER},
    "/v2/cudasharedmemory/status": {"GET": INFER},
    "/v2/cudasharedmemory/unregister": {"POST": INFER},
    "/v2/cudasharedmemory/region/frames/status": {"GET": INFER},
    "/v2/cudasharedmemory/region/frames/register": {"POST": INFER},
    "/v2/cudasharedmemory/region/frames/unregister": {"POST": INFER},
    "/v2/repository/index": {"POST": INFER},
    "/v2/repository/models/digits/load": {"POST": DEPLOY},
    "/v2/repository/models/digits/unload": {"POST": DEPLOY},
    "/v2/models/digits/stats": {"GET": INFER},
    "/v2/models/digits/generate": {"POST": INFER},
    "/v2/models/digits/generate_stream": {"POST": INFER},
    "/v2/models/digits/versions/1/stats": {"GET": INFER},
    "/v2/models/digits/versions/1/generate": {"POST": INFER},
    "/v2/models/digits/versions/1/generate_stream": {"POST": INFER},
    "/ping": {"GET": INFER},
    "/predictions/digits": {"POST": INFER, "PUT": INFER},
    "/predictions/digits/1": {"POST": INFER, "PUT": INFER},
    "/explanations/digits": {"POST": INFER, "PUT": INFER},
    "/models": {"GET": INFER, "POST": DEPLOY},
    "/models/digits": {"GET": INFER, "PUT": DEPLOY, "DELETE": DEPLOY},
    "/models/digits/all": {"GET": INFER},
    "/models/digits/1": {"GET": INFER, "PUT": DEPLOY, "DELETE": DEPLOY},
    "/models/digits/1/set-default": {"PUT": DEPLOY},
    "/v1/models": {"GET": INFER},
    "/v1/models/digits": {"GET": INFER},
    "/v1/models/digits/metadata": {"GET": INFER},
    "/v1/models/digits/versions/1": {"GET": INFER},
    "/v1/models/digits:predict": {"POST": INFER},
    "/v1/models/digits/versions/1:predict": {"POST": INFER},
    "/v1/models/digits:classify": {"POST": INFER},
    "/v1/chat/completions": {"POST": INFER},
    "/v1/completions": {"POST": INFER},
    "/v1/embeddings": {"POST": INFER},
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
    "/inference/chat": {"POST": INFER},
    "/predict": {"POST": INFER},
    "/predict/async": {"POST": INFER},
    "/mesh/v1/status": {"GET": INFER},
    "/mesh/v1/nodes": {"GET": INFER},
    "/mesh/v1/rtt": {"GET": INFER},
    "/mesh/v1/models": {"GET": INFER},
    "/mesh/v1/models/digits": {"GET": INFER},
    "/mesh/v1/models/digits/explain": {"GET": INFER},
    "/mesh/v1/decisions": {"GET": ADMIN},
    "/mesh/v1/models/digits/infer": {"POST": INFER},
    "/mesh/v1/models/digits/stream": {"POST": INFER},
    "/mesh/v1/models/digits/versions/1/infer": {"POST": INFER},
    "/mesh/v1/models/digits/versions/1/stream": {"POST": INFER},
    "/mesh/v1/events": {"GET": INFER},
    "/docs": {"GET": INFER},
    "/docs/page.js": {"GET": INFER},
    "/docs/page.css": {"GET": INFER},
    "/openapi.json": {"GET": INFER},
    "/mesh/v1/models/digits/jobs": {"POST": INFER},
    "/mesh/v1/models/digits/versions/1/jobs": {"POST": INFER},
    "/mesh/v1/jobs": {"GET": INFER},
    "/mesh/v1/jobs/aaaaaaaaaaaaaaaaaaaaaaaaaa": {"GET": INFER, "DELETE": INFER},
    "/mesh/v1/jobs/aaaaaaaaaaaaaaaaaaaaaaaaaa/result": {"GET": INFER},
    "/mesh/v1/jobs/aaaaaaaaaaaaaaaaaaaaaaaaaa/events": {"GET": INFER},
    "/mesh/v1/deployments": {"GET": INFER, "POST": DEPLOY},
    "/mesh/v1/deployments/digits": {"GET": INFER, "PUT": DEPLOY, "PATCH": DEPLOY, "DELETE": DEPLOY},
    "/mesh/v1/deployments/digits/history": {"GET": INFER},
    "/mesh/v1/deployments/digits/diff": {"GET": INFER},
    "/mesh/v1/deployments/digits/rollback": {"POST": DEPLOY},
    "/mesh/v1/deployments/digits/rollout": {"GET": INFER, "POST": DEPLOY},
    "/mesh/v1/deployments/digits/rollout/disagreements": {"GET": DEPLOY},
    "/mesh/v1/feedback": {"POST": INFER},
    "/mesh/v1/artifacts": {"GET": INFER, "POST": DEPLOY},
    "/mesh/v1/artifacts/digits/1": {"DELETE": DEPLOY},
    "/mesh/v1/uploads": {"GET": ADMIN, "POST": DEPLOY},
    "/mesh/v1/uploads/u1": {"GET": DEPLOY, "DELETE": DEPLOY},
    "/mesh/v1/uploads/u1/0": {"PUT": DEPLOY},
    "/mesh/v1/invites": {"POST": ADMIN},
    "/mesh/v1/join-requests": {"GET": ADMIN},
    "/mesh/v1/join-requests/approve": {"POST": ADMIN},
    "/mesh/v1/evictions": {"POST": ADMIN},
    "/mesh/v1/roles/beta": {"PUT": ADMIN},
    "/mesh/v1/nodes/beta/drain": {"GET": INFER, "PUT": ADMIN, "DELETE": ADMIN},
    "/mesh/v1/trust": {"GET": ADMIN},
    "/mesh/v1/trust/rotate": {"POST": OWNER},
    "/mesh/v1/trust/seal": {"POST": OWNER},
    "/mesh/v1/keys": {"GET": ADMIN, "POST": ADMIN},
    "/mesh/v1/keys/phone": {"PUT": ADMIN, "DELETE": ADMIN},
    "/mesh/v1/doctor": {"POST": ADMIN},
    "/mesh/v1/shutdown": {"POST": OWNER},
}
NATIVE = b'{"inputs":{"x":[[1,2,3,4]]}}'
BODIES = {
    "/mesh/v1/models/digits/infer": NATIVE,
    "/mesh/v1/models/digits/jobs": NATIVE,
    "/mesh/v1/models/digits/versions/1/jobs": NATIVE,
    "/mesh/v1/models/digits/stream": NATIVE,
    "/mesh/v1/models/digits/versions/1/infer": NATIVE,
    "/mesh/v1/models/digits/versions/1/stream": NATIVE,
    "/v2/models/digits/generate": b'{"x":[1,2,3,4]}',
    "/v2/models/digits/generate_stream": b'{"x":[1,2,3,4]}',
    "/v2/models/digits/versions/1/generate": b'{"x":[1,2,3,4]}',
    "/v2/models/digits/versions/1/generate_stream": b'{"x":[1,2,3,4]}',
    "/predictions/digits": b'{"x":[1,2,3,4]}',
    "/predictions/digits/1": b'{"x":[1,2,3,4]}',
    "/v2/models/digits/infer": GOOD,
    "/v2/models/digits/versions/1/infer": GOOD,
    "/v1/models/digits:predict": b'{"instances":[[1,2,3,4]]}',
    "/v1/models/digits/versions/1:predict": b'{"instances":[[1,2,3,4]]}',
    "/v1/models/digits:classify": b'{"examples":[{"x":[1,2,3,4]}]}',
    "/v1/chat/completions": b'{"model":"writer","messages":[{"role":"user","content":"hi"}]}',
    "/v1/completions": b'{"model":"writer","prompt":"hi"}',
    "/v1/embeddings": b'{"model":"encoder","input":"hi"}',
    "/mesh/v1/deployments": b'{"upload":"u1"}',
    "PUT /mesh/v1/deployments/digits": b'{"deployment":{"model":"digits"}}',
    "/mesh/v1/deployments/digits/rollout": b'{"verb":"pause"}',
    "/mesh/v1/artifacts": b'{"upload":"u1"}',
    "/mesh/v1/uploads": b'{"files":[{"path":"a/1/model.onnx","size_bytes":1}]}',
    "/mesh/v1/keys": b'{"name":"phone"}',
    "/mesh/v1/keys/phone": b'{"rate":"10/s"}',
    "/mesh/v1/join-requests/approve": b'{"code":"123456"}',
    "/mesh/v1/evictions": b'{"node":"beta"}',
    "/mesh/v1/roles/beta": b'{"role":"member"}',
    "/mesh/v1/nodes/beta/drain": b'{"wait_s":60}',
    "/mesh/v1/feedback": b'{"request":"r1","label":1}',
}

REFUSED = (
    "/v2/cudasharedmemory/region/frames/register",
    "/explanations/",
    "/v2/logging",
    "/v2/trace",
    "/v2/models/digits/trace",
)
"""Paths that are answered with 501: clients know them, and hear why it is not so here."""

FAILS = {"/v1/embeddings": 500, "/mesh/v1/feedback": 404}
"""Paths at which the model that answers here, which echoes, cannot give what is asked; and no answer is remembered."""

OPEN = ("/docs", "/docs/page.js", "/docs/page.css")
"""Paths that strangers may read: the same files on every node, for browsers, which cannot send a key."""

READABLE = {
    (method, path)
    for method in ("GET", "HEAD")
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/digits/trace/setting")
}

QUERIES = {
    "/predict": "?model=chat",
    "/predict/async": "?model=chat",
    "/mesh/v1/events": "?follow=false",
    "/models": "?url=digits",
    "/mesh/v1/uploads/u1/0": "?offset=0",
    "/mesh/v1/rtt": "?from=alpha&to=beta",
}


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
    for prefix in dispatcher._below:
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


def error_members(path: str) -> set[str]:
    """Return the members of an error at a path, in its dialect."""
    if path.startswith(("/predictions/", "/explanations/", "/models", "/ping")):
        return {"code", "type", "message"}
    return {"error", "code"} if path.startswith("/mesh/") else {"error"}


@pytest.mark.parametrize("path", NEEDED)
@pytest.mark.parametrize("held", [None, "local", INFER, DEPLOY, ADMIN])
async def test_each_caller_gets_what_its_scope_allows_and_no_more(
    client: Client,
    serve: Callable[..., None],
    make_manifest: Callable[..., Manifest],
    control: Any,
    keys: dict[Scope, tuple[ApiKey, str]],
    path: str,
    held: Any,
) -> None:
    await control.jobs.show_to_all()
    serve()
    serve(what=chat())
    control.manifests["chat", 1] = chat()  # one mesh, whether it is asked or shown
    text = TensorSpec("x", DataType.BYTES, (1,))
    serve(what=make_manifest(text, model="writer"))
    encoder = make_manifest(text, model="encoder")
    vector = TensorSpec("v", DataType.FP32, (1,))
    serve(what=msgspec.structs.replace(encoder, outputs=(vector,)))
    headers: dict[str, str | None] = {"Host": "192.168.1.5:8470"}
    scope: Scope | None = held
    if held == "local":
        headers["Host"], scope = "localhost", INFER
    elif held is not None:
        headers["Authorization"] = f"Bearer {keys[held][1]}"
    query = QUERIES.get(path, "")
    for method in METHODS:
        control.calls.clear()
        reply = await client.ask(
            method, path + query, BODIES.get(f"{method} {path}", BODIES.get(path, b"")), **headers
        )
        status = expected(method, NEEDED[path], scope, held != "local")
        if path in OPEN and method in ("GET", "HEAD"):
            status = None
        if status is None:
            refused = path.startswith(REFUSED) and (method, path) not in READABLE
            if path in FAILS:
                assert reply.status == FAILS[path], reply
            else:
                assert (reply.status == 501) if refused else (reply.status < 300), (method, reply)
            if "transfer-encoding" in reply.headers and method != "HEAD":
                await client.reader.readuntil(b"\r\n0\r\n\r\n")
            continue
        assert reply.status == status, (method, reply)
        assert control.calls == []
        assert ("www-authenticate" in reply.headers) is (status == 401)
        if method != "HEAD":
            assert set(reply.json) == error_members(path)


async def test_strangers_do_not_learn_which_paths_there_are(client: Client) -> None:
    for path in ("/nothing", "/v2/models/nothing", "/mesh/v1/models/nothing", "/mesh/v1/keys/x"):
        for method in METHODS:
            assert (await client.ask(method, path, Host="192.168.1.5")).status == 401


async def test_strangers_may_read_the_page_but_not_the_description(client: Client) -> None:
    for path in (*OPEN, "/docs/", "/docs?x=1"):
        assert (await client.ask("GET", path, Host="192.168.1.5")).status == 200
    for path in ("/openapi.json", "/docs/../openapi.json", "/%64ocs", "/docs/page", "/docs//"):
        assert (await client.ask("GET", path, Host="192.168.1.5")).status == 401
    assert (await client.ask("POST", "/docs", Host="192.168.1.5")).status == 401


async def test_the_page_is_not_shown_under_a_foreign_name(client: Client) -> None:
    assert (await client.ask("GET", "/docs", Host="evil.example")).status == 403


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
