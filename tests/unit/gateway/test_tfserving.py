"""TensorFlow Serving's requests and answers, without a server."""

from __future__ import annotations

import gzip
import json
import math
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MeshError,
    ModelNotFound,
    Saturated,
)
from meshnode.gateway.protocols import tfserving
from meshnode.gateway.protocols.dialect import Asked
from meshnode.gateway.protocols.http import HttpRequest, HttpResponse
from meshnode.gateway.protocols.status import HttpRefusal, error_response
from meshnode.gateway.protocols.tfserving import ERRORS, TensorFlowServing
from meshnode.gateway.protocols.tfserving_metadata import version_status
from meshnode.gateway.protocols.tfserving_values import flat, nested, tensor_of, value_of
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.types import DataType, InferResponse, ResponsePart, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.gateway.dispatch import Dispatcher

A = TensorSpec("a", DataType.FP32, (-1, 1))
B = TensorSpec("b", DataType.INT64, (-1,))
TEXT = TensorSpec("text", DataType.BYTES, (-1, 1))


def manifest(*inputs: TensorSpec) -> Manifest:
    return Manifest("m", 3, "onnx", "onnxruntime_onnx", inputs, inputs, 8, (), "m.onnx")


def decode(verb: str, body: Any, *inputs: TensorSpec) -> Any:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = Asked(HttpRequest("POST", f"/v1/models/m:{verb}", "", {}, text), "m")
    return TensorFlowServing(verb).decode(asked, manifest(*inputs), "id", None)


def encode(verb: str, rows: bool, *outputs: Tensor) -> Any:
    dialect = TensorFlowServing(verb)
    form = decode(
        verb, {"instances": [[1]]} if verb == "predict" else {"examples": [{"a": 1}]}, A
    ).form
    part = ResponsePart(outputs)
    answer = dialect.encode(InferResponse("m", 3, part), part, form._replace(rows=rows))
    assert isinstance(answer.body, bytes)
    return json.loads(answer.body)


def floats(name: str, shape: tuple[int, ...], *values: float) -> Tensor:
    return Tensor(name, DataType.FP32, shape, struct.pack(f"<{len(values)}f", *values))


def texts(name: str, *values: bytes) -> Tensor:
    data = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return Tensor(name, DataType.BYTES, (len(values),), data)


def test_rows_become_one_tensor_per_input() -> None:
    call = decode("predict", {"instances": [{"a": [1], "b": 2}, {"a": [3], "b": 4}]}, A, B)
    assert [(each.name, each.shape) for each in call.request.inputs] == [("a", (2, 1)), ("b", (2,))]
    assert call.request.inputs[0].data == struct.pack("<2f", 1, 3)
    assert call.request.inputs[1].data == struct.pack("<2q", 2, 4)
    assert (call.request.version, call.form.rows) == (3, True)


def test_the_only_input_needs_no_name() -> None:
    assert decode("predict", {"instances": [[1], [2]]}, A).request.inputs[0].shape == (2, 1)
    call = decode("predict", {"inputs": [[1], [2]]}, A)
    assert (call.request.inputs[0].name, call.form.rows) == ("a", False)
    assert decode("predict", {"inputs": {"b64": "AAE="}}, TEXT).request.inputs[0].data == (
        b"\x02\0\0\0\0\x01"
    )


def test_compressed_bodies_are_read() -> None:
    body = gzip.compress(b'{"instances": [[1]]}')
    http = HttpRequest("POST", "/v1/models/m:predict", "", {"content-encoding": "gzip"}, body)
    call = TensorFlowServing("predict").decode(Asked(http, "m"), manifest(A), "id", None)
    assert call.request.inputs[0].shape == (1, 1)


def test_inputs_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfserving, "MAX_REQUEST_TENSORS", 1)
    with pytest.raises(InvalidRequest, match="at most 1 inputs"):
        decode("predict", {"inputs": {"a": [[1]], "b": [1]}}, A, B)


def test_outputs_that_are_not_what_they_say_are_the_models_failure() -> None:
    for data, sentence in (
        (b"\x09\0\0\0", "longer than the data"),
        (b"\0\0\0\0" * 2, "size that its shape"),
    ):
        with pytest.raises(InferenceFailed, match=sentence):
            value_of(Tensor("x", DataType.BYTES, (1,), data))


