"""How much the holder of one key may ask: what is written, what is counted, and what is refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from meshnode.errors import InvalidRequest, ProtocolError, Throttled
from meshnode.gateway.access import GatewayAccess
from meshnode.gateway.key_limits import KeyLimits
from meshnode.gateway.protocols.caller import LOCAL, Caller
from meshnode.gateway.protocols.origin import OriginPolicy
from meshnode.gateway.server import HttpServer
from meshnode.key_limit import NO_LIMIT, KeyLimit, read_limit
from meshnode.limits import MAX_LIMITED_KEYS
from meshnode.state.api_keys import ApiKey, make_api_key
from meshnode.types import Address, Scope
from tests.unit.gateway.test_server import GOOD, Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.metrics import GatewayMetrics


def caller(limit: KeyLimit | None, key_id: str = "k1") -> Caller:
    return Caller(Scope.INFER, key_id, "phone", limit=limit)


# What is written.


@pytest.mark.parametrize(
    ("rate", "concurrency", "limit"),
    [
        ("10/s", None, KeyLimit(10, 1)),
        (" 600/MIN ", 4, KeyLimit(600, 60, 4)),
        ("5000/h", None, KeyLimit(5000, 3600)),
        ("1/d", None, KeyLimit(1, 86_400)),
        (None, 7, KeyLimit(0, 0, 7)),
        (None, None, NO_LIMIT),
    ],
)
def test_limits_are_read_as_people_write_them(
    rate: str | None, concurrency: int | None, limit: KeyLimit
) -> None:
    assert read_limit(rate, concurrency) == limit
    assert limit.is_valid
    assert limit.rate == ("" if rate is None else rate.strip().lower())


@pytest.mark.parametrize(
    ("priority", "share", "limit"),
    [
        ("low", None, KeyLimit(priority=0)),
        (" Normal ", 5, KeyLimit(priority=1, share=5)),
        ("high", 1, NO_LIMIT),
        (None, 100, KeyLimit(share=100)),
    ],
)
def test_priority_and_share_are_part_of_what_a_key_may_ask(
    priority: str | None, share: int | None, limit: KeyLimit
) -> None:
    assert read_limit(None, None, priority, share) == limit
    assert limit.is_valid


@pytest.mark.parametrize(("priority", "share"), [("urgent", 1), ("", 1), ("low", 0), ("low", 101)])
def test_what_is_no_priority_or_share_is_refused(priority: str, share: int) -> None:
    with pytest.raises(InvalidRequest, match=r"low, normal or high|1 to 100"):
        read_limit(None, None, priority, share)


@pytest.mark.parametrize("limit", [KeyLimit(priority=3), KeyLimit(priority=-1), KeyLimit(share=0)])
def test_a_priority_or_share_out_of_range_is_no_limit_of_a_key(limit: KeyLimit) -> None:
    assert not limit.is_valid


@pytest.mark.parametrize(
    "rate", ["", "10", "10/", "/s", "0/s", "-1/s", "1.5/s", "10/week", "9999999/s"]
)
def test_what_is_no_rate_is_refused_with_examples(rate: str) -> None:
    with pytest.raises(InvalidRequest, match="10/s, 600/min"):
        read_limit(rate, None)


@pytest.mark.parametrize("concurrency", [0, -1, 100_000])
def test_what_is_no_number_of_requests_at_once_is_refused(concurrency: int) -> None:
    with pytest.raises(InvalidRequest, match="requests at once"):
        read_limit(None, concurrency)


def test_a_limit_is_part_of_a_key_and_older_keys_have_none() -> None:
    key, _ = make_api_key("phone", ["infer"], None, 1e9, os.urandom(42), [], KeyLimit(10, 1, 4))
    assert ApiKey.decode(key.encode()) == key
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(key.encode())[:-1])
    assert ApiKey.decode(older).limit == NO_LIMIT
    for wrong in (KeyLimit(10, 7), KeyLimit(-1, 1), KeyLimit(0, 60), KeyLimit(1, 1, 10**6)):
        with pytest.raises(ProtocolError):
            ApiKey.decode(msgspec.structs.replace(key, limit=wrong).encode())


# What is counted.


def test_a_rate_lets_its_number_come_at_once_and_then_one_by_one() -> None:
    limits = KeyLimits()
    phone = caller(KeyLimit(10, 1))
    for _ in range(10):
        assert limits.begin(phone, 0.0)
        limits.end(phone)
    with pytest.raises(
        Throttled, match="'phone' is allowed 10/s at this gateway; try again in 1 s"
    ):
        limits.begin(phone, 0.0)
    assert limits.begin(phone, 0.1)
    with pytest.raises(Throttled):
        limits.begin(phone, 0.15)
    assert sum(limits.begin(phone, 5.0) for _ in range(10)) == 10
    assert limits.refused.values == {("rate",): 2}


def test_retry_after_is_when_a_slow_rate_allows_the_next_request() -> None:
    limits = KeyLimits()
    slow = caller(KeyLimit(2, 3600))
    limits.begin(slow, 0.0)
    limits.begin(slow, 0.0)
    with pytest.raises(Throttled) as refused:
        limits.begin(slow, 0.0)
    assert refused.value.retry_after_s == 1800
    assert limits.begin(slow, 1800.0)


def test_no_more_run_at_once_than_allowed_and_an_end_makes_room() -> None:
    limits = KeyLimits()
    pair = caller(KeyLimit(0, 0, 2))
    limits.begin(pair, 0.0)
    limits.begin(pair, 0.0)
    with pytest.raises(Throttled, match="2 requests running at this gateway") as refused:
        limits.begin(pair, 100.0)
    assert refused.value.retry_after_s == 1
    limits.end(pair)
    assert limits.begin(pair, 100.0)
    assert limits.refused.values == {("concurrency",): 1}


def test_what_is_refused_costs_neither_a_token_nor_a_place() -> None:
    limits = KeyLimits()
    one = caller(KeyLimit(2, 1, 1))
    limits.begin(one, 0.0)
    for _ in range(5):
        with pytest.raises(Throttled):
            limits.begin(one, 0.0)
    limits.end(one)
    assert limits.begin(one, 0.0)


def test_a_new_limit_begins_with_a_full_bucket_and_knows_what_runs() -> None:
    limits = KeyLimits()
    assert limits.begin(caller(KeyLimit(1, 86_400)), 0.0)
    with pytest.raises(Throttled):
        limits.begin(caller(KeyLimit(1, 86_400)), 1.0)
    with pytest.raises(Throttled, match="1 request running"):
        limits.begin(caller(KeyLimit(0, 0, 1)), 1.0)
    assert limits.begin(caller(KeyLimit(10, 1)), 1.0)


def test_keys_do_not_share_and_callers_without_a_limit_are_not_counted() -> None:
    limits = KeyLimits()
    strict = KeyLimit(1, 1)
    assert limits.begin(caller(strict, "a"), 0.0)
    assert limits.begin(caller(strict, "b"), 0.0)
    assert not limits.begin(LOCAL, 0.0)
    assert not limits.begin(caller(None), 0.0)
    assert repr(limits) == "<KeyLimits of 2 keys>"


def test_keys_that_rest_are_forgotten_when_room_is_needed() -> None:
    limits = KeyLimits()
    for number in range(MAX_LIMITED_KEYS):
        limits.begin(caller(KeyLimit(1, 60), str(number)), float(number))
        limits.end(caller(KeyLimit(1, 60), str(number)))
    limits.begin(caller(KeyLimit(1, 60), "new"), float(MAX_LIMITED_KEYS))
    assert repr(limits) == "<KeyLimits of 60 keys>"


# What callers see.


@pytest_asyncio.fixture
async def limited(
    dispatcher: Dispatcher, metrics: GatewayMetrics
) -> AsyncIterator[Callable[[KeyLimit], Any]]:
    """Start a gateway whose only key has a limit; return a connection to it and the key."""
    servers: list[HttpServer] = []
    clients: list[Client] = []

    async def start(limit: KeyLimit) -> tuple[Callable[[], Any], str]:
        import asyncio

        key, text = make_api_key("phone", ["infer"], None, 1e9, os.urandom(42), [], limit)
        access = GatewayAccess(OriginPolicy("127.0.0.1"), {key.id: key}.get, require_key=True)
        server = HttpServer(dispatcher, metrics, access, grace_s=0.1, key_limits=metrics.key_limits)
        servers.append(server)
        address = await server.listen_tcp(Address("127.0.0.1", 0))

        async def dial() -> Client:
            clients.append(Client(*await asyncio.open_connection(*address)))
            return clients[-1]

        return dial, f"Bearer {text}"

    yield start
    for client in clients:
        client.writer.close()
    for server in servers:
        await server.stop()


@pytest.mark.parametrize(
    ("path", "in_code"),
    [("/v2/models/digits/infer", False), ("/mesh/v1/models", True), ("/nothing", False)],
)
async def test_a_rate_that_is_used_up_is_429_with_retry_after_in_the_words_of_the_path(
    limited: Any, serve: Any, path: str, in_code: bool
) -> None:
    serve()
    dial, key = await limited(KeyLimit(1, 3600))
    client = await dial()
    assert (await client.ask("GET", "/healthz", Authorization=key)).status == 200
    refused = await client.ask("POST", path, GOOD, Authorization=key)
    assert (refused.status, refused.headers["retry-after"]) == (429, "3600")
    assert refused.headers["mesh-error"] == "throttled"
    assert "'phone' is allowed 1/h" in refused.json["error"]
    assert (refused.json.get("code") == "throttled") is in_code


async def test_a_place_is_free_again_when_the_answer_has_ended(
    limited: Any, serve: Any, local: Any
) -> None:
    import asyncio

    serve()
    started, go = asyncio.Event(), asyncio.Event()

    async def slow(request: Any) -> Any:
        from meshnode.types import InferResponse
        from tests.unit.gateway.conftest import echo_part

        started.set()
        await go.wait()
        return InferResponse(request.model, request.version or 0, echo_part(request))

    local.inline, local.behave = False, slow
    dial, key = await limited(KeyLimit(0, 0, 1))
    one, other = await dial(), await dial()
    first = asyncio.ensure_future(
        one.ask("POST", "/v2/models/digits/infer", GOOD, Authorization=key)
    )
    await started.wait()
    assert (await other.ask("GET", "/healthz", Authorization=key)).status == 429
    go.set()
    assert (await first).status == 200
    assert (await other.ask("GET", "/healthz", Authorization=key)).status == 200


async def test_a_native_stream_counts_until_its_work_ends_and_is_taken_up_without_a_place_more(
    limited: Any, serve: Any, local: Any, dispatcher: Dispatcher
) -> None:
    import asyncio

    from meshnode.types import InferResponse, ResponsePart
    from tests.unit.gateway.conftest import echo_part

    serve()
    go = asyncio.Event()

    async def answer(request: Any) -> Any:
        async def parts() -> AsyncIterator[ResponsePart]:
            yield echo_part(request)
            await go.wait()

        return InferResponse(request.model, 1, parts())

    local.inline, local.behave = False, answer
    dial, key = await limited(KeyLimit(0, 0, 1))
    first = await dial()
    path = "/mesh/v1/models/digits/stream"
    body = b'{"inputs": {"x": [[1, 2, 3, 4]]}}'
    length = str(len(body))
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {key}\r\nContent-Length: {length}\r\n"
    first.writer.write(head.encode() + b"\r\n" + body)
    text = await first.reader.readuntil(b"event: part")
    last_id = text.rpartition(b"id: ")[2].split(b"\n")[0].decode()
    first.writer.close()
    for _ in range(20):
        await asyncio.sleep(0.005)
    refused = await (await dial()).ask("POST", path, body, Authorization=key)
    assert refused.status == 429  # the work goes on for the one that hung up
    second = await dial()
    second.writer.write(f"{head}Last-Event-ID: {last_id}\r\n\r\n".encode() + body)
    assert b" 200 " in await second.reader.readuntil(b"\r\n")
    go.set()
    await second.reader.readuntil(b"event: done")
    await asyncio.sleep(0.01)
    third = await (await dial()).ask("GET", "/healthz", Authorization=key)
    assert third.status == 200
    await dispatcher.streams.close()
