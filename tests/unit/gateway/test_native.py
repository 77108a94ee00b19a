"""The native dialect: plain JSON in and out, streams that can be taken up again, events of the mesh."""

from __future__ import annotations

import asyncio
import base64
import gzip
import inspect
import json
import struct
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NotFound,
    Saturated,
)
from meshnode.gateway import event_streams as event_streams_module
from meshnode.gateway.event_streams import HEARTBEAT, EventStreams
from meshnode.gateway.mesh_events import MeshEvents
from meshnode.gateway.protocols import native
from meshnode.gateway.protocols.caller import OWNER, Caller
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.status import error_response
from meshnode.limits import (
    MAX_EVENT_READERS,
    MAX_EVENT_STREAMS,
    MAX_KEPT_EVENTS,
    MAX_REQUEST_PARAMETERS,
    MAX_STREAM_KEPT_BYTES,
)
from meshnode.types import (
    DataType,
    InferRequest,
    InferResponse,
    NodeId,
    ResponsePart,
    Scope,
    Tensor,
)
from tests.unit.gateway.conftest import ME, spec
from tests.unit.gateway.test_model_calls import answer, chat, said, shop

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.models.manifest import Manifest

Serve = Callable[..., None]
ROW = {"inputs": {"x": [[1, 2, 3, 4]]}}


async def ask(
    dispatcher: Dispatcher,
    path: str,
    body: Any = b"",
    method: str = "POST",
    **headers: str,
) -> Any:
    return await ask_as(OWNER, dispatcher, method, path, body, headers)


async def ask_as(
    caller: Caller,
    dispatcher: Dispatcher,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
) -> Any:
    path, _, query = path.partition("?")
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    http = HttpRequest(method, path, query, named, data, caller)
    reply = dispatcher.match(method, path).answer(http, "id-1")
    return await reply if inspect.isawaitable(reply) else reply


async def infer(dispatcher: Dispatcher, body: Any, model: str = "digits", **headers: str) -> Any:
    response = await ask(dispatcher, f"/mesh/v1/models/{model}/infer", body, **headers)
    assert isinstance(response, HttpResponse)
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


async def events_of(stream: HttpStream, most: int = 100) -> list[dict[str, Any]]:
    """Read events until the stream ends, or so many have come; comments are left out."""
    found: list[dict[str, Any]] = []
    parts: Any = stream.parts
    async for piece in parts:
        fields = dict(line.split(": ", 1) for line in piece.decode().strip().split("\n"))
        if "" not in fields:
            found.append({**fields, "data": json.loads(fields["data"])})
        if len(found) == most:
            break
    await parts.aclose()
    return found


# Values


async def test_nested_lists_are_tensors_by_name(dispatcher: Dispatcher, serve: Serve) -> None:
    serve()
    assert await infer(dispatcher, {"inputs": {"x": [[1, 2, 3, 4], [5, 6, 7, 8.5]]}}) == {
        "model": "digits",
        "version": 1,
        "outputs": {"x": [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.5]]},
    }


async def test_a_leading_dimension_of_one_may_be_left_out(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve()
    assert (await infer(dispatcher, {"inputs": {"x": [1, 2, 3, 4]}}))["outputs"] == {
        "x": [[1.0, 2.0, 3.0, 4.0]]
    }


async def test_numbers_that_json_lacks_are_texts_in_both_directions(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve()
    row = ["NaN", "Infinity", "-Infinity", 1.0]
    assert (await infer(dispatcher, {"inputs": {"x": [row]}}))["outputs"] == {"x": [row]}


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        (DataType.BOOL, [True, False]),
        (DataType.INT8, [-128, 127]),
        (DataType.UINT64, [0, 2**64 - 1]),
        (DataType.INT64, [-(2**63), 2**63 - 1]),
        (DataType.FP16, [0.5, -2.0]),
        (DataType.BF16, [1.0, -3.0]),
        (DataType.FP64, [0.1, 1e300]),
        (DataType.BYTES, ["Zürich", {"b64": "gIA="}]),
    ],
)
async def test_each_datatype_comes_back_as_it_went(
    dispatcher: Dispatcher,
    serve: Serve,
    make_manifest: Callable[..., Manifest],
    datatype: DataType,
    value: list[Any],
) -> None:
    serve(what=make_manifest(spec("x", (-1,), datatype)))
    assert (await infer(dispatcher, {"inputs": {"x": value}}))["outputs"] == {"x": value}


