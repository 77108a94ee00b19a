"""Endpoint style: documents, plain values, forms and files in; JSON, files and streams out."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from PIL import Image

from meshnode.errors import (
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    TooLarge,
    UnsupportedMedia,
)
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse, HttpStream, json_response
from meshnode.gateway.protocols.status import HttpRefusal, status_of
from meshnode.models.execution import Execution, Interface, Route, Spelling
from meshnode.models.exposure import Exposure
from meshnode.models.http_calls import content_of
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor
from tests.unit.gateway.test_model_calls import answer, chat, said, shop

if TYPE_CHECKING:
    from meshnode.gateway.dispatch import Dispatcher

Serve = Callable[..., None]
FP32, BYTES, U8 = DataType.FP32, DataType.BYTES, DataType.UINT8


def numbers(*inputs: TensorSpec, **changes: Any) -> Manifest:
    specs = inputs or (TensorSpec("x", FP32, (-1, 2)),)
    plain = Manifest("sum", 1, "onnx", "onnx", specs, specs, 0, (), "m.onnx")
    return replace(plain, **changes)


def reader(*properties: str, **schema: Any) -> Manifest:
    """Return a typed model of documents whose named members are pictures."""
    members = {name: {"type": "string", "contentMediaType": "image/*"} for name in properties}
    text = json.dumps({"request": {"properties": {**members, **schema}}})
    return replace(chat(), execution=replace(chat().execution, schema=text))


def form(*parts: tuple[str, bytes, str, str]) -> tuple[bytes, str]:
    """Return a form of (name, data, file name, content type), and its Content-Type."""
    body = b""
    for name, data, filename, kind in parts:
        head = f'--B\r\nContent-Disposition: form-data; name="{name}"'
        head += f'; filename="{filename}"' if filename else ""
        head += f"\r\nContent-Type: {kind}" if kind else ""
        body += head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return body + b"--B--\r\n", "multipart/form-data; boundary=B"


def picture(size: tuple[int, int] = (4, 4), colour: int = 255) -> bytes:
    made = io.BytesIO()
    Image.new("L", size, colour).save(made, "PNG")
    return made.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def post(
    dispatcher: Dispatcher, path: str, body: bytes = b"", query: str = "", **headers: str
) -> HttpResponse | HttpStream:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    match = dispatcher.match("POST", path)
    assert match.takes_body
    reply = match.answer(HttpRequest("POST", path, query, named, body), "r1")
    return reply if isinstance(reply, HttpResponse) else await reply


async def value(dispatcher: Dispatcher, path: str, body: bytes = b"", **options: str) -> Any:
    response = await post(dispatcher, path, body, **options)
    assert isinstance(response, HttpResponse)
    assert response.status == 200
    return json.loads(
        bytes(response.body)
        if isinstance(response.body, bytes)
        else b"".join(map(bytes, response.body))
    )


async def refused(
    dispatcher: Dispatcher, path: str, body: bytes = b"", **options: str
) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await post(dispatcher, path, body, **options)
    return caught.value


def documents(own: Any) -> list[Any]:
    return [json.loads(bytes(content_of(each.inputs))) for each in own.requests]


@pytest.fixture
def own(local: Any) -> Any:
    local.inline = False
    return local


# Models that take tensors.


async def test_values_are_given_by_the_names_of_inputs_and_come_back_by_those_of_outputs(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers(TensorSpec("x", FP32, (-1, 2)), TensorSpec("t", BYTES, (-1,))))
    body = b'{"x": [[1, 2], [3, 4]], "t": "hi", "parameters": {"temperature": 0.5}}'
    assert await value(dispatcher, "/inference/sum", body) == {"x": [[1, 2], [3, 4]], "t": ["hi"]}


async def test_parameters_travel_with_values(
    dispatcher: Dispatcher, serve: Serve, local: Any
) -> None:
    serve(what=numbers())
    await value(dispatcher, "/inference/sum", b'{"x": [1, 2], "parameters": {"a": 1, "b": "c"}}')
    assert dict(local.requests[0].parameters) == {"a": 1, "b": "c"}


@pytest.mark.parametrize("content_type", ["", "application/json", "application/x-www-form-urlencoded", "text/plain", "application/vnd.me+json; charset=utf-8"])  # fmt: skip
async def test_json_is_json_under_the_content_type_of_a_careless_client(
    dispatcher: Dispatcher, serve: Serve, content_type: str
) -> None:
    serve(what=numbers())
    found = await value(dispatcher, "/inference/sum", b'{"x": [1, 2]}', content_type=content_type)
    assert found == {"x": [[1, 2]]}


@pytest.mark.parametrize("body", [b"[1, 2]", b"[[1, 2]]"])
async def test_a_value_alone_is_that_of_the_only_input(
    dispatcher: Dispatcher, serve: Serve, body: bytes
) -> None:
    serve(what=numbers())
    assert await value(dispatcher, "/inference/sum", body) == {"x": [[1, 2]]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b'{"y": [1, 2]}', "no input 'y'; its inputs are x"),
        (b"{}", "also needs input 'x'"),
        (b'{"x": [1, "a"]}', "numbers"),
        (b'{"x": [[[1, 2]]]}', "2 dimensions"),
        (b'{"x": [1, 2], "parameters": []}', "parameters must be an object"),
        (b'{"x": [1, 2], "parameters": {"a": {}}}', "parameters must be an object"),
    ],
)
async def test_what_is_wrong_with_values_is_said(
    dispatcher: Dispatcher, serve: Serve, body: bytes, words: str
) -> None:
    serve(what=numbers())
    error = await refused(dispatcher, "/inference/sum", body)
    assert isinstance(error, InvalidRequest)
    assert words in str(error)


async def test_a_value_alone_is_not_enough_for_several_inputs(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers(TensorSpec("a", FP32, (1,)), TensorSpec("b", FP32, (1,))))
    assert "has the inputs a, b" in str(await refused(dispatcher, "/inference/sum", b"[1]"))


def streamed(*parts: bytes, error: Exception | None = None) -> Callable[[InferRequest], Any]:
    async def stream() -> AsyncIterator[ResponsePart]:
        for data in parts:
            element = len(data).to_bytes(4, "little") + data
            yield ResponsePart((Tensor("t", BYTES, (1,), element),) if data else ())
        if error is not None:
            raise error

    async def behave(request: InferRequest) -> InferResponse:
        return InferResponse(request.model, 1, stream())

    return behave


@pytest.mark.parametrize(
    ("accept", "kind", "body"),
    [
        ("*/*", "application/x-ndjson", b'{"t":["a"]}\n{"t":["b"]}\n'),
        ("text/event-stream", "text/event-stream", b'data: {"t":["a"]}\n\ndata: {"t":["b"]}\n\n'),
    ],
)
async def test_a_stream_has_a_line_or_an_event_for_each_part(
    dispatcher: Dispatcher, serve: Serve, own: Any, accept: str, kind: str, body: bytes
) -> None:
    serve(what=numbers(TensorSpec("t", BYTES, (-1,))))
    own.behave = streamed(b"a", b"", b"b")
    response = await post(
        dispatcher, "/inference/sum", b'{"t": "x", "stream": true}', accept=accept
    )
    assert isinstance(response, HttpStream)
    assert response.headers["Content-Type"] == kind
    assert b"".join([bytes(part) async for part in response.parts]) == body


@pytest.mark.parametrize(
    ("accept", "end"),
    [
        ("application/x-ndjson", b'{"error":"it broke","code":"inference_failed"}\n'),
        (
            "text/event-stream",
            b'event: error\ndata: {"error":"it broke","code":"inference_failed"}\n\n',
        ),
    ],
)
async def test_a_stream_that_breaks_off_says_so_in_its_own_form(
    dispatcher: Dispatcher, serve: Serve, own: Any, accept: str, end: bytes
) -> None:
    serve(what=numbers(TensorSpec("t", BYTES, (-1,))))
    own.behave = streamed(b"a", error=InferenceFailed("it broke"))
    response = await post(dispatcher, "/inference/sum", b'{"t": "x"}', accept=accept)
    assert isinstance(response, HttpStream)
    assert [bytes(part) async for part in response.parts][-1] == end


async def test_an_input_called_stream_is_an_input(dispatcher: Dispatcher, serve: Serve) -> None:
    serve(what=numbers(TensorSpec("stream", DataType.BOOL, (1,))))
    assert await value(dispatcher, "/inference/sum", b'{"stream": true}') == {"stream": [True]}


async def test_an_accept_of_another_type_gets_the_content_of_an_output_of_bytes(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=numbers(TensorSpec("t", BYTES, (-1,))))
    own.behave = streamed(picture())
    for accept, kind in (("image/x-mine, */png", "image/png"), ("image/*", "image/png")):
        response = await post(dispatcher, "/inference/sum", b'{"t": "x"}', accept=accept)
        assert isinstance(response, HttpResponse)
        assert response.body == picture()
        assert response.headers["Content-Type"] == kind
        assert response.headers["Content-Security-Policy"].startswith("sandbox")
    serve(what=numbers())
    own.behave = None
    error = await refused(dispatcher, "/inference/sum", b'{"x": [1, 2]}', accept="image/png")
    assert "ask with Accept: application/json" in str(error)


async def test_a_file_is_the_only_input_of_bytes(dispatcher: Dispatcher, serve: Serve) -> None:
    serve(what=numbers(TensorSpec("t", BYTES, (1, 1))))
    for kind in ("text/plain", "application/pdf"):
        assert await value(dispatcher, "/inference/sum", b"hello", content_type=kind) == {
            "t": [["hello"]]
        }
    for data in (b"\xff", b"RIFF....WEBP", b"RIFF....LIST"):
        found = await value(dispatcher, "/inference/sum", data, content_type="application/x-any")
        text = data.decode() if data[0] < 128 else {"b64": "/w=="}
        assert found == {"t": [[text]]}


async def test_a_picture_becomes_the_tensor_that_the_model_takes(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers(TensorSpec("x", FP32, (-1, 2, 2))))
    white = {"x": [[[1.0, 1.0], [1.0, 1.0]]]}
    raw = await value(dispatcher, "/inference/sum", picture(), content_type="image/png")
    untyped = await value(
        dispatcher, "/inference/sum", picture(), content_type="application/octet-stream"
    )
    body, kind = form(("file", picture(), "a.png", "image/png"))
    sent = await value(dispatcher, "/inference/sum", body, content_type=kind)
    inline = json.dumps({"x": {"b64": encoded(picture())}}).encode()
    assert raw == untyped == sent == await value(dispatcher, "/inference/sum", inline) == white
    assert await value(dispatcher, "/inference/sum", b'{"x": [[[1, 1], [1, 1]]]}') == white


async def test_torchserves_path_takes_the_same_pictures(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=numbers(TensorSpec("x", FP32, (-1, 2, 2))))
    at, white = "/predictions/sum", [[[1.0, 1.0], [1.0, 1.0]]]
    for kind in ("image/png", "", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert await value(dispatcher, at, picture(), content_type=kind) == white
    for name in ("x", "data"):
        body, kind = form((name, picture(), "a.png", "image/png"))
        assert await value(dispatcher, at, body, content_type=kind) == white
    body, kind = form(("x", b"[[[1, 1], [1, 1]]]", "", ""))
    assert await value(dispatcher, at, body, content_type=kind) == white
    raw = struct.pack("<4f", 1, 1, 1, 1)
    assert await value(dispatcher, at, raw, content_type="application/octet-stream") == white
    assert "no picture" in str(await refused(dispatcher, at, b"PNG?", content_type="image/png"))
    own.requests.clear()
    serve(what=reader("image", label={"type": "string"}))
    own.behave = answer(said(b"{}"))
    at = "/predictions/chat"
    for kind in ("image/png", "", "application/x-www-form-urlencoded"):
        await post(dispatcher, at, picture(), content_type=kind)
    body, kind = form(("file", picture(), "a.png", ""), ("threshold", b"0.5", "", ""))
    await post(dispatcher, at, body, content_type=kind)
    await post(dispatcher, at, b'{"image": "QUJD"}')
    seen = {"image": encoded(picture())}
    assert documents(own) == [seen, seen, seen, {**seen, "threshold": 0.5}, {"image": "QUJD"}]


async def test_a_picture_that_is_none_is_refused(dispatcher: Dispatcher, serve: Serve) -> None:
    serve(what=numbers(TensorSpec("x", FP32, (-1, 2, 2))))
    error = await refused(dispatcher, "/inference/sum", b"PNG?", content_type="image/png")
    assert isinstance(error, InvalidRequest)
    assert "no picture" in str(error)
    inline = b'{"x": {"b64": "!"}}'
    assert "no base64" in str(await refused(dispatcher, "/inference/sum", inline))


async def test_pictures_are_decoded_beside_the_loop_and_one_at_a_time(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers(TensorSpec("x", FP32, (-1, 2, 2))))
    asked = [
        post(dispatcher, "/inference/sum", picture(), content_type="image/png") for _ in range(3)
    ]
    assert len(await asyncio.gather(*asked)) == 3


async def test_a_form_gives_fields_and_files_together(dispatcher: Dispatcher, serve: Serve) -> None:
    serve(
        what=numbers(
            TensorSpec("t", BYTES, (1,)), TensorSpec("n", FP32, (1,)), TensorSpec("u", BYTES, (1,))
        )
    )
    body, kind = form(
        ("t", b"\x01", "a.bin", "application/octet-stream"), ("n", b"2.5", "", ""), ("u", b"7", "", ""),
    )  # fmt: skip
    found = await value(dispatcher, "/inference/sum", body, content_type=kind)
    assert found == {"t": ["\x01"], "n": [2.5], "u": ["7"]}


@pytest.mark.parametrize(
    ("what", "body", "content_type", "words"),
    [
        (numbers(), b"\x89PNG", "image/png", "the body is image/png, which model 'sum' does not take; it takes JSON"),
        (chat(), b"\x89PNG", "image/png", "model 'chat' does not take"),
        (reader("image"), b"RIFF....WAVE", "audio/wav", "files in a form ('image': image/*)"),
        (reader("image"), *form(("file", b"%PDF-1", "a", "application/octet-stream")), "field 'file' is a file of application/pdf"),
        (reader("image"), *form(("other", b"a", "a.txt", "text/csv"), ("x", b"b", "b.txt", "text/csv")), "field 'other'"),
        (chat(), *form(("file", b"a", "a.png", "image/png")), "field 'file' is a file of image/png"),
    ],
)  # fmt: skip
async def test_a_file_that_a_model_does_not_take_is_refused_as_unsupported(
    dispatcher: Dispatcher, serve: Serve, what: Manifest, body: bytes, content_type: str, words: str
) -> None:
    serve(what=what)
    error = await refused(dispatcher, f"/inference/{what.model}", body, content_type=content_type)
    assert isinstance(error, UnsupportedMedia)
    assert status_of(error) == 415
    assert words in str(error)


# Models that take documents.


async def test_a_file_is_base64_in_the_document_that_a_model_takes(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=reader("image", label={"type": "string"}))
    own.behave = answer(said(b"{}"))
    await post(dispatcher, "/inference/chat", picture(), content_type="image/png")
    body, kind = form(
        ("file", picture(), "a.png", "application/octet-stream"),
        ("threshold", b"0.5", "", ""), ("label", b"42", "", ""), ("stream", b"true", "", ""), ("why", b"a b", "", ""),
        ("more", b'{"a": [1]}', "", "application/json"),
    )  # fmt: skip
    await post(dispatcher, "/inference/chat", body, content_type=kind, accept="image/png")
    assert documents(own) == [
        {"image": encoded(picture())},
        {"image": encoded(picture()), "threshold": 0.5, "label": "42", "stream": True, "why": "a b", "more": {"a": [1]}},
    ]  # fmt: skip
    assert dict(own.requests[1].parameters) == {"accept": "image/png"}


async def test_a_file_of_unknown_type_is_known_by_its_name_where_its_beginning_says_nothing(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    table = {"type": "string", "contentMediaType": "text/csv"}
    serve(what=reader(table=table))
    own.behave = answer(said(b"{}"))
    body, kind = form(("table", b"a,b", "A.CSV", "application/octet-stream"))
    await post(dispatcher, "/inference/chat", body, content_type=kind)
    await post(dispatcher, "/inference/chat", b"a,b", content_type="text/csv")
    assert documents(own) == [{"table": encoded(b"a,b")}] * 2
    body, kind = form(("table", b"a,b", "table", "application/octet-stream"))
    assert isinstance(
        await refused(dispatcher, "/inference/chat", body, content_type=kind), UnsupportedMedia
    )


async def test_a_member_that_is_a_list_takes_several_files(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    pages = {"type": "array", "items": {"type": "string", "contentMediaType": "image/*"}}
    serve(what=reader(pages=pages))
    own.behave = answer(said(b"{}"))
    two = [("pages", picture(), f"{each}.png", "image/png") for each in "ab"]
    body, kind = form(*two)
    await post(dispatcher, "/inference/chat", body, content_type=kind)
    assert documents(own) == [{"pages": [encoded(picture())] * 2}]
    serve(what=reader("pages"))
    assert "it takes one" in str(
        await refused(dispatcher, "/inference/chat", body, content_type=kind)
    )


async def test_a_file_alone_that_fits_in_two_places_is_not_guessed(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=reader("image", "mask"))
    error = await refused(dispatcher, "/inference/chat", picture(), content_type="image/png")
    assert "in several places (image, mask)" in str(error)


async def test_a_file_that_was_sent_as_json_is_told_how_files_are_sent(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=reader("image"))
    careless = "application/x-www-form-urlencoded"  # as curl --data-binary says
    error = await refused(dispatcher, "/inference/chat", picture(), content_type=careless)
    assert isinstance(error, InvalidRequest)
    assert "-H 'Content-Type: image/png' ('image': image/*)" in str(error)
    text = await refused(dispatcher, "/inference/chat", b"a,b", content_type="text/csv")
    assert isinstance(text, UnsupportedMedia)
    assert "the body is text/csv, which model 'chat' does not take" in str(text)


async def test_a_member_that_names_a_files_type_takes_it_before_one_that_takes_anything(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=reader("image", docs={"type": "string", "format": "base64"}))
    own.behave = answer(said(b"{}"))
    await post(dispatcher, "/inference/chat", picture(), content_type="image/png")
    assert documents(own) == [{"image": encoded(picture())}]


async def test_the_fields_of_a_form_are_told_apart_from_its_files(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=reader("image", "mask"))
    own.behave = answer(said(b"{}"))
    body, kind = form(("image", b"QUJD", "", ""))
    await post(dispatcher, "/inference/chat", body, content_type=kind)
    assert documents(own) == [{"image": "QUJD"}]  # base64 without a file
    body, kind = form(("picture", picture(), "x.png", "image/png"))
    error = await refused(dispatcher, "/inference/chat", body, content_type=kind)
    assert isinstance(error, InvalidRequest)
    assert "has no such field; it takes files as image, mask" in str(error)
    body, kind = form(("n", b"1", "", ""), ("n", b"2", "", ""))
    error = await refused(dispatcher, "/inference/chat", body, content_type=kind)
    assert "several fields 'n'" in str(error)


@pytest.mark.parametrize(
    ("field", "words"),
    [(("a", b"\xff", "", ""), "no UTF-8"), (("a", b"{", "", "application/json"), "no JSON")],
)
async def test_fields_that_cannot_be_read_are_named(
    dispatcher: Dispatcher, serve: Serve, field: tuple[str, bytes, str, str], words: str
) -> None:
    serve(what=reader("image"))
    body, kind = form(field)
    error = await refused(dispatcher, "/inference/chat", body, content_type=kind)
    assert "field 'a'" in str(error)
    assert words in str(error)


async def test_archives_and_models_with_routes_read_bodies_by_themselves(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    archive = replace(
        chat(), execution=Execution(interface=Interface.JSON, spelling=Spelling.ARCHIVE)
    )
    own.behave = answer(said(b"{}"))
    for what in (archive, shop()):
        serve(what=what)
        await post(dispatcher, f"/inference/{what.model}", b"\x89PNG", content_type="image/png")
    assert [bytes(content_of(each.inputs)) for each in own.requests] == [b"\x89PNG"] * 2
    assert {each.parameters["content_type"] for each in own.requests} == {"image/png"}


# Paths.


async def test_a_model_is_asked_at_the_path_that_its_deployer_chose(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers(exposure=Exposure("/count-cars")))
    for path in ("/count-cars", "/count-cars/", "/count%2Dcars"):
        assert await value(dispatcher, path, b"[1, 2]") == {"x": [[1, 2]]}
    assert dispatcher.match("POST", "/count-cars").infers
    with pytest.raises(HttpRefusal) as refusal:
        dispatcher.match("GET", "/count-cars")
    assert (refusal.value.status, refusal.value.headers) == (405, {"Allow": "POST"})
    with pytest.raises(HttpRefusal, match="nothing is served"):
        dispatcher.match("POST", "/count-cars/more")
    assert "ModelCalls" in repr(dispatcher._endpoint)
    http = HttpRequest("POST", "/count%2Dcars", "", {"prefer": "respond-async"}, b"[1, 2]")
    later: Any = dispatcher.answer(dispatcher.match("POST", http.path), http, "id-1")
    assert json.loads((await later).body)["model"] == "sum"
    serve(what=numbers(exposure=Exposure("/cars")))
    assert await value(dispatcher, "/cars", b"[1, 2]") == {"x": [[1, 2]]}
    with pytest.raises(HttpRefusal, match="nothing is served"):
        dispatcher.match("POST", "/count-cars")


async def test_a_path_that_two_models_have_is_the_first_ones_by_name(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    own.behave = answer(said(b"{}"))
    for name in ("b", "a", "c"):
        serve(what=replace(chat(), model=name, exposure=Exposure("/same")))
    await post(dispatcher, "/same", b"{}")
    assert own.requests[0].model == "a"


async def test_a_chosen_path_keeps_the_other_methods_of_a_models_route(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(
        what=replace(shop(Route("GET", "/buy"), Route("POST", "/buy")), exposure=Exposure("/buy"))
    )
    assert set(dispatcher._endpoint.of_models("/buy")) == {"GET", "POST"}


async def test_predict_asks_the_model_that_the_query_names(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    serve(what=reader("image"))
    own.behave = answer(said(b'{"label": "cat"}'))
    body, kind = form(("file", picture(), "a.png", "image/png"))
    for path in ("/predict", "/predict/"):
        found = await value(dispatcher, path, body, query="model=chat", content_type=kind)
        assert found == {"label": "cat"}
    assert documents(own) == [{"image": encoded(picture())}] * 2


@pytest.mark.parametrize("query", ["", "a=1", "model=", "model=a&model=b"])
async def test_predict_without_one_model_says_how_to_name_it(
    dispatcher: Dispatcher, query: str
) -> None:
    for path in ("/predict", "/predict/async"):
        assert "/predict?model=NAME" in str(await refused(dispatcher, path, b"{}", query=query))


async def test_a_model_may_have_predict_as_its_own_path(
    dispatcher: Dispatcher, serve: Serve, own: Any
) -> None:
    own.behave = answer(said(b"{}"))
    serve(what=numbers(model="tensors"))
    serve(
        what=shop(Route("POST", "/predict"), Route("GET", "/predict"), Route("GET", "/predict/{x}"))
    )
    await post(dispatcher, "/predict", b"{}")
    assert own.requests[-1].model == "shop"
    assert dispatcher.match("GET", "/predict").scope
    assert dispatcher.match("GET", "/predict/7").scope
    serve(what=replace(chat(), exposure=Exposure("/predictor")))
    await post(dispatcher, "/predictor", b"{}")
    assert own.requests[-1].model == "chat"
    serve(what=replace(shop(), exposure=Exposure("/other")))  # it has no /predict any more
    serve(what=replace(chat(), exposure=Exposure("/predict")))
    await post(dispatcher, "/predict", b"{}")
    assert own.requests[-1].model == "chat"


async def test_predict_async_makes_a_job_of_the_same_request(
    dispatcher: Dispatcher, serve: Serve
) -> None:
    serve(what=numbers())
    dispatcher.respond_later = None
    with pytest.raises(HttpRefusal) as refusal:
        await post(dispatcher, "/predict/async", b"[1, 2]", query="model=sum")
    assert refusal.value.status == 501
    asked: list[HttpRequest] = []

    def later(http: HttpRequest, _request_id: str) -> HttpResponse:
        asked.append(http)
        made = json_response({"id": "j1", "url": "/mesh/v1/jobs/j1", "status": "queued"}, 202)
        return HttpResponse(202, {**made.headers, "Location": "/mesh/v1/jobs/j1"}, made.body)

    dispatcher.respond_later = later
    response = await post(dispatcher, "/predict/async", b"[1, 2]", query="model=sum")
    assert isinstance(response, HttpResponse)
    assert response.status == 202
    assert response.headers["Location"] == "/mesh/v1/jobs/j1"
    assert isinstance(response.body, bytes)
    assert json.loads(response.body) == {
        "task_id": "j1", "status": "processing", "url": "/mesh/v1/jobs/j1",
    }  # fmt: skip
    assert [(each.path, each.query, each.body) for each in asked] == [
        ("/inference/sum", "", b"[1, 2]")
    ]
    with pytest.raises(ModelNotFound):
        await post(dispatcher, "/predict/async", b"[1, 2]", query="model=none")

    async def full(_http: HttpRequest, _request_id: str) -> HttpResponse:
        return json_response({"error": "full"}, 503)

    dispatcher.respond_later = full
    response = await post(dispatcher, "/predict/async", b"[1, 2]", query="model=sum")
    assert isinstance(response, HttpResponse)
    assert response.status == 503


@pytest.mark.parametrize(
    ("body", "content_type", "refusal"),
    [
        (b"{", "", InvalidRequest),
        (b"{", "application/x-www-form-urlencoded", InvalidRequest),
        (b"%PDF-1.7", "application/pdf", UnsupportedMedia),
    ],
)
@pytest.mark.parametrize("model", ["sum", "chat"])
async def test_no_job_is_made_of_what_the_model_refuses_at_once(
    dispatcher: Dispatcher, serve: Serve, body: bytes, content_type: str, refusal: Any, model: str
) -> None:
    serve(what=numbers() if model == "sum" else chat())
    asked: list[HttpRequest] = []

    def later(http: HttpRequest, _request_id: str) -> HttpResponse:
        asked.append(http)
        return json_response({"id": "j1"}, 202)

    dispatcher.respond_later = later
    with pytest.raises(refusal):
        await post(dispatcher, "/predict/async", body, f"model={model}", content_type=content_type)
    assert asked == []
    await post(dispatcher, "/predict/async", b"[1, 2]", query=f"model={model}")
    assert len(asked) == 1


async def test_a_models_path_may_end_with_a_slash(dispatcher: Dispatcher, serve: Serve) -> None:
    serve(what=numbers())
    assert await value(dispatcher, "/inference/sum/", b"[1, 2]")
    with pytest.raises(HttpRefusal):
        dispatcher.match("POST", "/inference//")


async def test_an_unknown_model_is_not_found(dispatcher: Dispatcher) -> None:
    assert isinstance(await refused(dispatcher, "/inference/none", b"{}"), ModelNotFound)


async def test_a_compressed_body_is_bounded(dispatcher: Dispatcher, serve: Serve) -> None:
    import gzip

    serve(what=numbers(TensorSpec("x", FP32, (-1, 2, 2))))
    packed = gzip.compress(b'{"x": [[1, 1], [1, 1]]}')
    found = await value(dispatcher, "/inference/sum", packed, content_encoding="gzip")
    assert found == {"x": [[[1, 1], [1, 1]]]}
    bomb = gzip.compress(b" " * (65 * 2**20))
    assert isinstance(
        await refused(dispatcher, "/inference/sum", bomb, content_encoding="gzip"), TooLarge
    )