def test_literals_that_are_no_json_are_read() -> None:
    data = decode("predict", b'{"instances": [[NaN], [-Infinity]]}', A).request.inputs[0].data
    values = struct.unpack("<2f", data)
    assert math.isnan(values[0])
    assert values[1] == -math.inf


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not JSON"),
        (b"[NaN", "not JSON"),
        ([], "must be a JSON object"),
        (
            {"signature_name": "other", "instances": [1]},
            "signature 'serving_default' only, not 'other'",
        ),
        ({"signature_name": 1, "instances": [1]}, "signature .serving_default. only"),
        ({}, "either instances"),
        ({"inputs": {"c": 1}}, "no input 'c'"),
        ({"instances": {}}, "at least one row"),
        ({"instances": []}, "at least one row"),
        ({"instances": [{"a": [1], "b": 1}, 2]}, r"instances\[1\]"),
        ({"instances": [[1]]}, "need their names: 'a', 'b'"),
        ({"instances": [{"a": {"b64": "AA=="}, "b": 1}]}, "takes FP32, not objects"),
        ({"inputs": {"a": [[[1]], [2]], "b": [1, 2]}}, "ragged"),
        ({"inputs": {"a": [[1]], "b": [1.5]}}, "element 0: INT64 takes integers"),
        ({"inputs": {"a": [[1e39]], "b": [1]}}, "in the range of FP32"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(body: Any, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        decode("predict", body, A, B)


def test_text_and_base64_are_elements_of_bytes() -> None:
    tensor = tensor_of(TEXT, [["h\u00e9"], [{"b64": "/w"}]])
    assert tensor.data == b"\x03\0\0\0h\xc3\xa9\x01\0\0\0\xff"
    for wrong in ([[1]], [[{"b64": "*"}]], [[{"b64": "AA==", "x": 1}]]):
        with pytest.raises(InvalidRequest, match="input 'text'"):
            tensor_of(TEXT, wrong)


def test_shapes_are_those_of_the_nesting() -> None:
    assert flat("x", 5) == ((), [5])
    assert flat("x", []) == ((0,), [])
    assert flat("x", [[], []]) == ((2, 0), [])
    assert flat("x", [[[1, 2]], [[3, 4]]]) == ((2, 1, 2), [1, 2, 3, 4])
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="more than 32 dimensions"):
        flat("x", deep)


def test_values_are_nested_as_shapes_say() -> None:
    assert nested([1, 2, 3, 4], (2, 1, 2)) == [[[1, 2]], [[3, 4]]]
    assert nested([7], ()) == 7
    assert nested([], (0, 3)) == []
    assert nested([], (2, 0)) == [[], []]
    assert nested([], (2, 0, 3)) == [[], []]


def test_a_single_output_loses_its_name_and_several_keep_theirs() -> None:
    one, two = floats("x", (2, 1), 1, 2), floats("y", (2,), 3, 4)
    assert encode("predict", True, one) == {"predictions": [[1.0], [2.0]]}
    assert encode("predict", False, one) == {"outputs": [[1.0], [2.0]]}
    assert encode("predict", True, one, two) == {
        "predictions": [{"x": [1.0], "y": 3.0}, {"x": [2.0], "y": 4.0}]
    }
    assert encode("predict", False, one, two) == {"outputs": {"x": [[1.0], [2.0]], "y": [3.0, 4.0]}}
    with pytest.raises(InvalidRequest, match="column format"):
        encode("predict", True, one, floats("z", (3,), 1, 2, 3))


def test_bytes_that_are_no_text_come_back_as_base64() -> None:
    assert value_of(texts("x", b"a", b"\xff")) == ["a", {"b64": "/w=="}]
    assert value_of(texts("x_bytes", b"a")) == [{"b64": "YQ=="}]


def test_half_a_surrogate_pair_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest, match="no Unicode"):
        tensor_of(TensorSpec("text", DataType.BYTES, (-1,)), ["\ud800"])


def test_infinities_are_written_as_literals() -> None:
    part = ResponsePart((floats("x", (2,), math.nan, -math.inf),))
    form = decode("predict", {"inputs": [[1]]}, A).form
    answer = TensorFlowServing("predict").encode(InferResponse("m", 3, part), part, form)
    assert answer.body == b'{"outputs":[NaN,-Infinity]}'


def test_examples_share_their_context() -> None:
    body = {"context": {"b": 5}, "examples": [{"a": 1}, {"a": 2}]}
    inputs = {each.name: each for each in decode("regress", body, A, B).request.inputs}
    assert inputs["a"].shape == (2, 1)  # as the model has it
    assert inputs["b"].data == struct.pack("<2q", 5, 5)
    assert decode("classify", {"examples": [{"b": [5]}]}, B).request.inputs[0].shape == (1,)
    wrong: Any
    for wrong in ({}, {"examples": []}, {"examples": [1]}, {"examples": [{}], "context": 1}):
        with pytest.raises(InvalidRequest, match="examples"):
            decode("classify", wrong, A)


def test_classes_have_labels_and_scores() -> None:
    scores = floats("scores", (1, 2), 0.25, 0.75)
    assert encode("classify", True, scores) == {"results": [[["0", 0.25], ["1", 0.75]]]}
    labels = Tensor("classes", DataType.BYTES, (1, 2), texts("", b"no", b"yes").data)
    assert encode("classify", True, scores, labels) == {"results": [[["no", 0.25], ["yes", 0.75]]]}
    for wrong in ((floats("x", (2,), 1, 2),), (floats("x", (1, 1), 1), floats("y", (1, 1), 1))):
        with pytest.raises(InvalidRequest, match="classification needs"):
            encode("classify", True, *wrong)
    with pytest.raises(MeshError, match="other numbers of classes"):
        encode("classify", True, scores, texts("classes", b"no"))


