"""Pages of other origins: none may use the gateway unless its owner named them."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from meshnode.errors import Forbidden
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.protocols.cors import Cors
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.state.api_keys import make_api_key
from meshnode.types import Address
from tests.unit.gateway.test_server import GOOD, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics

APP = "https://app.example.org"
KEY, TEXT = make_api_key("page", ["infer"], None, 1e9, os.urandom(42), [])
PREFLIGHT = {"Origin": APP, "Access_Control_Request_Method": "POST"}


@pytest_asyncio.fixture
async def client(
    request: pytest.FixtureRequest, dispatcher: Dispatcher, metrics: GatewayMetrics, serve: Any
) -> AsyncIterator[Client]:
    serve()
    cors = Cors(request.param)
    access = GatewayAccess(OriginPolicy("127.0.0.1", (), cors), {KEY.id: KEY}.get)
    server = HttpServer(dispatcher, metrics, access, grace_s=0.1, cors=cors)
    address = await server.listen_tcp(Address("127.0.0.1", 0))
    made = Client(*await asyncio.open_connection(*address))
    yield made
    made.writer.close()
    await server.stop()


closed = pytest.mark.parametrize("client", [()], indirect=True)
named = pytest.mark.parametrize("client", [(APP,)], indirect=True)
open_to_all = pytest.mark.parametrize("client", [("*",)], indirect=True)


@closed
async def test_a_gateway_is_closed_to_pages_of_other_origins(client: Client) -> None:
    asked = await client.ask("OPTIONS", "/v2/models/digits/infer", **PREFLIGHT)
    assert asked.status == 403
    assert "--cors-origin" in asked.json["error"]
    answer = await client.ask("GET", "/v2", Origin=APP)
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


@named
async def test_a_named_origin_is_told_what_it_may_send_before_it_shows_a_key(
    client: Client,
) -> None:
    answer = await client.ask(
        "OPTIONS",
        "/v2/models/digits/infer",
        **PREFLIGHT,
        Access_Control_Request_Headers="authorization, idempotency-key",
        Access_Control_Request_Private_Network="true",
    )
    headers = answer.headers
    assert answer.status == 200
    assert headers["access-control-allow-origin"] == APP
    assert headers["access-control-allow-headers"] == "authorization, idempotency-key"
    assert headers["access-control-allow-private-network"] == "true"
    assert "DELETE" in headers["access-control-allow-methods"]
    assert headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in headers


@named
async def test_a_named_origin_reads_answers_and_errors(client: Client) -> None:
    """On the machine itself a program needs no key to infer, nor does a page that the owner trusts."""
    answer = await client.ask("POST", "/v2/models/digits/infer", GOOD, Origin=APP)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["vary"] == "Origin"
    assert "Mesh-Route" in answer.headers["access-control-expose-headers"]
    refused = await client.ask("POST", "/v2/models/nothing/infer", GOOD, Origin=APP)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (404, APP)
    refused = await client.ask("GET", "/v2", Origin=APP, Authorization="Bearer wrong")
    assert refused.status == 200, "what is no key is no key, where none is needed"


@named
async def test_others_stay_outside_and_programs_see_no_cors(client: Client) -> None:
    for origin in ("https://evil.example", f"{APP}:8443", "http://app.example.org", "null"):
        answer = await client.ask("GET", "/v2", Origin=origin)
        assert answer.status == 403, origin
        assert "access-control-allow-origin" not in answer.headers
        asked = await client.ask("OPTIONS", "/v2", **{**PREFLIGHT, "Origin": origin})
        assert (asked.status, "access-control-allow-origin" in asked.headers) == (403, False)
    assert "access-control-allow-origin" not in (await client.ask("GET", "/v2")).headers


@named
async def test_a_rebound_name_gains_nothing_from_a_named_origin(client: Client) -> None:
    answer = await client.ask("GET", "/v2", Origin=APP, Host="evil.example")
    assert answer.status == 403


@open_to_all
async def test_any_page_may_ask_with_a_key_and_none_without(client: Client) -> None:
    refused = await client.ask("GET", "/v2", Origin=APP)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "*")
    answer = await client.ask("GET", "/v2", Origin=APP, Authorization=f"Bearer {TEXT}")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert (await client.ask("GET", "/v2")).status == 200, "a program of this machine"


@open_to_all
async def test_options_that_is_no_preflight_is_a_wrong_method(client: Client) -> None:
    assert (await client.ask("OPTIONS", "/v2")).status == 405


def test_what_is_not_printable_reaches_no_header() -> None:
    cors = Cors(("*",))
    assert cors.headers("https://a\r\nx") == {}
    asked = {"access-control-request-method": "GET", "access-control-request-headers": "a\r\nb"}
    found = cors.preflight(APP, asked)
    assert found is not None
    assert "Access-Control-Allow-Headers" not in found.headers
    assert repr(Cors()) == "<Cors closed>"
    assert not Cors().is_open


def test_the_policy_says_so_too() -> None:
    policy = OriginPolicy("127.0.0.1", (), Cors((APP,)))
    assert policy.check("localhost", APP)
    with pytest.raises(Forbidden):
        policy.check("localhost", "https://other.example")
    assert not OriginPolicy("127.0.0.1", (), Cors(("*",))).check("localhost", APP)
