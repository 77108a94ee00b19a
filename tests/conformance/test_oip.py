"""Triton's own HTTP clients, synchronous and asyncio, through a node that does not hold the model."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import time
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

from tests.conformance.models import (
    ADD_CONFIG,
    add_folder,
    brain_floats,
    model_file,
    stream_folder,
    sum_folder,
    told_sum_folder,
)
from tests.conformance.table import conforms
from tests.e2e.conftest import DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)


@pytest.fixture(scope="module")
def client(mesh: ConformanceMesh) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(mesh.address) as made:
        yield made


@pytest.fixture(scope="module")
def operator(mesh: ConformanceMesh) -> dict[str, str]:
    """Headers of a caller who may deploy."""
    return {"Authorization": f"Bearer {mesh.key('deploy')}"}


@pytest.fixture(scope="module")
def typed(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python model that answers each of its inputs, one for each datatype, as it is."""
    folder = model_file(tmp_path_factory.mktemp("typed"), "oip_types")
    mesh.deploy(folder, "oip_types", on=("alpha",))
    return "oip_types"


@pytest.fixture(scope="module")
def streaming(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A decoupled model of a text and a count: it answers the text so often, in as many parts."""
    mesh.deploy(
        stream_folder(tmp_path_factory.mktemp("stream"), "oip_stream"), "oip_stream", on=("beta",)
    )
    return "oip_stream"


def image(*, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("image", list(IMAGE.shape), "FP32")
    made.set_data_from_numpy(IMAGE, binary_data=binary)
    return made


@conforms("OIP REST", "liveness, readiness, server and model metadata, model configuration")
def test_a_client_finds_out_what_there_is(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert not client.is_model_ready("nothing")
    server = client.get_server_metadata()
    assert {"binary_tensor_data", "statistics", "model_repository"} <= set(server["extensions"])
    assert client.get_model_metadata("digits")["inputs"][0]["name"] == "image"
    config = client.get_model_config("digits")
    assert (config["name"], config["input"][0]["data_type"]) == ("digits", "TYPE_FP32")


@conforms("OIP REST", "inference with JSON and with binary tensors")
@pytest.mark.parametrize("binary", [True, False])
def test_infer_in_json_and_binary(client: triton.InferenceServerClient, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary)]
    result = client.infer("digits", [image(binary=binary)], outputs=wanted, request_id="q7")
    assert result.as_numpy("probabilities").shape == (1, 10)
    assert result.get_response()["id"] == "q7"


@conforms("OIP REST", "compressed requests and answers (gzip, deflate)")
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, coding: str) -> None:
    result = client.infer(
        "digits",
        [image()],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert result.as_numpy("probabilities").sum() == pytest.approx(1, abs=1e-5)


VALUES: dict[str, np.ndarray[Any, Any]] = {
    "BOOL": np.array([[True, False]]),
    **{
        name: np.array([[1, 2]], dtype)
        for name, dtype in {
            "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
            "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
            "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
        }.items()
    },
    "BYTES": np.array([[b"one", b"\xc3\xa9"]], dtype=object),
}  # fmt: skip


@conforms("OIP REST", "all datatypes of NumPy, BOOL to FP64, FP16 and BYTES, binary and in JSON")
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_all_datatypes_come_back_as_they_were(
    client: triton.InferenceServerClient, typed: str, binary_in: bool, binary_out: bool
) -> None:
    inputs = []
    for name, value in VALUES.items():
        # JSON of Triton's client has no FP16: it refuses to write it.
        is_binary = binary_in or name == "FP16"
        made = triton.InferInput(f"in_{name}", [1, 2], name)
        made.set_data_from_numpy(value, binary_data=is_binary)
        inputs.append(made)
    wanted = [
        triton.InferRequestedOutput(f"out_{name}", binary_data=binary_out or name == "FP16")
        for name in VALUES
    ]
    result = client.infer(typed, inputs, outputs=wanted)
    for name, value in VALUES.items():
        found = result.as_numpy(f"out_{name}").ravel().tolist()
        texts = [each.encode() if isinstance(each, str) else each for each in found]
        assert texts == value.ravel().tolist(), name


@conforms("OIP REST", "BF16, with ONNX models")
def test_brain_floats_come_back_as_they_were(
    mesh: ConformanceMesh, client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    mesh.deploy(brain_floats(tmp_path, "oip_bf16"), "oip_bf16", on=("alpha",))
    values = np.array([[1.5, -2.0], [0.0, 3.140625]], ml_dtypes.bfloat16)
    made = triton.InferInput("x", [2, 2], "BF16")
    made.set_data_from_numpy(values)
    result = client.infer("oip_bf16", [made], outputs=[triton.InferRequestedOutput("y")])
    assert result.get_output("y")["datatype"] == "BF16"
    np.testing.assert_array_equal(result.as_numpy("y"), values)
    mesh.undeploy("oip_bf16")


@conforms("OIP REST", "sequences: a sequence's requests, in order, answered by one node")
@pytest.mark.parametrize("written", [sum_folder, told_sum_folder])
def test_a_sequence_is_answered_by_one_node(
    mesh: ConformanceMesh,
    client: triton.InferenceServerClient,
    tmp_path: Path,
    written: Callable[[Path, str], Path],
) -> None:
    mesh.deploy(written(tmp_path, "oip_sums"), "oip_sums")
    found: dict[int, list[int]] = {7: [], 8: []}
    for number in (1, 2, 3):
        for sequence, sums in found.items():
            made = triton.InferInput("x", [1, 1], "INT32")
            made.set_data_from_numpy(np.array([[number * sequence]], np.int32))
            result = client.infer(
                "oip_sums", [made], sequence_id=sequence, sequence_start=number == 1, sequence_end=number == 3
            )  # fmt: skip
            sums.append(int(result.as_numpy("sum").ravel()[0]))
    assert found == {7: [7, 21, 42], 8: [8, 24, 48]}
    mesh.undeploy("oip_sums")


@conforms("OIP REST", "timeout: the request's, in microseconds, is kept")
def test_a_requests_timeout_is_kept(
    mesh: ConformanceMesh, client: triton.InferenceServerClient, tmp_path: Path
) -> None:
    mesh.deploy(sum_folder(tmp_path, "oip_late", pause_s=2), "oip_late", on=("alpha",))
    made = triton.InferInput("x", [1, 1], "INT32")
    made.set_data_from_numpy(np.array([[1]], np.int32))
    began = time.monotonic()
    with pytest.raises(
        InferenceServerException, match=r"no answer within 0\.2|running at the deadline"
    ):
        client.infer("oip_late", [made], timeout=200_000, sequence_id=1, sequence_start=True)
    assert time.monotonic() - began < 1.5
    mesh.undeploy("oip_late")


@conforms("OIP REST", "classification")
def test_classification_names_the_highest_values(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=3)]
    found = client.infer("digits", [image()], outputs=wanted).as_numpy("probabilities").ravel()
    values = [float(each.decode().split(":")[0]) for each in found]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)


@conforms("OIP REST", "statistics of a model and of all, as sums over the nodes that serve it")
def test_statistics_are_those_of_the_mesh(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("digits")["model_stats"][0]
    for _ in range(5):
        client.infer("digits", [image()])
    (after,) = client.get_inference_statistics("digits", "1")["model_stats"]
    assert (after["name"], after["version"]) == ("digits", "1")
    assert after["inference_count"] == before["inference_count"] + 5
    assert (
        after["inference_stats"]["success"]["count"]
        >= before["inference_stats"]["success"]["count"] + 5
    )
    assert set(after["inference_stats"]) == {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
    }  # fmt: skip
    assert after["last_inference"] > 1_600_000_000_000
    assert "digits" in {each["name"] for each in client.get_inference_statistics()["model_stats"]}


@conforms("OIP REST", "model repository: index, load and unload")
def test_models_are_unloaded_and_loaded(
    mesh: ConformanceMesh,
    client: triton.InferenceServerClient,
    operator: dict[str, str],
    tmp_path: Path,
) -> None:
    shutil.copy(DIGITS, tmp_path / "oip_repo.onnx")
    mesh.deploy(tmp_path / "oip_repo.onnx", "oip_repo", on=("alpha",))
    assert ("oip_repo", "READY") in states(client)
    client.unload_model("oip_repo", headers=operator)
    assert not client.is_model_ready("oip_repo")
    assert ("oip_repo", "UNAVAILABLE") in states(client)
    client.load_model("oip_repo", headers=operator)
    assert client.is_model_ready("oip_repo")
    assert client.infer("oip_repo", [image()]).as_numpy("probabilities").shape == (1, 10)
    with pytest.raises(InferenceServerException, match=r"deploy|key"):
        client.unload_model("oip_repo")  # without the scope
    with pytest.raises(InferenceServerException, match="nothing was deployed or published"):
        client.load_model("never_seen", headers=operator)


@conforms("OIP REST", "loading with another configuration, and from files in the request")
def test_models_are_loaded_from_the_request(
    client: triton.InferenceServerClient, operator: dict[str, str], tmp_path: Path
) -> None:
    content = (add_folder(tmp_path, "oip_add") / "1" / "model.onnx").read_bytes()
    client.load_model(
        "oip_add",
        headers=operator,
        config=json.dumps(ADD_CONFIG),
        files={"file:1/model.onnx": content},
    )
    assert client.get_model_config("oip_add")["max_batch_size"] == 8
    client.load_model(
        "oip_add", headers=operator, config=json.dumps({**ADD_CONFIG, "max_batch_size": 4})
    )
    assert client.get_model_config("oip_add")["max_batch_size"] == 4
    with pytest.raises(InferenceServerException, match="no model configuration"):
        client.load_model("oip_add", headers=operator, config='{"max_batch": 1}')


def states(client: triton.InferenceServerClient) -> set[tuple[str, str]]:
    return {(each["name"], each["state"]) for each in client.get_model_repository_index()}


@conforms("OIP REST", "generate")
def test_generate_takes_and_gives_plain_json(mesh: ConformanceMesh, streaming: str) -> None:
    body = json.dumps({"text": "so", "count": 1, "id": "g1"}).encode()
    status, _, answer = mesh.front.request("POST", f"/v2/models/{streaming}/generate", body)
    told = answer
    assert (status, told["word"], told["id"], told["model_name"]) == (200, "so 0", "g1", streaming)


@conforms("OIP REST", "generate_stream: an event per part of a decoupled model's answer")
def test_generate_stream_sends_an_event_per_part(mesh: ConformanceMesh, streaming: str) -> None:
    body = json.dumps({"text": "so", "parameters": {"count": 3}}).encode()
    status, headers, answer = mesh.front.request(
        "POST", f"/v2/models/{streaming}/generate_stream", body
    )
    events = [
        json.loads(each.removeprefix("data: ")) for each in answer.decode().split("\n\n") if each
    ]
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert [each["word"] for each in events] == ["so 0", "so 1", "so 2"]


@conforms("OIP REST", 'errors as `{"error": ...}`')
def test_what_is_wrong_is_told_in_the_protocols_words(
    mesh: ConformanceMesh, client: triton.InferenceServerClient
) -> None:
    with pytest.raises(
        InferenceServerException, match="no node of this mesh has a model"
    ) as caught:
        client.infer("nothing", [image()])
    assert caught.value.status() == "404"
    for method, path, body, status in (
        ("POST", "/v2/models/digits/infer", b"{", 400),
        ("GET", "/v2/models/digits/infer", b"", 405),
        ("GET", "/v2/nothing", b"", 404),
        ("GET", "/v2/models/nothing/stats", b"", 404),
    ):
        answer = mesh.front.request(method, path, body)
        assert answer[0] == status
        assert set(answer[2]) == {"error"}


@conforms("OIP REST", "trace and logging settings, read")
def test_settings_can_be_read(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_error"] is True


@conforms("OIP REST", "trace and logging settings, changed", supported=False)
def test_settings_cannot_be_changed(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="cannot be changed") as caught:
        client.update_log_settings({"log_verbose_level": 1})
    assert caught.value.status() == "501"


@conforms("OIP REST", "CUDA shared memory", supported=False)
def test_cuda_shared_memory_is_refused(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="shared memory") as caught:
        client.register_cuda_shared_memory("r", base64.b64encode(b"x" * 64), 0, 64)
    assert caught.value.status() == "501"


@conforms("OIP REST", "`tritonclient.http.aio`")
async def test_the_asyncio_client(mesh: ConformanceMesh) -> None:
    async with triton_aio.InferenceServerClient(mesh.address) as client:
        assert await client.is_model_ready("digits")
        results = await asyncio.gather(*(client.infer("digits", [image()]) for _ in range(8)))
        assert {each.as_numpy("probabilities").shape for each in results} == {(1, 10)}
        stats = await client.get_inference_statistics("digits")
        assert stats["model_stats"][0]["inference_count"] >= 8


@conforms(
    "OIP REST", "system shared memory, for programs on the gateway's machine (`--shared-memory`)"
)
def test_tensors_are_handed_over_in_shared_memory(client: triton.InferenceServerClient) -> None:
    size_in, size_out = IMAGE.nbytes, 10 * 4
    shared = shared_memory.create_shared_memory_region(
        "oip_in", "/meshnode_oip", size_in + size_out
    )
    try:
        shared_memory.set_shared_memory_region(shared, [IMAGE])
        client.register_system_shared_memory("oip_region", "/meshnode_oip", size_in + size_out)
        assert client.get_system_shared_memory_status()[0]["key"] == "/meshnode_oip"
        sent = triton.InferInput("image", list(IMAGE.shape), "FP32")
        sent.set_shared_memory("oip_region", size_in)
        wanted = triton.InferRequestedOutput("probabilities")
        wanted.set_shared_memory("oip_region", size_out, offset=size_in)
        result = client.infer("digits", [sent], outputs=[wanted])
        told = result.get_output("probabilities")["parameters"]
        assert told["shared_memory_region"] == "oip_region"
        found = shared_memory.get_contents_as_numpy(shared, np.float32, [1, 10], offset=size_in)
        plain = client.infer("digits", [image()]).as_numpy("probabilities")
        np.testing.assert_allclose(found, plain, rtol=1e-5)
        client.unregister_system_shared_memory("oip_region")
        with pytest.raises(InferenceServerException, match="no shared memory region"):
            client.infer("digits", [sent], outputs=[wanted])
    finally:
        shared_memory.destroy_shared_memory_region(shared)