async def test_a_tensor_may_be_its_bytes_in_both_directions(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve()
    text = base64.b64encode(struct.pack("<4f", 1, 2, 3, 4)).decode()
    whole = {"b64": text, "datatype": "FP32", "shape": [1, 4]}
    for given in (whole, {"b64": text}, {"b64": text, "shape": [1, 4]}):
        body = {"inputs": {"x": given}, "encoding": "b64"}
        assert (await infer(dispatcher, body))["outputs"] == {"x": whole}


async def test_bytes_without_a_shape_are_one_element(
    dispatcher: Dispatcher, serve: Serve, make_manifest: Callable[..., Manifest]
) -> None:
    serve(what=make_manifest(spec("x", (-1, 1), DataType.BYTES)))
    body = {"inputs": {"x": {"b64": base64.b64encode(b"a picture").decode()}}}
    assert (await infer(dispatcher, body))["outputs"] == {"x": [["a picture"]]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no native inference request"),
        (b"{", "no native inference request"),
        (b"[" * 5000, "no native inference request"),
        (b"\xff", "no native inference request"),
        ({}, "`inputs`"),
        ({"inputs": {}}, "also needs input 'x'"),
        ({"inputs": {"y": 1}}, "has no input 'y'; its inputs are 'x'"),
        ({"inputs": {"x": [[1, 2], [3]]}}, "not nested as its shape"),
        ({"inputs": {"x": [[[1, 2, 3, 4]]]}}, "2 dimensions"),
        ({"inputs": {"x": [[1, 2, 3]]}}, "has shape"),
        ({"inputs": {"x": [["1", 2, 3, 4]]}}, "element 0"),
        ({"inputs": {"x": {"b64": "!"}}}, "no base64"),
        ({"inputs": {"x": {"b64": "", "more": 1}}}, "'more' beside"),
        ({"inputs": {"x": {"b64": "", "datatype": "FP31"}}}, "'FP31'"),
        ({"inputs": {"x": {"b64": "AAAAAA==", "datatype": "INT32", "shape": [1]}}}, "not INT32"),
        ({"inputs": {"x": {"b64": "", "shape": [1, True]}}}, "whole numbers"),
        ({"inputs": {"x": {"b64": "", "shape": [1] * 33}}}, "33 dimensions"),
        ({"inputs": {"x": {"b64": "AAAA", "shape": [1, 4]}}}, "16 bytes are expected"),
        ({"inputs": {"x": {"b64": "AAAA"}}}, "expected"),
        ({**ROW, "outputs": ["z"]}, "no output 'z'"),
        ({**ROW, "outputs": ["x", "x"]}, "twice"),
        ({**ROW, "timeout_s": 0}, "timeout_s"),
        ({**ROW, "version": 0}, "version"),
        ({**ROW, "encoding": "xml"}, "encoding"),
        ({**ROW, "inputs_": 1}, "inputs_"),
        ({**ROW, "parameters": {"a": []}}, "parameters"),
        ({**ROW, "parameters": {str(n): 1 for n in range(MAX_REQUEST_PARAMETERS + 1)}}, "at most"),
        ({**ROW, "parameters": {"a": "b" * 20000}}, "characters"),
    ],
)
async def test_what_is_wrong_is_said(
    dispatcher: Dispatcher, serve: Serve, body: Any, words: str
) -> None:
    serve()
    with pytest.raises(InvalidRequest, match=words.replace("[", r"\[")):
        await infer(dispatcher, body)


async def test_a_shape_that_bytes_do_not_tell_must_be_said(
    dispatcher: Dispatcher, serve: Serve, make_manifest: Callable[..., Manifest]
) -> None:
    serve(what=make_manifest(spec("x", (-1, -1, -1))))
    with pytest.raises(InvalidRequest, match='send "shape"'):
        await infer(dispatcher, {"inputs": {"x": {"b64": ""}}})


