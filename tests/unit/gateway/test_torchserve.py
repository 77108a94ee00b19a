"""TorchServe's dialect: what bodies become, how answers and errors are told, and management."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from meshnode.errors import InvalidRequest
from meshnode.gateway.protocols import torchserve
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.torchserve import Form, Joined
from meshnode.gateway.repository_api import IndexEntry, Register
from meshnode.gateway.torchserve_routes import error_form
from meshnode.models.execution import Execution, Interface, Spelling
from meshnode.models.http_calls import CONTENT_TYPE, FIELDS, content_of, document_tensor
from meshnode.types import DataType, InferResponse, ResponsePart, Tensor
from tests.unit.gateway.conftest import spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher
    from meshnode.gateway.protocols.dialect import Call
    from meshnode.models.manifest import Manifest

FORM = (
    b'--x\r\nContent-Disposition: form-data; name="x"\r\n\r\n[1, 2, 3, 4]\r\n'
    b'--x\r\nContent-Disposition: form-data; name="n"\r\n\r\n\xff\r\n--x--\r\n'
)
MULTIPART = "multipart/form-data; boundary=x"


def decode(manifest: Manifest, body: bytes, content_type: str = "") -> Call:
    headers = {"content-type": content_type} if content_type else {}
    http = HttpRequest("POST", "/predictions/digits", "", headers, body)
    return torchserve.decode(Asked(http, "digits"), manifest, "r1", None)


@pytest.mark.parametrize(
    ("body", "content_type", "shape", "drops"),
    [
        (b'{"x": [[1, 2, 3, 4]]}', "application/json", (1, 4), False),
        (b'{"data": [1, 2, 3, 4]}', "application/json", (1, 4), True),
        (b'{"instances": [[1, 2, 3, 4]]}', "", (1, 4), False),
        (b"[1, 2, 3, 4]", "application/x-www-form-urlencoded", (1, 4), True),
        (struct.pack("<4f", 1, 2, 3, 4), "application/octet-stream", (1, 4), False),
        (struct.pack("<8f", *range(8)), "", (2, 4), False),
    ],
)
def test_bodies_become_the_only_input(
    manifest: Manifest, body: bytes, content_type: str, shape: tuple[int, ...], drops: bool
) -> None:
    call = decode(manifest, body, content_type)
    (tensor,) = call.request.inputs
    assert (tensor.name, tensor.shape) == ("x", shape)
    assert call.form == Form(False, drops)


def test_fields_of_a_form_become_inputs(make_manifest: Callable[..., Manifest]) -> None:
    manifest = make_manifest(spec("x", (-1, 4)), spec("n", (-1,), DataType.UINT8))
    tensors = {each.name: each for each in decode(manifest, FORM, MULTIPART).request.inputs}
    assert tensors["x"].shape == (1, 4)
    assert bytes(tensors["n"].data) == b"\xff"


@pytest.mark.parametrize(
    ("body", "content_type", "sentence"),
    [
        (b"{", "application/json", "not JSON"),
        (b'{"y": [1]}', "application/json", "no input 'y'"),
        (b"abc", "image/png", "multiple of 16 bytes"),
    ],
)
def test_what_does_not_fit_is_refused(
    manifest: Manifest, body: bytes, content_type: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        decode(manifest, body, content_type)


def test_a_model_of_several_inputs_wants_them_by_name(
    make_manifest: Callable[..., Manifest],
) -> None:
    with pytest.raises(InvalidRequest, match="several inputs"):
        decode(make_manifest(spec("a", (1,)), spec("b", (1,))), b"[1]", "application/json")


def document_model(manifest: Manifest, spelling: Spelling) -> Manifest:
    execution = Execution(interface=Interface.JSON, spelling=spelling)
    return msgspec.structs.replace(manifest, execution=execution)


def test_an_archive_is_given_the_body_or_the_fields(manifest: Manifest) -> None:
    archive = document_model(manifest, Spelling.ARCHIVE)
    plain = decode(archive, b"kitten").request
    assert (bytes(content_of(plain.inputs)), plain.parameters) == (b"kitten", {})
    by_curl = decode(archive, b'{"a": 1}', "application/x-www-form-urlencoded").request
    assert by_curl.parameters[CONTENT_TYPE] == "application/json"
    form = decode(archive, FORM, MULTIPART).request
    assert form.parameters[CONTENT_TYPE] == FIELDS
    fields = msgspec.msgpack.decode(content_of(form.inputs))
    assert fields == {"x": b"[1, 2, 3, 4]", "n": b"\xff"}
    other = decode(document_model(manifest, Spelling.PREDICTOR), FORM, MULTIPART).request
    assert json.loads(bytes(content_of(other.inputs))) == {
        "x": "[1, 2, 3, 4]",
        "n": {"b64": "/w=="},
    }


def row(name: str) -> Tensor:
    return Tensor(name, DataType.FP32, (1, 2), struct.pack("<2f", 1, 2))


def test_answers_have_no_batch_where_the_request_had_none() -> None:
    response = InferResponse("digits", 1, ResponsePart(()))
    for outputs, form, told in (
        ((row("y"),), Form(False, True), [1, 2]),
        ((row("y"),), Form(False), [[1, 2]]),
        ((row("y"), row("z")), Form(False, True), {"y": [1, 2], "z": [1, 2]}),
    ):
        answer = torchserve.encode(response, ResponsePart(outputs), form)
        assert isinstance(answer.body, bytes)
        assert json.loads(answer.body) == told


def test_parts_of_a_document_are_joined_and_the_first_says_what_they_are() -> None:
    joined = Joined(InferResponse("digits", 1, ResponsePart(())))
    head: dict[str, Any] = {"http_status": 201, "http_headers": '[["content-type", "image/png"]]'}
    joined.part(ResponsePart((document_tensor("response", b"ab"),), head))
    joined.part(ResponsePart((document_tensor("response", b"cd"),)))
    assert (joined.status, joined.headers, joined.end()) == (
        201,
        {"Content-Type": "image/png"},
        b"abcd",
    )


def test_errors_are_told_in_torchserves_words_at_its_paths_only() -> None:
    for path in (
        "/ping",
        "/models",
        "/models?url=x",
        "/models/m/1",
        "/predictions/",
        "/explanations/m",
    ):
        told: Any = error_form(path).document(404, "gone", "http")
        assert told == {"code": 404, "type": "ResourceNotFoundException", "message": "gone"}
    assert error_form("/models-of-mine").document(404, "gone", "http") == {"error": "gone"}
    assert error_form("/ping").document(500, "x", "internal")["type"] == "InternalServerException"  # type: ignore[index]


async def asked(dispatcher: Dispatcher, method: str, path: str, query: str = "") -> tuple[int, Any]:
    reply = dispatcher.match(method, path).answer(HttpRequest(method, path, query, {}), "r1")
    response = reply if isinstance(reply, HttpResponse) else await reply
    assert isinstance(response, HttpResponse)
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body)


async def test_management_reaches_the_repository(dispatcher: Dispatcher, control: Any) -> None:
    query = "url=https%3A%2F%2Fa.b%2Fm.mar&initial_workers=2&model_name=m&synchronous=true"
    assert (await asked(dispatcher, "POST", "/models", query))[0] == 200
    assert (await asked(dispatcher, "POST", "/models", "url=m&initial_workers=1"))[0] == 202
    _, told = await asked(dispatcher, "POST", "/models", "url=m")
    assert told["status"].startswith('Model "digits" Version: 1 registered with 0 initial workers')
    assert (await asked(dispatcher, "PUT", "/models/m", "min_worker=3"))[0] == 202
    assert (await asked(dispatcher, "PUT", "/models/m/2", "max_worker=0&synchronous=true"))[
        0
    ] == 200
    await asked(dispatcher, "DELETE", "/models/m/1.0")
    await asked(dispatcher, "PUT", "/models/m/1/set-default")
    calls = [(call[0], *call[1:-1]) for call in control.calls if call[0] != "ready"]
    assert calls == [
        ("register", Register("https://a.b/m.mar", "m", 2)),
        ("register", Register("m", None, 1)),
        ("register", Register("m")),
        ("scale", "m", None, 3),
        ("scale", "m", 2, 0),
        ("remove", "m", 1),
        ("make_default", "m", 1),
    ]
    assert [call for call in control.calls if call[0] == "ready"] == [("ready", "m", 1, 2)]


@pytest.mark.parametrize(
    ("method", "path", "query", "sentence"),
    [
        ("POST", "/models", "", "'url' is required"),
        ("POST", "/models", "url=m&handler=h", "'handler'"),
        ("POST", "/models", "url=m&strange=1", "'strange' is not known"),
        ("POST", "/models", "url=m&initial_workers=-1", "'initial_workers' must be a number"),
        ("PUT", "/models/m", "min_worker=2&max_worker=1", "cannot be lower"),
        ("PUT", "/models/m", "synchronous=maybe", "true or false"),
    ],
)
async def test_wrong_parameters_are_named(
    dispatcher: Dispatcher, method: str, path: str, query: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        await asked(dispatcher, method, path, query)


async def test_models_are_listed_in_pages_and_described(
    dispatcher: Dispatcher, control: Any
) -> None:
    control.repository.entries.append(IndexEntry("digits", 2, "LOADING"))
    assert await asked(dispatcher, "GET", "/models", "limit=1") == (
        200,
        {"models": [{"modelName": "digits", "modelUrl": "digits"}], "nextPageToken": "1"},
    )
    _, last = await asked(dispatcher, "GET", "/models", "limit=1&next_page_token=1")
    assert last == {"models": [{"modelName": "old", "modelUrl": "old"}]}
    (told,) = (await asked(dispatcher, "GET", "/models/digits"))[1]
    assert (told["modelVersion"], told["runtime"]) == ("1", "onnx")
    (stored,) = (await asked(dispatcher, "GET", "/models/old/2"))[1]
    assert (stored["modelName"], stored["workers"]) == ("old", [])
    assert len((await asked(dispatcher, "GET", "/models/digits/all"))[1]) == 2


async def test_ping_says_whether_the_node_is_in_its_mesh(
    dispatcher: Dispatcher, control: Any
) -> None:
    assert await asked(dispatcher, "GET", "/ping") == (
        200,
        {"status": "Healthy", "health": "healthy!"},
    )
    control.is_ready = False
    assert (await asked(dispatcher, "GET", "/ping"))[0] == 503