def test_a_regression_has_one_number_per_example() -> None:
    assert encode("regress", True, floats("y", (2, 1), 1, 2)) == {"results": [1.0, 2.0]}
    assert encode("regress", True, floats("y", (2,), 1, 2)) == {"results": [1.0, 2.0]}
    with pytest.raises(InvalidRequest, match="one number for each example"):
        encode("regress", True, floats("y", (1, 2), 1, 2))


def test_a_version_is_as_far_as_its_furthest_replica() -> None:
    replicas = [
        {"version": 1, "state": "ready", "failure": ""},
        {"version": 1, "state": "failed", "failure": "no memory"},
        {"version": 2, "state": "failed", "failure": "no memory"},
        {"version": 3, "state": "fetching", "failure": ""},
    ]
    states = version_status([1, 2, 3, 4], replicas)
    assert [(each["version"], each["state"]) for each in states] == [
        ("4", "START"),
        ("3", "LOADING"),
        ("2", "END"),
        ("1", "AVAILABLE"),
    ]
    assert states[2]["status"] == {"error_code": "UNKNOWN", "error_message": "no memory"}


def test_full_queues_and_deadlines_have_its_statuses() -> None:
    assert error_response(Saturated("full"), ERRORS).status == 429
    assert error_response(DeadlineExceeded("late"), ERRORS).status == 504
    assert error_response(InvalidRequest("no"), ERRORS).body == b'{"error":"no"}'


async def test_paths_name_versions_labels_and_verbs(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    serve()
    body = json.dumps({"instances": [[1, 2, 3, 4]]}).encode()

    def ask(method: str, path: str) -> Any:
        http = HttpRequest(method, path, "", {}, body)
        reply = dispatcher.match(method, path).answer(http, "id")
        assert isinstance(reply, HttpResponse)
        assert isinstance(reply.body, bytes)
        return json.loads(reply.body)

    for place in ("digits", "digits/versions/1", "digits/labels/stable"):
        assert ask("POST", f"/v1/models/{place}:predict") == {"predictions": [[1.0, 2.0, 3.0, 4.0]]}
        assert ask("GET", f"/v1/models/{place}/metadata")["model_spec"]["name"] == "digits"
        assert ask("GET", f"/v1/models/{place}")["model_version_status"][0]["version"] == "1"
    assert ask("POST", "/v1/models/digits%3Apredict")["predictions"]
    assert ask("GET", "/v1/models/digits/")["id"] == "digits"


@pytest.mark.parametrize(
    "path",
    [
        "digits/versions",
        "digits/x",
        "digits/labels/prod",
        "digits/metadata:predict",
        "a/b/c/d/e",
    ],
)
def test_other_paths_are_unknown_and_say_so_in_its_form(dispatcher: Dispatcher, path: str) -> None:
    with pytest.raises(HttpRefusal) as raised:
        dispatcher.match("GET", f"/v1/models/{path}")
    assert raised.value.status == 404
    assert dispatcher.error_form(f"/v1/models/{path}") is ERRORS


@pytest.mark.parametrize("name", ["org%2Fmodel", "llama3:8b", "llama3%3A8b", "line%2Fversions%2F1"])
def test_a_model_whose_name_has_a_slash_or_a_colon_is_not_found_in_openais_form(
    dispatcher: Dispatcher, name: str
) -> None:
    path = f"/v1/models/{name}"
    with pytest.raises(ModelNotFound) as raised:
        dispatcher.match("GET", path).answer(HttpRequest("GET", path, "", {}, b""), "id")
    assert unquote(name) in str(raised.value)
    response: Any = error_response(raised.value, dispatcher.error_form(path))
    assert (response.status, json.loads(response.body)["error"]["code"]) == (404, "model_not_found")


def test_a_slash_in_a_models_name_is_no_place_of_a_version(
    dispatcher: Dispatcher, serve: Callable[..., None]
) -> None:
    serve()
    path = "/v1/models/digits%2Fversions%2F1:predict"
    http = HttpRequest("POST", path, "", {}, b'{"instances": [[1, 2, 3, 4]]}')
    with pytest.raises(ModelNotFound):
        dispatcher.match("POST", path).answer(http, "id")
    assert dispatcher.error_form(path) is ERRORS


def test_labels_of_moments_are_versions(dispatcher: Dispatcher) -> None:
    assert dispatcher.match("GET", "/v1/models/digits/labels/20260131_120000")
    with pytest.raises(InvalidRequest, match="not a model version"):
        dispatcher.match("GET", "/v1/models/digits/labels/a_b")