async def test_parameters_timeout_and_outputs_reach_the_model(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve()
    body = {**ROW, "parameters": {"a": 1}, "timeout_s": 2.5, "outputs": ["x"]}
    assert (await infer(dispatcher, body))["parameters"] == {"a": 1}
    (request,) = local.requests
    assert (request.timeout_s, request.outputs, request.version) == (2.5, ("x",), 1)


async def test_the_version_is_in_the_path_or_in_the_body(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve()
    path = "/mesh/v1/models/digits/versions/1/infer"
    assert (await ask(dispatcher, path, ROW)).status == 200
    assert (await ask(dispatcher, path, {**ROW, "version": 1})).status == 200
    with pytest.raises(InvalidRequest, match="version 1, the body for version 2"):
        await ask(dispatcher, path, {**ROW, "version": 2})
    with pytest.raises(ModelNotFound):
        await infer(dispatcher, {**ROW, "version": 2})


async def test_bodies_may_be_compressed_in_both_directions(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve()
    body = {"inputs": {"x": [[1, 2, 3, 4]] * 200}}
    response = await ask(
        dispatcher,
        "/mesh/v1/models/digits/infer",
        gzip.compress(json.dumps(body).encode()),
        content_encoding="gzip",
        accept_encoding="gzip",
    )
    assert response.headers["Content-Encoding"] == "gzip"
    data = response.body if isinstance(response.body, bytes) else b"".join(response.body)
    assert len(json.loads(gzip.decompress(data))["outputs"]["x"]) == 200


def test_full_queues_are_429_below_a_model_and_say_when_to_ask_again(
    dispatcher: Dispatcher,
) -> None:
    error = Saturated("full")
    response = error_response(error, dispatcher.error_form("/mesh/v1/models/digits/infer"))
    assert (response.status, response.headers["Retry-After"]) == (429, "1")
    assert error_response(error, dispatcher.error_form("/v2/models/digits/infer")).status == 503


# Documents


async def test_a_document_is_the_value_of_request_and_of_response(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=chat())
    local.inline = False
    local.behave = answer(said(b'{"n": 1.50}'))
    got = await infer(dispatcher, {"inputs": {"request": {"a": [1, None]}}}, "chat")
    assert got["outputs"] == {"response": {"n": 1.5}}
    assert bytes(local.requests[0].inputs[0].data)[4:] == b'{"a": [1, null]}'


async def test_a_models_refusal_is_the_callers_fault(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=chat())
    local.inline = False
    local.behave = answer(said(b"no such city", "text/plain", 422))
    with pytest.raises(InvalidRequest, match="422: no such city"):
        await infer(dispatcher, {"inputs": {"request": 1}}, "chat")
    local.behave = answer(said(b"oops", "text/plain", 500))
    with pytest.raises(InferenceFailed, match="500: oops"):
        await infer(dispatcher, {"inputs": {"request": 1}}, "chat")


async def test_a_model_with_routes_takes_documents_as_its_body(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=shop())
    local.inline = False
    picture = ResponsePart((Tensor("body", DataType.UINT8, (1, 2), b"\xff\xd8"),), {})
    local.behave = answer(picture)
    for given, sent in (({"b64": "aGk="}, b"hi"), ([1], b"[1]")):
        got = await infer(dispatcher, {"inputs": {"body": given}}, "shop")
        assert bytes(local.requests[-1].inputs[0].data) == sent
        assert got["outputs"]["body"]["b64"] == "/9g="


async def test_an_empty_part_at_the_end_of_an_answer_is_no_part(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=chat())
    local.inline = False
    ask_for = {"inputs": {"request": 1}}
    local.behave = answer(said(b"1"), ResponsePart(()))
    assert (await infer(dispatcher, ask_for, "chat"))["outputs"] == {"response": 1}
    stream = await ask(dispatcher, "/mesh/v1/models/chat/stream", ask_for)
    assert [each["event"] for each in await events_of(stream)] == ["part", "done"]
    local.behave = answer(said(b"1"), said(b"2"))
    with pytest.raises(InvalidRequest, match="ask …/stream"):
        await infer(dispatcher, ask_for, "chat")
    local.behave = answer(ResponsePart(()))
    with pytest.raises(InferenceFailed, match="without a result"):
        await infer(dispatcher, ask_for, "chat")
    await dispatcher.streams.close()


async def test_an_answer_that_is_wanted_whole_has_the_time_of_its_request_for_all_of_it(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=chat())
    local.inline = False
    closed: list[bool] = []

    async def hanging() -> AsyncIterator[ResponsePart]:
        try:
            yield said(b"1")
            await asyncio.sleep(60)
        finally:
            closed.append(True)

    async def behave(request: InferRequest) -> InferResponse:
        return InferResponse(request.model, 1, hanging())

    local.behave = behave
    with pytest.raises(DeadlineExceeded, match="ask for a stream"):
        await infer(dispatcher, {"inputs": {"request": 1}, "timeout_s": 0.05}, "chat")
    assert closed == [True]


# Streams


def parts_of(count: int, error: Exception | None = None) -> Callable[[InferRequest], Any]:
    made = [
        ResponsePart((Tensor("x", DataType.FP32, (1,), struct.pack("<f", n)),), {})
        for n in range(count)
    ]
    return answer(*made, error=error)


async def begin(dispatcher: Dispatcher, body: Any = ROW, **headers: str) -> HttpStream:
    stream = await ask(dispatcher, "/mesh/v1/models/digits/stream", body, **headers)
    assert isinstance(stream, HttpStream)
    return stream


@pytest.fixture
def streaming(serve: Serve, local: Any) -> Any:
    serve()
    local.inline = False
    local.behave = parts_of(3)
    return local


async def test_a_stream_tells_each_part_and_that_nothing_is_missing(
    dispatcher: Dispatcher, streaming: Any
) -> None:
    stream = await begin(dispatcher)
    assert stream.headers["Content-Type"] == "text/event-stream"
    found = await events_of(stream)
    assert [each["event"] for each in found] == ["part", "part", "part", "done"]
    assert [each["data"] for each in found] == [
        *({"outputs": {"x": [float(n)]}} for n in range(3)),
        {"model": "digits", "version": 1, "parts": 3},
    ]
    name = found[0]["id"].partition(".")[0]
    assert [each["id"] for each in found] == [f"{name}.{n}.{ME}" for n in (1, 2, 3, 4)]
    await dispatcher.streams.close()


async def test_an_answer_of_one_part_is_a_stream_too(dispatcher: Dispatcher, serve: Serve) -> None:
    serve()
    found = await events_of(await begin(dispatcher))
    assert [each["event"] for each in found] == ["part", "done"]
    await dispatcher.streams.close()


async def test_what_fails_before_the_first_part_has_a_status_of_its_own(
    dispatcher: Dispatcher, streaming: Any
) -> None:
    streaming.behave = parts_of(0, InferenceFailed("no"))
    with pytest.raises(InferenceFailed):
        await begin(dispatcher)
    assert len(dispatcher.streams) == 0


@pytest.mark.parametrize(
    ("error", "code"), [(LinkLost("the node is gone"), "link_lost"), (ValueError("x"), "internal")]
)
async def test_what_breaks_off_says_so_as_its_last_event(
    dispatcher: Dispatcher, streaming: Any, error: Exception, code: str
) -> None:
    streaming.behave = parts_of(2, error)
    found = await events_of(await begin(dispatcher))
    assert [each["event"] for each in found] == ["part", "part", "error"]
    assert found[-1]["data"]["code"] == code
    assert found[-1]["data"]["error"] != "x"
    await dispatcher.streams.close()


async def test_a_lost_connection_goes_on_after_the_last_event_that_was_seen(
    dispatcher: Dispatcher, streaming: Any
) -> None:
    first = await events_of(await begin(dispatcher), most=2)
    streaming.behave = None
    again = await begin(dispatcher, b"", last_event_id=first[-1]["id"])
    found = [*first, *await events_of(again)]
    assert [each["event"] for each in found] == ["part", "part", "part", "done"]
    assert len({each["id"] for each in found}) == 4
    assert len(streaming.requests) == 1
    # The end too may have been lost on its way.
    last = await events_of(await begin(dispatcher, b"", last_event_id=found[-2]["id"]))
    assert [each["event"] for each in last] == ["done"]
    await dispatcher.streams.close()


@pytest.mark.parametrize("is_here", [True, False])
async def test_the_rest_of_a_stream_is_not_given_for_another_request(
    dispatcher: Dispatcher, streaming: Any, serve: Serve, is_here: bool
) -> None:
    first = await events_of(await begin(dispatcher), most=1)
    last = first[0]["id"]
    if not is_here:
        await dispatcher.streams.close()
        dispatcher.streams._streams.clear()
    others: list[dict[str, Any]] = [
        {"inputs": {"x": [[1, 2, 3, 5]]}},
        {**ROW, "parameters": {"seed": 1}},
        {**ROW, "outputs": ["x"]},
        {**ROW, "version": 1},
        {**ROW, "encoding": "b64"},
    ]
    for other in others:
        with pytest.raises(InvalidRequest, match="of another request"):
            await begin(dispatcher, other, last_event_id=last)
    serve(what=chat())
    with pytest.raises(InvalidRequest, match="of another request"):
        await ask(dispatcher, "/mesh/v1/models/chat/stream", ROW, last_event_id=last)
    if is_here:  # how long the client waits now is its own business
        again = await begin(dispatcher, {**ROW, "timeout_s": 3}, last_event_id=last)
        assert [each["event"] for each in await events_of(again)] == ["part", "part", "done"]
    assert len(streaming.requests) == 1
    await dispatcher.streams.close()


async def test_a_reader_of_a_stream_that_makes_room_for_its_successor_is_cut() -> None:
    streams = EventStreams()
    reader: Any = streams.open(Source(b"data: 1\n\n", ends=False).stream, "", resume=True).parts
    name = (await anext(reader)).split(b"\n")[0][4:].decode().partition(".")[0]
    reading = asyncio.ensure_future(anext(reader))
    await asyncio.sleep(0)
    streams.open(Source(b"data: 2\n\n").stream, "", resume=True, name=name, after=1)
    with pytest.raises(ConnectionAbortedError):
        await reading
    await streams.close()


async def test_a_slow_reader_of_an_answer_that_was_let_go_is_cut() -> None:
    streams = EventStreams()
    reader: Any = streams.open(Source(b"data: 1\n\n", b"data: 2\n\n").stream, "", resume=True).parts
    name = (await anext(reader)).split(b"\n")[0][4:].decode().partition(".")[0]
    await asyncio.sleep(0)  # all of it is here
    streams.open(Source(b"data: 2\n\n").stream, "", resume=True, name=name, after=1)
    with pytest.raises(ConnectionAbortedError):
        await anext(reader)
    await streams.close()


async def test_nobody_takes_up_the_stream_of_another(
    dispatcher: Dispatcher, streaming: Any
) -> None:
    found = await events_of(await begin(dispatcher), most=1)
    stranger = Caller(Scope.INFER, "k" * 16, "phone")
    path = "/mesh/v1/models/digits/stream"
    with pytest.raises(NotFound):
        await ask_as(stranger, dispatcher, "POST", path, ROW, {"last-event-id": found[0]["id"]})
    for wrong in ("", "x", "x.1", found[0]["id"] + "9", found[0]["id"] + "x", "." + "9" * 30):
        with pytest.raises(NotFound):
            await begin(dispatcher, ROW, last_event_id=wrong)
    assert len(streaming.requests) == 1
    await dispatcher.streams.close()


class Source:
    """An answer that is made as the test says, and tells when it is stopped."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.pieces, self.ends = pieces, ends
        self.given = 0
        self.closed = asyncio.Event()

    async def _made(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                self.given += 1
                yield piece
            if not self.ends:
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    @property
    def stream(self) -> HttpStream:
        return HttpStream(200, {}, self._made())


async def read_one(stream: HttpStream) -> bytes:
    parts: Any = stream.parts
    piece: bytes = await anext(parts)
    return piece


async def test_a_client_that_will_not_come_back_stops_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = EventStreams()
    source = Source(b"data: 1\n\n", ends=False)
    stream = streams.open(source.stream, "", resume=False)
    await read_one(stream)
    await stream.parts.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(source.closed.wait(), 5)
    assert len(streams) == 0
    assert streams.kept_bytes == 0


async def test_work_for_a_client_that_stays_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams_module, "STREAM_RESUME_S", 0.01)
    streams = EventStreams()
    for resume in (True, False):
        source = Source(b"data: 1\n\n", ends=False)
        stream = streams.open(source.stream, "", resume=resume)
        if resume:
            await read_one(stream)
            await stream.parts.aclose()  # type: ignore[attr-defined]
        await asyncio.wait_for(source.closed.wait(), 5)  # or it never read at all
    assert len(streams) == 0


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams_module, "STREAM_HEARTBEAT_S", 0.01)
    streams = EventStreams()
    stream = streams.open(Source(ends=False).stream, "", resume=True)
    assert await read_one(stream) == HEARTBEAT
    await stream.parts.aclose()  # type: ignore[attr-defined]
    await streams.close()


async def test_a_node_that_stops_says_so_to_those_who_read() -> None:
    streams = EventStreams()
    source = Source(b"data: 1\n\n", ends=False)
    parts: Any = streams.open(source.stream, "", resume=True).parts
    await anext(parts)
    await streams.close()
    assert b'"code":"not_serving"' in await anext(parts)
    with pytest.raises(StopAsyncIteration):
        await anext(parts)
    assert source.closed.is_set()
    await streams.close()  # once more changes nothing


async def test_a_gateway_that_stops_cuts_streams_with_which_another_one_goes_on() -> None:
    streams = EventStreams()
    source = Source(b"data: 1\n\n", ends=False)
    node = NodeId("n" * 32)
    parts: Any = streams.open(source.stream, "", resume=True, executor=lambda: node).parts
    assert (await anext(parts)).endswith(b".%s\ndata: 1\n\n" % node.encode())
    await streams.close()
    with pytest.raises(ConnectionError):  # on which the server hangs up: no event ends the stream
        await anext(parts)
    assert source.closed.is_set()


async def test_a_slow_reader_makes_the_model_wait() -> None:
    streams = EventStreams()
    piece = b"data: " + b"x" * (MAX_STREAM_KEPT_BYTES // 4) + b"\n\n"
    source = Source(*[piece] * 50)
    stream = streams.open(source.stream, "", resume=True)
    for _ in range(100):
        await asyncio.sleep(0)
    assert source.given < 10
    parts: Any = stream.parts
    assert len([each async for each in parts]) == 50
    assert streams.kept_bytes < 2 * MAX_STREAM_KEPT_BYTES
    await streams.close()


async def test_events_that_are_not_kept_any_more_are_not_skipped_in_silence() -> None:
    streams = EventStreams()
    piece = b"data: " + b"x" * (MAX_STREAM_KEPT_BYTES // 4) + b"\n\n"
    parts: Any = streams.open(Source(*[piece] * 20).stream, "", resume=True).parts
    events = [each async for each in parts]
    first = events[0].split(b"\n")[0].removeprefix(b"id: ").decode()
    with pytest.raises(NotFound, match="ask anew"):
        streams.resumed(first, "")
    await streams.close()


async def test_a_second_reader_takes_the_place_of_the_first() -> None:
    streams = EventStreams()
    source = Source(b"data: 1\n\n", b"data: 2\n\n", ends=False)
    first: Any = streams.open(source.stream, "", resume=True).parts
    event = await anext(first)
    second: Any = streams.resumed(event.split(b"\n")[0][4:].decode(), "").parts
    assert (await anext(second)).endswith(b"data: 2\n\n")
    with pytest.raises(ConnectionAbortedError):  # a clean end would look like that of the answer
        await anext(first)
    await second.aclose()
    await streams.close()


async def test_streams_that_wait_for_nobody_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_streams_module, "MAX_EVENT_STREAMS", 2)
    assert MAX_EVENT_STREAMS > 2
    streams = EventStreams()
    sources = [Source(b"data: 1\n\n", ends=False) for _ in range(4)]
    parts: list[Any] = []
    for source in sources[:2]:
        parts.append(streams.open(source.stream, "", resume=True).parts)
        await anext(parts[-1])
    with pytest.raises(Saturated):
        streams.open(sources[2].stream, "", resume=True)
    await parts[0].aclose()
    streams.open(sources[3].stream, "", resume=True)
    await asyncio.wait_for(sources[0].closed.wait(), 5)
    assert not sources[1].closed.is_set()
    await parts[1].aclose()
    await streams.close()
    assert all(source.closed.is_set() for source in sources[:2])


async def test_a_json_model_is_asked_to_stream(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=chat())
    local.inline = False
    local.behave = answer(said(b"Hel", "text/plain"), said(b"lo"))
    path = "/mesh/v1/models/chat/stream"
    stream = await ask(dispatcher, path, {"inputs": {"request": {}}})
    found = await events_of(stream)
    assert [each["data"].get("outputs") for each in found] == [
        {"response": "Hel"},
        {"response": "lo"},
        None,
    ]
    assert local.requests[0].parameters["stream"] is True
    await dispatcher.streams.close()


def test_any_error_is_told_in_words() -> None:
    assert b"the request failed (internal)" in native.failure_event(MeshError())


# Events of the mesh


async def test_events_are_told_as_they_happen(dispatcher: Dispatcher, control: Any) -> None:
    control.events.add("member", node="beta", state="alive")
    stream = await ask(dispatcher, "/mesh/v1/events", method="GET")
    parts: Any = stream.parts
    assert (await anext(parts)).startswith(b":")
    control.events.add("deployment", name="digits", change="written")
    text = (await anext(parts)).decode()
    assert text.startswith("id: run.2\nevent: deployment\ndata: ")
    assert json.loads(text.split("data: ")[1]) == {
        "id": "run.2", "kind": "deployment", "time": "2026-01-01T00:00:00Z", "name": "digits",
        "change": "written",
    }  # fmt: skip
    await parts.aclose()


async def test_a_reader_goes_on_after_what_it_saw(dispatcher: Dispatcher, control: Any) -> None:
    for node in ("beta", "gamma", "delta"):
        control.events.add("member", node=node, state="alive")
    control.events.add("model", model="digits")

    async def told(query: str, **headers: str) -> list[Any]:
        path = f"/mesh/v1/events?follow=false{query}"
        stream = await ask(dispatcher, path, method="GET", **headers)
        return [each["data"].get("node", each["event"]) for each in await events_of(stream)]

    assert await told("") == ["beta", "gamma", "delta", "model"]
    assert await told("&after=run.1") == ["gamma", "delta", "model"]
    assert await told("", last_event_id="run.2") == ["delta", "model"]
    assert await told("&kinds=member&after=run.2") == ["delta"]
    assert await told("&kinds=model,node") == ["model"]
    for unknown in ("other.1", "run.9", "run.x", "run." + "9" * 30):
        assert (await told(f"&after={unknown}"))[0] == "gap"


async def test_a_node_that_stops_lets_go_of_who_follows_it() -> None:
    events = MeshEvents("run", lambda: "now")
    parts: Any = events.stream(None).parts
    await anext(parts)
    events.add("node", state="paused")
    events.close()
    assert len([each async for each in parts]) == 1
    assert "0 readers" in repr(events)


async def test_what_a_slow_reader_missed_is_counted() -> None:
    events = MeshEvents("run", lambda: "now")
    parts: Any = events.stream(None).parts
    await anext(parts)
    for _ in range(MAX_KEPT_EVENTS + 5):
        events.add("node", state="paused")
    gap = (await anext(parts)).decode()
    assert gap.startswith("id: run.5\nevent: gap")
    assert json.loads(gap.split("data: ")[1])["missed"] == 5
    assert (await anext(parts)).startswith(b"id: run.6\n")
    await parts.aclose()


@pytest.mark.parametrize("query", ["kinds=member,key", "more=1", "follow=maybe"])
async def test_an_unknown_wish_is_refused(dispatcher: Dispatcher, query: str) -> None:
    with pytest.raises(InvalidRequest):
        await ask(dispatcher, f"/mesh/v1/events?{query}", method="GET")


async def test_readers_of_events_are_counted() -> None:
    events = MeshEvents("run", lambda: "now")
    streams: list[Any] = [events.stream(None).parts for _ in range(MAX_EVENT_READERS)]
    for parts in streams:
        await anext(parts)
    with pytest.raises(Saturated):
        events.stream(None)
    for parts in streams:
        await parts.aclose()
    assert "0 readers" in repr(events)
