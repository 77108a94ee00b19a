"""Triton's extensions over REST: generate, statistics, the repository, settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import InferenceFailed, InvalidRequest, LinkLost
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream
from meshnode.gateway.protocols.oip_generate import ONCE, STREAM, Events, OneDocument
from meshnode.gateway.protocols.oip_repository import decode_index, decode_load, decode_unload
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.repository_api import Load
from meshnode.models.serving.statistics import BatchStatistics, Duration, ModelStatistics, summed
from meshnode.types import DataType, InferResponse, ResponsePart, Role, Tensor
from tests.unit.gateway.conftest import spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.models.manifest import Manifest


def post(body: Any, path: str = "/v2") -> HttpRequest:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpRequest("POST", path, "", {}, data)


async def answered(dispatcher: Dispatcher, http: HttpRequest) -> HttpResponse | HttpStream:
    reply = dispatcher.match(http.method, http.path).answer(http, "r1")
    return reply if isinstance(reply, HttpResponse) else await reply


def told_by(response: HttpResponse) -> Any:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def text_manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest(spec("text", (-1, 1), DataType.BYTES), spec("top", (1,), DataType.INT32))


def test_generate_sorts_members_into_inputs_and_parameters(
    make_manifest: Callable[..., Manifest],
) -> None:
    body = {
        "text": "hi",
        "id": "7",
        "seed": 3,
        "parameters": {"top": 2, "hot": True, "timeout": 5e6},
    }
    call = ONCE.decode(Asked(post(body), "digits"), text_manifest(make_manifest), "r1", None)
    assert {each.name: each.shape for each in call.request.inputs} == {"text": (1, 1), "top": (1,)}
    assert call.request.parameters == {"seed": 3, "hot": True}
    assert (call.request.timeout_s, call.form) == (5.0, "7")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"[", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        ({"deep": [1]}, "'deep' is no input"),
        ({"text": "a", "parameters": {"text": "b"}}, "given twice"),
        ({"parameters": {"parameters": {}}}, "'parameters' is no input"),
        ({f"p{n}": 1 for n in range(1000)}, "at most"),
        ({"p": "x" * 100_000}, "more than"),
    ],
)
def test_generate_refuses_what_it_cannot_read(
    make_manifest: Callable[..., Manifest], body: Any, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        ONCE.decode(Asked(post(body), "digits"), text_manifest(make_manifest), "r1", None)


def word(text: str) -> ResponsePart:
    data = len(text).to_bytes(4, "little") + text.encode()
    return ResponsePart((Tensor("word", DataType.BYTES, (1,), data),), {"last": False})


NOTHING = ResponsePart(())
RESPONSE = InferResponse("digits", 3, NOTHING)


def test_a_stream_tells_each_part_and_what_broke_it_off() -> None:
    events = Events(RESPONSE, "q")
    told = json.loads(events.part(word("so")).removeprefix(b"data: "))
    assert told == {
        "id": "q",
        "model_name": "digits",
        "model_version": "3",
        "last": False,
        "word": "so",
    }
    assert events.part(NOTHING) == b""
    assert events.end() == b""
    assert events.failed(LinkLost("gone")) == b'data: {"error":"gone"}\n\n'
    assert events.headers["Content-Type"].startswith("text/event-stream")


def test_one_document_is_made_of_one_part_only() -> None:
    one = OneDocument(RESPONSE, "")
    one.part(word("so"))
    one.part(NOTHING)
    assert json.loads(one.end())["word"] == "so"
    with pytest.raises(InferenceFailed, match="generate_stream"):
        one.part(word("on"))
    with pytest.raises(InferenceFailed, match="without a result"):
        OneDocument(RESPONSE, "").end()


async def test_generate_answers_once_or_in_events(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    serve()
    body = {"x": [1, 2, 3, 4]}
    once = await answered(dispatcher, post(body, "/v2/models/digits/generate"))
    assert isinstance(once, HttpResponse)
    assert told_by(once)["x"] == [1, 2, 3, 4]
    stream = await answered(dispatcher, post(body, "/v2/models/digits/versions/1/generate_stream"))
    assert isinstance(stream, HttpStream)
    pieces = [bytes(each) async for each in stream.parts]
    assert len(pieces) == 1
    assert pieces[0].startswith(b"data: {")
    assert STREAM is not ONCE


def counted(**fields: Any) -> ModelStatistics:
    zero = Duration()
    names = (
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    )
    whole: dict[str, Any] = {
        "model": "digits", "version": 1, "last_inference_ms": 5, "inference_count": 4, "execution_count": 2,
        "batches": (), **dict.fromkeys(names, zero), **fields,
    }  # fmt: skip
    return ModelStatistics(**whole)


def test_what_nodes_counted_adds_up() -> None:
    batch = BatchStatistics(2, Duration(1, 10), Duration(1, 20), Duration(1, 30))
    one = counted(success=Duration(4, 100), batches=(batch,))
    other = counted(
        success=Duration(1, 7),
        last_inference_ms=9,
        batches=(batch, BatchStatistics(1, *[Duration()] * 3)),
    )
    (total, second) = summed([one, counted(version=2), other])
    assert (total.inference_count, total.success, total.last_inference_ms) == (
        8,
        Duration(5, 107),
        9,
    )
    assert [each.batch_size for each in total.batches] == [1, 2]
    assert total.batches[1].compute_infer == Duration(2, 40)
    assert second.version == 2


async def test_statistics_have_all_fields(dispatcher: Dispatcher, control: Any) -> None:
    control.counted = [counted(queue=Duration(3, 4))]
    for path in (
        "/v2/models/stats",
        "/v2/models/digits/stats",
        "/v2/models/digits/versions/1/stats",
    ):
        response = await answered(dispatcher, HttpRequest("GET", path, "", {}))
        assert isinstance(response, HttpResponse)
        (told,) = told_by(response)["model_stats"]
        assert (told["name"], told["version"], told["inference_count"]) == ("digits", "1", 4)
        assert told["inference_stats"]["queue"] == {"count": 3, "ns": 4}
        assert len(told["inference_stats"]) == 8


async def test_the_index_may_be_asked_without_a_body(dispatcher: Dispatcher) -> None:
    entries: list[Any] = []
    for body, count in ((b"", 2), (b"{}", 2), ({"ready": True}, 1)):
        response = await answered(dispatcher, post(body, "/v2/repository/index"))
        assert isinstance(response, HttpResponse)
        entries = told_by(response)
        assert len(entries) == count
    assert entries == [{"name": "digits", "version": "1", "state": "READY"}]


async def test_load_and_unload_reach_the_repository(dispatcher: Dispatcher, control: Any) -> None:
    body = {"parameters": {"config": "{}", "file:1/model.onnx": "AAE=", "replicas": 2}}
    await answered(dispatcher, post(body, "/v2/repository/models/digits/load"))
    await answered(
        dispatcher,
        post({"parameters": {"unload_dependents": True}}, "/v2/repository/models/digits/unload"),
    )
    load, unload = control.calls
    assert load[1:3] == ("digits", Load("{}", {"1/model.onnx": b"\0\1"}, replicas=2))
    assert unload[1:3] == ("digits", True)


async def test_a_plain_members_gateway_has_another_node_load(
    dispatcher: Dispatcher, control: Any
) -> None:
    control.role = Role.MEMBER
    await answered(dispatcher, post(b"", "/v2/repository/models/digits/load"))
    assert control.calls[0][0] == "forward"


@pytest.mark.parametrize(
    ("decode", "parameters", "sentence"),
    [
        (decode_load, {"config": 1}, "'config' must be a text"),
        (decode_load, {"config": "{}", "file:1/m": "?"}, "base64"),
        (decode_load, {"config": "{}", "file:1/m": 7}, "base64"),
        (decode_load, {"file:1/m": "AAE="}, "also needs the parameter 'config'"),
        (decode_load, {"replicas": 0}, "'replicas'"),
        (decode_load, {"replicas": True}, "'replicas'"),
        (decode_load, {"strange": 1}, "'strange' is not known"),
        (decode_unload, {"unload_dependents": 1}, "true or false"),
    ],
)
def test_wrong_parameters_are_named(
    decode: Callable[[HttpRequest], Any], parameters: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        decode(post({"parameters": parameters}))


def test_a_body_of_another_form_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is not what /v2 takes"):
        decode_index(post({"ready": "yes"}))


def test_settings_are_read_and_not_changed(dispatcher: Dispatcher) -> None:
    for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/digits/trace/setting"):
        read = dispatcher.match("GET", path).answer(HttpRequest("GET", path, "", {}), "")
        assert isinstance(read, HttpResponse)
        with pytest.raises(HttpRefusal, match="cannot be changed") as caught:
            dispatcher.match("POST", path).answer(post({}, path), "")
        assert caught.value.status == 501


def test_there_is_no_gpu_memory_to_ask_about_or_forget_and_none_is_registered(
    dispatcher: Dispatcher,
) -> None:
    base = "/v2/cudasharedmemory"
    for path in (f"{base}/status", f"{base}/region/frames/status"):
        status = dispatcher.match("GET", path).answer(post({}), "")
        assert isinstance(status, HttpResponse)
        assert (status.status, status.body) == (200, b"[]")
    for path in (f"{base}/unregister", f"{base}/region/frames/unregister"):
        forgotten = dispatcher.match("POST", path).answer(post({}), "")
        assert isinstance(forgotten, HttpResponse)
        assert forgotten.status == 200
    with pytest.raises(HttpRefusal, match="CUDA") as caught:
        dispatcher.match("POST", f"{base}/region/frames/register").answer(post({}), "")
    assert caught.value.status == 501
