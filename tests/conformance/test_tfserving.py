"""TensorFlow Serving's REST API as its documentation shows it, with an ordinary HTTP client."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import requests
from onnx import TensorProto, helper

from tests.conformance.table import conforms

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

DIGIT = (np.arange(64, dtype=np.float32).reshape(8, 8) / 64).tolist()

TEXTS = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        upper = np.vectorize(lambda text: text.upper(), otypes=[np.object_])(texts)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("upper", upper), pb_utils.Tensor("raw_bytes", texts)]
        )
"""
TEXTS_CONFIG = """
backend: "python"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "upper" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "raw_bytes" data_type: TYPE_STRING dims: [ 1 ] }
]
"""


ONE_RESPONSE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "count").as_numpy()[0])
            for number in range(count):
                said = pb_utils.Tensor("number", np.array([number], np.float32))
                sender.send(pb_utils.InferenceResponse([said]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
ONE_RESPONSE_CONFIG = """
backend: "python"
model_transaction_policy { decoupled: true }
input [ { name: "count" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


def line(path: Path) -> Path:
    """Write a model y = 2a + b, of two scalars per row."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]) for name in "ab"]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])
    nodes = [
        helper.make_node("Add", ["a", "a"], ["aa"]),
        helper.make_node("Add", ["aa", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "line", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


class Client:
    """Asks as TensorFlow Serving's documentation does."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/v1/models"
        self.session = requests.Session()

    def get(self, path: str) -> tuple[int, Any]:
        answer = self.session.get(f"{self.url}/{path}", timeout=30)
        return answer.status_code, answer.json()

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        answer = self.session.post(f"{self.url}/{path}", json=body, timeout=30)
        return answer.status_code, answer.json()


@pytest.fixture(scope="module")
def client(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("tfserving")
    (folder / "texts" / "1").mkdir(parents=True)
    (folder / "texts" / "1" / "model.py").write_text(TEXTS)
    (folder / "texts" / "config.pbtxt").write_text(TEXTS_CONFIG)
    mesh.deploy(folder / "texts", "texts")
    mesh.deploy(line(folder / "line.onnx"), "line")
    (folder / "numbers" / "1").mkdir(parents=True)
    (folder / "numbers" / "1" / "model.py").write_text(ONE_RESPONSE)
    (folder / "numbers" / "config.pbtxt").write_text(ONE_RESPONSE_CONFIG)
    mesh.deploy(folder / "numbers", "numbers")
    return Client(mesh.url)


@conforms("TensorFlow Serving", "predict, row format: instances to predictions")
def test_rows_are_predicted(client: Client) -> None:
    status, answer = client.post("digits:predict", {"instances": [DIGIT, DIGIT]})
    assert status == 200
    (first, second) = answer["predictions"]
    assert first == second
    assert client.post(
        "line:predict", {"instances": [{"a": [1], "b": [2]}, {"a": [3], "b": [4]}]}
    ) == (
        200,
        {"predictions": [[4.0], [10.0]]},
    )


@conforms("TensorFlow Serving", "predict, column format: inputs to outputs")
def test_columns_are_predicted(client: Client) -> None:
    body = {"inputs": {"a": [[1], [3]], "b": [[2], [4]]}}
    assert client.post("line:predict", body) == (200, {"outputs": [[4.0], [10.0]]})
    status, answer = client.post("texts:predict", {"inputs": [["hi"], ["you"]]})
    assert status == 200
    assert answer["outputs"]["upper"] == [["HI"], ["YOU"]]


@conforms("TensorFlow Serving", "binary values: b64 objects, outputs named *_bytes")
def test_binary_values_are_base64(client: Client) -> None:
    data = base64.b64encode(b"\xff\x00\xfe").decode()
    status, answer = client.post("texts:predict", {"instances": [[{"b64": data}], ["plain"]]})
    assert status == 200
    assert answer["predictions"][0]["raw_bytes"] == [{"b64": data}]
    assert answer["predictions"][1] == {
        "upper": ["PLAIN"],
        "raw_bytes": [{"b64": base64.b64encode(b"plain").decode()}],
    }


@conforms("TensorFlow Serving", "NaN and infinities")
def test_literals_are_read_and_written(client: Client) -> None:
    answer = client.session.post(
        f"{client.url}/line:predict",
        data='{"inputs": {"a": [[NaN], [Infinity]], "b": [[0], [0]]}}',
        timeout=30,
    )
    assert answer.text == '{"outputs":[[NaN],[Infinity]]}'


@conforms("TensorFlow Serving", "versions and labels in the path, signature_name")
def test_versions_and_labels_are_asked(client: Client) -> None:
    body = {"signature_name": "serving_default", "instances": [{"a": [1], "b": [1]}]}
    for place in ("line/versions/1", "line/labels/stable"):
        assert client.post(f"{place}:predict", body) == (200, {"predictions": [[3.0]]})
    status, answer = client.post("line/versions/7:predict", body)
    assert (status, set(answer)) == (404, {"error"})
    status, answer = client.post("line/labels/nothing:predict", body)
    assert (status, set(answer)) == (404, {"error"})
    status, answer = client.post("line:predict", {**body, "signature_name": "other"})
    assert (status, set(answer)) == (400, {"error"})


@conforms("TensorFlow Serving", "classify")
def test_examples_are_classified(client: Client) -> None:
    status, answer = client.post("digits:classify", {"examples": [{"image": DIGIT}]})
    assert status == 200
    (classes,) = answer["results"]
    assert [label for label, _ in classes] == [str(digit) for digit in range(10)]
    assert all(isinstance(score, float) for _, score in classes)


@conforms("TensorFlow Serving", "regress, with context")
def test_examples_are_regressed(client: Client) -> None:
    body = {"context": {"b": 10.0}, "examples": [{"a": 1.0}, {"a": 2.0}]}
    assert client.post("line:regress", body) == (200, {"results": [12.0, 14.0]})


@conforms("TensorFlow Serving", "model status, joined with OpenAI's model object")
def test_the_status_of_versions_is_told(client: Client) -> None:
    available = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    status, answer = client.get("line")
    assert (status, answer["model_version_status"]) == (200, [available])
    assert (answer["id"], answer["object"]) == ("line", "model")
    for place in ("line/versions/1", "line/labels/latest"):
        assert client.get(place) == (200, {"model_version_status": [available]})
    assert client.get("line/versions/9")[0] == 404


@conforms("TensorFlow Serving", "model metadata")
def test_the_signature_is_told(client: Client) -> None:
    status, answer = client.get("line/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "line", "signature_name": "", "version": "1"}
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["a"]["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in signature["inputs"]["a"]["tensor_shape"]["dim"]] == ["-1", "1"]


@conforms("TensorFlow Serving", "bad input in TensorFlow Serving's error object")
def test_bad_input_is_told_in_its_form(client: Client) -> None:
    for body, sentence in (
        ({}, "either instances"),
        ({"instances": [], "inputs": []}, "either instances"),
        ({"instances": [{"a": 1}, {"b": 1}]}, "same names"),
        ({"instances": [1.0]}, "need their names"),
        ({"inputs": {"a": [[1], [2, 3]], "b": [[1], [1]]}}, "ragged"),
        ({"inputs": {"a": [["x"]], "b": [[1]]}}, "FP32"),
        ({"inputs": {"c": [[1]]}}, "no input 'c'"),
    ):
        status, answer = client.post("line:predict", body)
        assert (status, set(answer)) == (400, {"error"}), body
        assert sentence in answer["error"]
    status, answer = client.post("nothing:predict", {"instances": [1]})
    assert (status, set(answer)) == (404, {"error"})
    assert client.session.get(f"{client.url}/line:predict", timeout=30).status_code == 405


@conforms("TensorFlow Serving", "decoupled models, where they answer in one response")
def test_a_decoupled_model_that_answers_once_is_asked_like_any(
    client: Client, mesh: ConformanceMesh
) -> None:
    assert client.post("numbers:predict", {"inputs": [1]}) == (200, {"outputs": [0.0]})
    answer = client.session.post(
        f"{mesh.url}/mesh/v1/models/numbers/infer", json={"inputs": {"count": [1]}}, timeout=30
    )
    assert (answer.status_code, answer.json()["outputs"]) == (200, {"number": [0.0]})
    status, told = client.post("numbers:predict", {"inputs": [3]})
    assert (status, "/v2/models/numbers/generate_stream" in told["error"]) == (400, True)
