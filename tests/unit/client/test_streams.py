"""Streams through both clients: parts, failover before the first one, and going on where a line broke."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client import async_pool, pool, streaming
from meshnode.client.blocking_calls import Stream
from meshnode.client.tensors import InputTensor
from meshnode.errors import (
    DeadlineExceeded,
    GatewayUnavailable,
    InferenceFailed,
    ModelNotFound,
    ProtocolError,
    UsageError,
)
from tests.unit.client.conftest import StandIn, Waiting, http_answer, reset

if TYPE_CHECKING:
    from meshnode.client.mesh import MeshClient

Connect = Callable[..., Any]
Start = Callable[[Callable[[socket.socket, bytes], object]], StandIn]

PATH = "/mesh/v1/models/echo/stream"
HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Mesh-Route: node=far;version=3\r\nX-Request-Id: r-1\r\n\r\n"
)
X = {"x": InputTensor([1.0], "FP32")}


def part(number: int, *, numbered: bool = True) -> bytes:
    data = base64.b64encode(struct.pack("<i", number)).decode()
    outputs = {"n": {"b64": data, "datatype": "INT32", "shape": [1]}}
    event_id = f"id: s.{number}\n" if numbered else ""
    return f"{event_id}event: part\ndata: {json.dumps({'outputs': outputs})}\n\n".encode()


DONE = b'event: done\ndata: {"model": "echo", "version": 3, "parts": 3}\n\n'


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def told(line: socket.socket, *pieces: bytes) -> None:
    line.sendall(HEAD + b"".join(map(chunk, pieces)))


def broken(line: socket.socket, *pieces: bytes) -> None:
    """Send these and break off, once they have been read."""
    told(line, *pieces)
    time.sleep(0.1)
    reset(line)


def whole(line: socket.socket, *pieces: bytes) -> None:
    told(line, *pieces)
    line.sendall(chunk(b""))


class Reading:
    """What comes of a stream of either client, and the error that ended it."""

    def __init__(self, client: Any, method: str = "stream", *args: Any, **more: Any) -> None:
        self.numbers: list[int] = []
        self.parts: list[Any] = []
        self.error: Exception | None = None
        args = args if method != "stream" else args or ("echo", X)
        if isinstance(client, Waiting):
            client._loop.run(self._later(getattr(client.client, method)(*args, **more)))
            return
        try:
            for each in getattr(client, method)(*args, **more):
                self._take(each)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    async def _later(self, parts: Any) -> None:
        try:
            async for each in parts:
                self._take(each)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def _take(self, each: Any) -> None:
        self.parts.append(each)
        self.numbers.append(int(each["n"][0]))

    def ended_with(self, kind: type[Exception], words: str = "") -> None:
        assert type(self.error) is kind, self.error
        assert words in str(self.error)


def last_ids(server: StandIn) -> list[str]:
    """The `Last-Event-ID` of each request for the stream; empty where there was none."""
    found = []
    for request in server.requests:
        if f" {PATH} ".encode() in request.split(b"\r\n")[0]:
            head = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            named = [each.partition(": ")[2] for each in head if each.startswith("Last-Event-ID")]
            found.append(named[0] if named else "")
    return found


def test_the_parts_come_with_what_the_head_said(connect: Connect, stand_in: Start) -> None:
    server = stand_in(lambda line, _: whole(line, part(1), b": quiet\n\n", part(2), DONE))
    read = Reading(connect(server.url))
    assert (read.numbers, read.error) == ([1, 2], None)
    first = read.parts[0]
    assert (first.model, first.route.node, first.request_id) == ("echo", "far", "r-1")
    assert first.gateway == server.url
    (request,) = server.requests
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert body["inputs"]["x"] == [1.0]
    assert (body["encoding"], body["resume"]) == ("b64", True)
    assert 0 < body["timeout_s"] <= 30


def test_a_part_comes_before_the_next_one_is_there(stand_in: Start, connect: Connect) -> None:
    def behave(line: socket.socket, _request: bytes) -> None:
        told(line, part(1))
        line.recv(1)  # until the client goes away

    server = stand_in(behave)
    client = connect(server.url)
    if isinstance(client, Waiting):

        async def first() -> int:
            async with client.client.stream("echo", X) as parts:
                return int((await anext(parts))["n"][0])

        assert client._loop.run(first()) == 1
    else:
        with client.stream("echo", X) as parts:
            assert int(next(parts)["n"][0]) == 1


def test_a_stream_goes_on_after_the_last_part_where_the_line_broke(
    connect: Connect, stand_in: Start
) -> None:
    def behave(line: socket.socket, request: bytes) -> None:
        if b"Last-Event-ID: s.2" in request:
            whole(line, part(3), DONE)
        elif b"Last-Event-ID: s.1" in request:
            broken(line, part(2)[:9])  # half an event is none
        else:
            broken(line, part(1), part(2))

    server = stand_in(behave)
    read = Reading(connect(server.url))
    assert read.error is None
    assert read.numbers == [1, 2, 3]
    assert last_ids(server) == ["", "s.2"]


def test_an_end_without_the_last_event_is_a_broken_line(connect: Connect, stand_in: Start) -> None:
    server = stand_in(
        lambda line, request: (
            whole(line, part(2), DONE) if b"Last-Event-ID" in request else whole(line, part(1))
        )
    )
    read = Reading(connect(server.url))
    assert (read.numbers, read.error) == ([1, 2], None)


def test_another_gateway_begins_a_stream_of_which_nothing_came(
    connect: Connect, stand_in: Start, refused: str
) -> None:
    def dies(line: socket.socket, _request: bytes) -> None:
        broken(line, b": quiet\n\n")

    dying, good = stand_in(dies), stand_in(lambda line, _: whole(line, part(1), DONE))
    read = Reading(connect(refused, dying.url, good.url))
    assert (read.numbers, read.error) == ([1], None)
    assert last_ids(good) == [""]
    assert read.parts[0].gateway == good.url


def test_another_gateway_never_goes_on_with_half_a_stream(
    connect: Connect, stand_in: Start
) -> None:
    def dies(line: socket.socket, request: bytes) -> None:
        if b"Last-Event-ID" in request:
            reset(line)
        else:
            broken(line, part(1), part(2))

    dying, other = stand_in(dies), stand_in(lambda line, _: whole(line, part(1), DONE))
    read = Reading(connect(dying.url, other.url), timeout_s=2)
    assert read.numbers == [1, 2]
    read.ended_with(GatewayUnavailable, "broke off after 2 events and cannot be taken up again")
    assert last_ids(other) == []


def test_a_stream_that_was_forgotten_is_lost(connect: Connect, stand_in: Start) -> None:
    gone = http_answer(
        404, b'{"error": "no such stream", "code": "unknown"}', "Content-Type: application/json"
    )

    def behave(line: socket.socket, request: bytes) -> None:
        if b"Last-Event-ID" in request:
            line.sendall(gone)
        else:
            broken(line, part(1))

    read = Reading(connect(stand_in(behave).url))
    assert read.numbers == [1]
    read.ended_with(GatewayUnavailable, "no such stream")


def test_a_stream_without_ids_is_not_taken_up_again(connect: Connect, stand_in: Start) -> None:
    server = stand_in(lambda line, _: broken(line, part(1, numbered=False)))
    read = Reading(connect(server.url))
    assert read.numbers == [1]
    read.ended_with(GatewayUnavailable)
    assert len(server.requests) == 1


def placed(number: int) -> bytes:
    """A part whose id names the node that made it."""
    return part(number).replace(b"id: s.%d\n" % number, b"id: s.%d.%s\n" % (number, b"a" * 32))


def refused(line: socket.socket) -> None:
    body = b'{"error": "no such stream", "code": "unknown"}'
    head = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    line.sendall(head % len(body) + body)


def test_a_stream_whose_ids_name_a_node_goes_on_at_another_gateway(
    connect: Connect, stand_in: Start
) -> None:
    first = stand_in(
        lambda line, request: (
            reset(line) if b"Last-Event-ID" in request else broken(line, placed(1), placed(2))
        )
    )
    other = stand_in(lambda line, _: whole(line, placed(3), DONE))
    read = Reading(connect(first.url, other.url))
    assert read.numbers == [1, 2, 3]
    assert read.error is None
    assert last_ids(other) == ["s.2." + "a" * 32]


def test_a_stream_that_others_cannot_find_goes_on_where_it_began(
    connect: Connect, stand_in: Start
) -> None:
    refusals = 0

    def begins(line: socket.socket, request: bytes) -> None:
        nonlocal refusals
        if b"Last-Event-ID" not in request:
            broken(line, placed(1))
        elif refusals:
            whole(line, placed(2), DONE)
        else:
            reset(line)

    def others(line: socket.socket, _request: bytes) -> None:
        nonlocal refusals
        refusals += 1
        refused(line)

    first, other = stand_in(begins), stand_in(others)
    read = Reading(connect(first.url, other.url))
    assert read.numbers == [1, 2]
    assert read.error is None


def test_a_line_that_never_brings_anything_is_given_up(connect: Connect, stand_in: Start) -> None:
    server = stand_in(
        lambda line, request: broken(line, *() if b"Last-Event-ID" in request else (part(1),))
    )
    read = Reading(connect(server.url))
    assert read.numbers == [1]
    read.ended_with(GatewayUnavailable)
    assert last_ids(server) == ["", "s.1", "s.1", "s.1"]


def test_a_sequence_is_not_begun_twice(connect: Connect, stand_in: Start) -> None:
    server = stand_in(lambda line, _: told(line, b": quiet\n\n"))
    read = Reading(connect(server.url), parameters={"sequence_id": 7})
    read.ended_with(GatewayUnavailable, "look before you repeat it")
    assert len(server.requests) == 1


def test_an_error_that_the_stream_tells_is_raised_after_its_parts(
    connect: Connect, stand_in: Start
) -> None:
    error = b'event: error\ndata: {"error": "the model raised", "code": "inference_failed"}\n\n'
    server = stand_in(lambda line, _: whole(line, part(1), error))
    read = Reading(connect(server.url))
    assert read.numbers == [1]
    read.ended_with(InferenceFailed, "the model raised")
    assert read.error is not None
    assert (read.error.gateway, read.error.mesh_route) == (  # type: ignore[attr-defined]
        server.url,
        "node=far;version=3",
    )


@pytest.mark.parametrize(
    "event",
    [
        b'event: error\ndata: {"error": 5}\n\n',
        b"event: part\ndata: [1]\n\n",
        b'event: part\ndata: {"outputs": {"n": [1]}}\n\n',
        b'event: part\ndata: {"outputs": 5}\n\n',
        b'event: part\ndata: {"outputs": {"n": {"b64": "!", "datatype": "INT32", "shape": [1]}}}\n\n',
    ],
)
def test_events_that_cannot_be_read_end_the_stream(
    connect: Connect, stand_in: Start, event: bytes
) -> None:
    server = stand_in(lambda line, _: whole(line, event, part(1), DONE))
    Reading(connect(server.url)).ended_with(ProtocolError)


def test_events_of_a_later_version_and_empty_parts_are_passed_over(
    connect: Connect, stand_in: Start
) -> None:
    server = stand_in(
        lambda line, _: whole(
            line,
            b"event: hint\ndata: x\n\n",
            part(1),
            b'event: part\ndata: {"outputs": {}}\n\n',
            DONE,
        )
    )
    read = Reading(connect(server.url))
    assert (read.numbers, read.error) == ([1], None)


def test_a_refusal_before_the_stream_is_the_error_that_it_is(
    connect: Connect, stand_in: Start
) -> None:
    answer = http_answer(404, b'{"error": "no model", "code": "not_found"}')
    read = Reading(connect(stand_in(lambda line, _: line.sendall(answer)).url))
    read.ended_with(ModelNotFound, "no model")


def test_full_queues_are_asked_again_when_they_say(connect: Connect, stand_in: Start) -> None:
    full = http_answer(429, b'{"error": "full", "code": "saturated"}', "Retry-After: 0")

    def behave(line: socket.socket, _request: bytes) -> None:
        if len(server.requests) == 1:
            line.sendall(full)
        else:
            whole(line, part(1), DONE)

    server = stand_in(behave)
    assert Reading(connect(server.url)).numbers == [1]


def test_an_answer_that_is_no_stream_is_told(connect: Connect, stand_in: Start) -> None:
    server = stand_in(lambda line, _: line.sendall(http_answer(200, b"{}")))
    Reading(connect(server.url)).ended_with(ProtocolError, "without a stream")


def test_the_time_of_the_whole_stream_ends_it(connect: Connect, stand_in: Start) -> None:
    def behave(line: socket.socket, _request: bytes) -> None:
        told(line, part(1))
        server.done.wait(5)

    server = stand_in(behave)
    read = Reading(connect(server.url), total_s=0.3)
    assert read.numbers == [1]
    read.ended_with(DeadlineExceeded, "total_s")


def test_a_silent_stream_is_taken_up_again(
    connect: Connect, stand_in: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CLIENT_STREAM_SILENCE_S", 0.2)

    def behave(line: socket.socket, request: bytes) -> None:
        if b"Last-Event-ID" in request:
            whole(line, part(2), DONE)
            return
        told(line, part(1))
        server.done.wait(5)

    server = stand_in(behave)
    read = Reading(connect(server.url))
    assert (read.numbers, read.error) == ([1, 2], None)


def test_a_frozen_gateway_is_found_out_by_a_second_connection(
    connect: Connect, stand_in: Start
) -> None:
    def frozen(line: socket.socket, request: bytes) -> None:
        if b" /mesh/" in request.split(b"\r\n")[0]:
            told(line, placed(1))
        first.done.wait(30)

    first = stand_in(frozen)
    other = stand_in(lambda line, _: whole(line, placed(2), DONE))
    client = connect(first.url, other.url)
    began = time.monotonic()
    read = Reading(client)
    assert (read.numbers, read.error) == ([1, 2], None)
    assert 1.0 < time.monotonic() - began < 5.0  # else after `CLIENT_STREAM_SILENCE_S`
    assert last_ids(first) == [""]  # it is not asked for the rest


def test_a_slow_model_of_a_living_gateway_keeps_its_stream_and_is_asked_about_ever_less_often(
    connect: Connect, stand_in: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CLIENT_STREAM_LOOK_S", 0.1)
    monkeypatch.setattr(async_pool, "CLIENT_STREAM_LOOK_S", 0.1)

    def slow(line: socket.socket, request: bytes) -> None:
        if b" /mesh/" not in request.split(b"\r\n")[0]:
            line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return
        told(line, placed(1))
        for number in (2, 3):
            time.sleep(0.6)
            line.sendall(chunk(placed(number)))
        line.sendall(chunk(DONE) + chunk(b""))

    first = stand_in(slow)
    other = stand_in(lambda line, _: refused(line))
    read = Reading(connect(first.url, other.url))
    assert (read.numbers, read.error) == ([1, 2, 3], None)
    assert 1 <= first.asked("/healthz") <= 4
    assert not other.requests


def test_plain_parts_need_no_arrays(connect: Connect, stand_in: Start) -> None:
    event = b'id: s.1\nevent: part\ndata: {"outputs": {"n": [4], "who": ["me"]}, "parameters": {"p": 1}}\n\n'
    server = stand_in(lambda line, _: whole(line, event, DONE))
    read = Reading(connect(server.url), "predict_stream", "echo", {"request": {"any": None}})
    (only,) = read.parts
    assert (dict(only), only.parameters) == ({"n": [4], "who": ["me"]}, {"p": 1})
    assert repr(only) == "<PlainResult of echo 0: n, who>"
    with pytest.raises(KeyError, match="there are 'n', 'who'"):
        only["other"]


def test_a_closed_stream_and_a_closed_client_say_so(stand_in: Start, connect: Connect) -> None:
    def behave(line: socket.socket, _request: bytes) -> None:
        told(line, part(1))
        line.recv(1)

    client: MeshClient = connect(stand_in(behave).url)
    if isinstance(client, Waiting):
        return
    parts = client.stream("echo", X)
    assert isinstance(parts, Stream)
    next(parts)
    assert "open" in repr(parts)
    client.close()
    assert "open" not in repr(parts)
    assert list(parts) == []
    with pytest.raises(UsageError, match="closed"):
        next(client.stream("echo", X))


def event(number: int, kind: str, **fields: Any) -> bytes:
    told_ = {"id": f"r.{number}", "kind": kind, "time": "2026-01-01T00:00:00Z", **fields}
    return f"id: r.{number}\nevent: {kind}\ndata: {json.dumps(told_)}\n\n".encode()


class Events(Reading):
    """Reads events until the third."""

    def _take(self, each: Any) -> None:
        self.parts.append(each)
        if len(self.parts) == 3:
            raise EnoughError


class EnoughError(Exception):
    """As many as the test wants."""


def test_events_of_the_mesh_go_on_at_another_gateway(connect: Connect, stand_in: Start) -> None:
    first = stand_in(lambda line, _: broken(line, event(1, "member", node="a", state="alive")))
    other = stand_in(
        lambda line, _: broken(
            line, event(8, "gap", missed=None), event(9, "model", model="m", state="ready")
        )
    )
    read = Events(connect(first.url, other.url), "events", ["member", "model"])
    read.ended_with(EnoughError)
    assert [(each.kind, each.id) for each in read.parts] == [
        ("member", "r.1"),
        ("gap", "r.8"),
        ("model", "r.9"),
    ]
    assert read.parts[0].fields == {"node": "a", "state": "alive"}
    assert read.parts[0].time == "2026-01-01T00:00:00Z"
    assert first.requests[0].startswith(b"GET /mesh/v1/events?kinds=member%2Cmodel ")
    assert b"Last-Event-ID: r.1\r\n" in other.requests[0]


def test_events_go_on_from_a_place_that_was_told_before_any_event_came(
    connect: Connect, stand_in: Start
) -> None:
    opening = b": from here on\nid: r.4\n\n"
    first = stand_in(lambda line, _: broken(line, opening, b": nothing new\nid: r.6\n\n"))
    other = stand_in(
        lambda line, _: broken(
            line,
            event(7, "gap", missed=None),
            event(8, "member", node="a"),
            event(9, "member", node="b"),
        )
    )
    read = Events(connect(first.url, other.url), "events")
    read.ended_with(EnoughError)
    assert [each.kind for each in read.parts] == ["gap", "member", "member"]
    assert b"Last-Event-ID: r.6\r\n" in other.requests[0]


def headers_of(request: bytes) -> dict[str, str]:
    head = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}


def test_a_stream_under_a_key_is_asked_for_in_the_same_words_and_goes_on_without_the_key(
    connect: Connect, stand_in: Start
) -> None:
    def behave(line: socket.socket, request: bytes) -> None:
        if b"Last-Event-ID" in request:
            whole(line, part(2), DONE)
        elif len(server.requests) == 1:
            broken(line, b": quiet\n\n")
        else:
            broken(line, part(1))

    server, other = stand_in(behave), stand_in(lambda line, _: whole(line, part(9), DONE))
    read = Reading(
        connect(server.url, other.url), idempotency_key="order-17", timeout_s=20, total_s=60
    )
    assert (read.numbers, read.error) == ([1, 2], None)
    assert not other.requests  # nobody else knows what became of it
    one, two, three = server.requests
    assert one.partition(b"\r\n\r\n")[2] == two.partition(b"\r\n\r\n")[2]
    assert json.loads(one.partition(b"\r\n\r\n")[2])["timeout_s"] == 20
    assert [headers_of(each).get("idempotency-key") for each in (one, two, three)] == [
        "order-17",
        "order-17",
        None,
    ]


@pytest.mark.parametrize("second", ["reads", "closes"])
def test_a_stream_that_is_closed_under_its_reader_never_ends_as_if_it_were_whole(
    stand_in: Start, connect: Connect, second: str
) -> None:
    def behave(line: socket.socket, _request: bytes) -> None:
        told(line, part(1))
        server.done.wait(5)

    server = stand_in(behave)
    client = connect(server.url)
    if isinstance(client, Waiting):

        async def both() -> tuple[Any, Any]:
            stream = client.client.stream("echo", X)
            await anext(stream)
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            other = anext(stream) if second == "reads" else stream.close()
            late = await asyncio.gather(other, return_exceptions=True)
            return (await asyncio.gather(first, return_exceptions=True))[0], late[0]

        first_error, second_error = client._loop.run(both())
    else:
        stream = client.stream("echo", X)
        next(stream)
        met: list[Exception] = []

        def wait() -> None:
            try:
                next(stream)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                met.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        second_error = None
        try:
            next(stream) if second == "reads" else stream.close()
        except UsageError as error:
            second_error = error
        thread.join(5)
        (first_error,) = met
    assert isinstance(first_error, UsageError), first_error
    assert "closed while it was read" in str(first_error)
    assert isinstance(second_error, UsageError) == (second == "reads")
