"""Triton's own gRPC client, synchronous, asyncio and streaming, through a node that does not hold the model."""

from __future__ import annotations

import queue
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, Self

import grpc
import ml_dtypes
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import (
    InferenceServerClient,
    InferInput,
    InferRequestedOutput,
    KeepAliveOptions,
)
from tritonclient.grpc.aio import InferenceServerClient as AsyncClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from tests.conformance.models import brain_floats
from tests.conformance.table import conforms
from tests.e2e.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)
TYPES = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32",
         "FP64", "BYTES")  # fmt: skip

ECHO = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("out_" + each.name(), each.as_numpy()) for each in request.inputs()]
            )
            for request in requests
        ]
"""
ECHO_CONFIG = 'backend: "python"\nmax_batch_size: 0\n' + "".join(
    f'input {{ name: "{kind}" data_type: TYPE_{"STRING" if kind == "BYTES" else kind} dims: [ -1 ] }}\n'
    f'output {{ name: "out_{kind}" data_type: TYPE_{"STRING" if kind == "BYTES" else kind} dims: [ -1 ] }}\n'
    for kind in TYPES
)
COUNTER = """
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            limit = int(pb_utils.get_input_tensor_by_name(request, "limit").as_numpy()[0])
            sender = request.get_response_sender()
            for number in range(limit):
                if sender.is_cancelled():
                    break
                if number == 13:
                    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("not thirteen")))
                    break
                sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("number", np.array([number], np.int32))]))
                time.sleep(0.005)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
COUNTER_CONFIG = """
backend: "python"
max_batch_size: 0
input { name: "limit" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "number" data_type: TYPE_INT32 dims: [ 1 ] }
model_transaction_policy { decoupled: true }
"""
SLOW = """
import time

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(2.0)
        return [pb_utils.InferenceResponse([pb_utils.get_input_tensor_by_name(each, "limit")]) for each in requests]
"""
SLOW_CONFIG = """
backend: "python"
max_batch_size: 0
input { name: "limit" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "limit" data_type: TYPE_INT32 dims: [ 1 ] }
"""
ADDER = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.sums = {}

    def execute(self, requests):
        answers = []
        for request in requests:
            key = request.correlation_id()
            value = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                self.sums[key] = np.zeros_like(value)
            self.sums[key] = self.sums[key] + value
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("sum", self.sums[key])]))
        return answers
"""
ADDER_CONFIG = """
backend: "python"
max_batch_size: 4
input { name: "x" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "sum" data_type: TYPE_INT32 dims: [ 1 ] }
sequence_batching { max_sequence_idle_microseconds: 60000000 }
instance_group { kind: KIND_CPU count: 1 }
"""


def python_model(folder: Path, code: str, config: str) -> Path:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(code)
    (folder / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture(scope="module")
def models(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Python models that echo all datatypes, count, add up sequences, and take their time; each on one of the holders."""
    folder = tmp_path_factory.mktemp("models")
    for name, code, config in (
        ("grpc-echo", ECHO, ECHO_CONFIG),
        ("grpc-counter", COUNTER, COUNTER_CONFIG),
        ("grpc-adder", ADDER, ADDER_CONFIG),
        ("grpc-slow", SLOW, SLOW_CONFIG),
    ):
        mesh.deploy(python_model(folder / name, code, config), name, on=("alpha",))


@pytest.fixture(scope="module")
def address(mesh: ConformanceMesh) -> str:
    return str(mesh.front.status["grpc"])


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(address) as found:
        yield found


@pytest.fixture
async def async_client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as found:
        yield found


def tensor(name: str, values: np.ndarray[Any, Any]) -> InferInput:
    item = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    item.set_data_from_numpy(values)
    return item


def known_key(mesh: ConformanceMesh, scope: Literal["infer", "deploy", "admin"]) -> str:
    """Return a key that the front has heard of."""
    key = mesh.key(scope)
    headers = {"Authorization": f"Bearer {key}"}
    wait_until(
        lambda: mesh.front.request("GET", "/healthz", headers=headers)[0] == 200,
        10,
        "the key is known",
    )
    return key


def image() -> list[InferInput]:
    return [tensor("image", IMAGE)]


def limit(number: int) -> list[InferInput]:
    return [tensor("limit", np.array([number], np.int32))]


@conforms("OIP gRPC", "health and readiness")
def test_health_and_readiness(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("unknown")


@conforms("OIP gRPC", "grpc.health.v1")
def test_balancers_ask_the_standard_health_service(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == 1
        watching = stub.Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        watching.cancel()


@conforms("OIP gRPC", "server and model metadata, model configuration")
def test_metadata_and_configuration(client: InferenceServerClient, models: None) -> None:
    server = client.get_server_metadata()
    assert server.name == "meshnode"
    assert "statistics" in server.extensions
    metadata = client.get_model_metadata("digits")
    assert metadata.versions == ["1"]
    assert (metadata.inputs[0].name, metadata.inputs[0].datatype) == ("image", "FP32")
    config = client.get_model_config("grpc-counter").config
    assert config.model_transaction_policy.decoupled
    assert config.backend == "python"


@conforms("OIP gRPC", "inference, synchronous")
def test_inference(client: InferenceServerClient) -> None:
    answer = client.infer("digits", image(), request_id="r1")
    assert answer.get_response().id == "r1"
    assert answer.as_numpy(answer.get_response().outputs[0].name).shape[0] == 1


@conforms("OIP gRPC", "inference, with a callback and cancellation")
def test_inference_with_a_callback(client: InferenceServerClient) -> None:
    found: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.async_infer("digits", image(), lambda result, error: found.put((result, error)))
    result, error = found.get(timeout=10)
    assert error is None
    assert result.get_response().model_name == "digits"


@conforms("OIP gRPC", "inference, asyncio")
async def test_inference_with_asyncio(async_client: AsyncClient) -> None:
    answer = await async_client.infer("digits", image())
    assert answer.get_response().model_name == "digits"


@conforms("OIP gRPC", "all datatypes of NumPy, BOOL to FP64, FP16 and BYTES")
def test_all_datatypes_come_back_as_they_went(client: InferenceServerClient, models: None) -> None:
    values = {
        "BOOL": np.array([True, False]),
        "BYTES": np.array([b"ab", "é".encode(), b""], np.object_),
        **{kind: np.array([-2, 3], kind.lower()) for kind in TYPES if kind.startswith("INT")},
        **{kind: np.array([2, 3], kind.lower()) for kind in TYPES if kind.startswith("UINT")},
        "FP16": np.array([1.5], np.float16),
        "FP32": np.array([1.5, np.nan], np.float32),
        "FP64": np.array([1e300], np.float64),
    }
    answer = client.infer("grpc-echo", [tensor(name, each) for name, each in values.items()])
    for name, each in values.items():
        np.testing.assert_array_equal(answer.as_numpy(f"out_{name}"), each)


@conforms("OIP gRPC", "BF16, with ONNX models")
def test_brain_floats_come_back_as_they_went(
    mesh: ConformanceMesh, client: InferenceServerClient, tmp_path: Path
) -> None:
    mesh.deploy(brain_floats(tmp_path, "grpc_bf16"), "grpc_bf16", on=("alpha",))
    values = np.array([[1.5, -2.0], [0.0, 3.140625]], ml_dtypes.bfloat16)
    made = InferInput("x", [2, 2], "BF16")
    made.set_data_from_numpy(values)
    answer = client.infer("grpc_bf16", [made])
    assert answer.get_output("y").datatype == "BF16"
    np.testing.assert_array_equal(answer.as_numpy("y"), values)
    mesh.undeploy("grpc_bf16")


@conforms("OIP gRPC", "classification")
def test_the_highest_values_of_an_output(client: InferenceServerClient) -> None:
    answer = client.infer("digits", image(), outputs=[InferRequestedOutput("probabilities", 3)])
    found = answer.as_numpy("probabilities").ravel()
    assert len(found) == 3
    assert found[0].decode().count(":") == 1


@conforms("OIP gRPC", "compression")
def test_compressed_messages(client: InferenceServerClient) -> None:
    for algorithm in ("gzip", "deflate"):
        answer = client.infer("digits", image(), compression_algorithm=algorithm)
        assert answer.get_response().model_name == "digits"


@conforms("OIP gRPC", "keepalive")
def test_a_client_that_pings(address: str) -> None:
    options = KeepAliveOptions(keepalive_time_ms=10_000, keepalive_permit_without_calls=True)
    with InferenceServerClient(address, keepalive_options=options) as client:
        assert client.is_server_live()


@conforms("OIP gRPC", "deadlines")
def test_a_deadline_is_kept(client: InferenceServerClient, models: None) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("grpc-slow", limit(12), client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"


@conforms("OIP gRPC", "errors as gRPC statuses")
def test_errors(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("unknown", image())
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", [tensor("picture", IMAGE)])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


@conforms("OIP gRPC", "API keys in the metadata")
def test_keys(client: InferenceServerClient, mesh: ConformanceMesh) -> None:
    headers = {"authorization": f"Bearer {known_key(mesh, 'infer')}"}
    assert client.infer("digits", image(), headers=headers).get_response().model_name == "digits"
    wrong = {"authorization": "Bearer mesh_" + "a" * 16 + "_" + "b" * 52}
    with pytest.raises(InferenceServerException) as caught:
        client.infer("digits", image(), headers=wrong)
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


# Streams


class Stream:
    """A stream of the synchronous client, and what came on it."""

    def __init__(self, client: InferenceServerClient) -> None:
        self.client = client
        self._found: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __enter__(self) -> Self:
        self.client.start_stream(lambda result, error: self._found.put((result, error)))
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream()

    def next(self) -> tuple[Any, Any]:
        return self._found.get(timeout=10)


@conforms("OIP gRPC", "streams: decoupled models")
@conforms("OIP gRPC", "streams: empty final response")
def test_a_decoupled_model(client: InferenceServerClient, models: None) -> None:
    with Stream(client) as stream:
        client.async_stream_infer(
            "grpc-counter", limit(5), request_id="c", enable_empty_final_response=True
        )
        numbers = []
        while True:
            result, error = stream.next()
            assert error is None
            response = result.get_response()
            assert response.id == "c"
            if response.parameters["triton_final_response"].bool_param:
                break
            numbers.append(int(result.as_numpy("number")[0]))
        assert numbers == [0, 1, 2, 3, 4]


@conforms("OIP gRPC", "streams: errors in their place")
def test_an_error_in_a_stream(client: InferenceServerClient, models: None) -> None:
    with Stream(client) as stream:
        client.async_stream_infer("grpc-counter", limit(20))
        found = [stream.next() for _ in range(14)]
        assert [error for _, error in found[:13]] == [None] * 13
        assert "not thirteen" in str(found[13][1])
        client.async_stream_infer("unknown", image())
        assert "unknown" in str(stream.next()[1])
        client.async_stream_infer("digits", image(), request_id="after")
        result, error = stream.next()
        assert error is None
        assert result.get_response().id == "after"


@conforms("OIP gRPC", "sequences, in streams and alone")
def test_sequences(client: InferenceServerClient, models: None) -> None:
    values = [1, 2, 3]
    with Stream(client) as stream:
        for index, value in enumerate(values):
            client.async_stream_infer(
                "grpc-adder",
                [tensor("x", np.array([[value]], np.int32))],
                sequence_id=1001,
                sequence_start=index == 0,
                sequence_end=index == 2,
            )
        sums = []
        for _ in values:
            result, error = stream.next()
            assert error is None
            sums.append(int(result.as_numpy("sum")[0, 0]))
    assert sums == [1, 3, 6]
    sums = [
        int(
            client.infer(
                "grpc-adder",
                [tensor("x", np.array([[value]], np.int32))],
                sequence_id="a-text",
                sequence_start=index == 0,
                sequence_end=index == 2,
            ).as_numpy("sum")[0, 0]
        )
        for index, value in enumerate(values)
    ]
    assert sums == [1, 3, 6]


@conforms("OIP gRPC", "streams: asyncio")
async def test_a_stream_with_asyncio(async_client: AsyncClient, models: None) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in (3, 4):
            yield {"model_name": "grpc-counter", "inputs": limit(number), "request_id": str(number)}

    found: dict[str, list[int]] = {}
    async for result, error in async_client.stream_infer(requests()):
        assert error is None
        of_request = found.setdefault(result.get_response().id, [])
        of_request.append(int(result.as_numpy("number")[0]))
    assert found == {"3": [0, 1, 2], "4": [0, 1, 2, 3]}


@conforms("OIP gRPC", "streams: cancelled by the caller")
async def test_a_stream_is_cancelled(
    async_client: AsyncClient, client: InferenceServerClient, models: None
) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "grpc-counter", "inputs": limit(12), "request_id": "c"}

    stream = async_client.stream_infer(requests())
    _, error = await anext(aiter(stream))
    assert error is None
    stream.cancel()
    assert client.is_server_live()


# Statistics and repository


@conforms("OIP gRPC", "statistics of the whole mesh")
def test_statistics(client: InferenceServerClient) -> None:
    def count() -> int:
        (found,) = client.get_inference_statistics("digits").model_stats
        return int(found.inference_count)

    before = count()
    client.infer("digits", image())
    deadline = time.monotonic() + 10
    while count() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.get_inference_statistics().model_stats


@conforms("OIP gRPC", "repository index, load and unload")
def test_the_repository(client: InferenceServerClient, mesh: ConformanceMesh) -> None:
    models = {each.name: each.state for each in client.get_model_repository_index().models}
    assert models["digits"] == "READY"
    with pytest.raises(InferenceServerException) as caught:
        client.unload_model("digits")
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    headers = {"authorization": f"Bearer {known_key(mesh, 'deploy')}"}
    client.load_model("digits", headers=headers)
    assert client.is_model_ready("digits")


# Shared memory


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory objects are files on Linux only")
@conforms("OIP gRPC", "system shared memory")
def test_system_shared_memory(client: InferenceServerClient) -> None:
    name = "probabilities"
    plain = client.infer("digits", image()).as_numpy(name)
    key = f"meshnode-conformance-{time.monotonic_ns()}"
    handle = shared_memory.create_shared_memory_region("mine", key, IMAGE.nbytes + plain.nbytes)
    try:
        shared_memory.set_shared_memory_region(handle, [IMAGE])
        client.register_system_shared_memory("in", key, IMAGE.nbytes)
        client.register_system_shared_memory("out", key, plain.nbytes, offset=IMAGE.nbytes)
        assert set(client.get_system_shared_memory_status().regions) == {"in", "out"}
        item = InferInput("image", list(IMAGE.shape), "FP32")
        item.set_shared_memory("in", IMAGE.nbytes)
        wanted = InferRequestedOutput(name)
        wanted.set_shared_memory("out", plain.nbytes)
        client.infer("digits", [item], outputs=[wanted])
        found = shared_memory.get_contents_as_numpy(
            handle, np.float32, list(plain.shape), offset=IMAGE.nbytes
        )
        np.testing.assert_array_equal(found, plain)
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions
    finally:
        shared_memory.destroy_shared_memory_region(handle)


@conforms("OIP gRPC", "CUDA shared memory", supported=False)
def test_cuda_shared_memory_is_refused(client: InferenceServerClient) -> None:
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException) as caught:
        client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 16)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@conforms("OIP gRPC", "logging and trace settings, read")
def test_settings_are_shown(client: InferenceServerClient) -> None:
    assert client.get_log_settings().settings["log_error"].bool_param
    assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]


@conforms("OIP gRPC", "logging and trace settings, changed", supported=False)
def test_settings_are_the_owners(client: InferenceServerClient, mesh: ConformanceMesh) -> None:
    headers = {"authorization": f"Bearer {known_key(mesh, 'admin')}"}
    with pytest.raises(InferenceServerException) as caught:
        client.update_log_settings({"log_info": True}, headers=headers)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
