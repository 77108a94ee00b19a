"""The project's own Python client, through a node that does not hold the model."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest

from meshnode import AsyncMeshClient, MeshClient
from meshnode.client.progress_bar import ProgressBar
from meshnode.errors import InferenceFailed, InvalidRequest, JobCancelled
from tests.conformance.table import conforms
from tests.e2e.conftest import DIGITS
from tests.e2e.test_client import Torn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conformance.conftest import ConformanceMesh

IMAGE = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 8, 8)

COUNTER = '''
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Counts up to its input, a response for each number; raises at 13 on the way to 20."""

    def execute(self, requests):
        for request in requests:
            limit = int(pb_utils.get_input_tensor_by_name(request, "limit").as_numpy()[0])
            sender = request.get_response_sender()
            for number in range(limit):
                if request.is_cancelled():
                    break
                if number == 13 and limit == 20:
                    error = pb_utils.TritonError("thirteen is not counted")
                    sender.send(pb_utils.InferenceResponse(error=error))
                    break
                tensor = pb_utils.Tensor("number", np.array([number], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
                time.sleep(0.02)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
'''
COUNTER_CONFIG = """
backend: "python"
max_batch_size: 0
input [ { name: "limit" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "number" data_type: TYPE_INT32 dims: [ 1 ] } ]
model_transaction_policy { decoupled: true }
"""


PREDICTOR = """
class Speller:
    def predict(self, request):
        return {"letters": list(request["word"])}

    async def async_predict(self, request):
        for letter in request["word"]:
            yield {"letter": letter}
"""


PAIR = """
import asyncio

ARRIVED = {}


class Pair:
    async def async_predict(self, request):
        me = request["me"]
        other = "b" if me == "a" else "a"
        ARRIVED.setdefault(me, asyncio.Event()).set()
        yield "begun"
        await ARRIVED.setdefault(other, asyncio.Event()).wait()
        yield f"{me} met {other}"
"""

SLOW = """
import time


class Slow:
    def predict(self, request):
        time.sleep(request["s"])
        return "done"
"""


def _predictor(mesh: ConformanceMesh, folder: Path, source: str) -> str:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "predictor.py").write_text(source, encoding="utf-8")
    mesh.deploy(folder, folder.name, on=("alpha",))
    return folder.name


@pytest.fixture(scope="module")
def pair(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose two callers wait for each other."""
    return _predictor(mesh, tmp_path_factory.mktemp("models") / "client-pair", PAIR)


@pytest.fixture(scope="module")
def slow(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that takes as long as it is told."""
    return _predictor(mesh, tmp_path_factory.mktemp("models") / "client-slow", SLOW)


@pytest.fixture(scope="module")
def speller(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of JSON documents, on one of the holders."""
    folder: Path = tmp_path_factory.mktemp("models") / "client-speller"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(PREDICTOR, encoding="utf-8")
    mesh.deploy(folder, "client-speller", on=("alpha",))
    return "client-speller"


@pytest.fixture(scope="module")
def counter(mesh: ConformanceMesh, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that answers in parts, on one of the holders."""
    folder: Path = tmp_path_factory.mktemp("models") / "client-counter"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.py").write_text(COUNTER, encoding="utf-8")
    (folder / "config.pbtxt").write_text(COUNTER_CONFIG, encoding="utf-8")
    mesh.deploy(folder, "client-counter", on=("beta",))
    return "client-counter"


@conforms("Python client", "infer with NumPy arrays")
def test_infer_with_numpy_arrays(mesh: ConformanceMesh) -> None:
    with MeshClient(mesh.url) as client:
        result = client.infer("digits", {"image": IMAGE})
    assert result["probabilities"].shape == (1, 10)
    assert result["probabilities"].dtype == np.float32
    assert result.route.node in {"alpha", "beta"}


@conforms("Python client", "predict with plain Python values")
def test_predict_with_plain_values(mesh: ConformanceMesh) -> None:
    with MeshClient(mesh.url) as client:
        exact = client.infer("digits", {"image": IMAGE})
        plain = client.predict("digits", {"image": IMAGE.tolist()})
    assert isinstance(plain["probabilities"][0][0], float)
    np.testing.assert_allclose(plain["probabilities"], exact["probabilities"], rtol=1e-6)
    assert (plain.model, plain.version, plain.gateway) == ("digits", 1, mesh.url)


@conforms("Python client", "streams of parts, each as soon as it is there")
def test_stream(mesh: ConformanceMesh, counter: str) -> None:
    came = []
    with MeshClient(mesh.url) as client:
        for part in client.stream(counter, {"limit": np.array([8], np.int32)}):
            came.append((int(part["number"][0]), time.monotonic()))
            assert part["number"].dtype == np.int32
            assert part.route.node == "beta"
    assert [number for number, _ in came] == list(range(8))
    assert came[-1][1] - came[0][1] > 0.08


@conforms("Python client", "streams with asyncio, side by side")
async def test_async_streams_run_side_by_side(mesh: ConformanceMesh, pair: str) -> None:
    """Each stream waits in the model until the other has begun: one after the other they would never end."""
    async with AsyncMeshClient(mesh.url) as client:

        async def read(name: str) -> list[object]:
            parts = client.predict_stream(pair, {"request": {"me": name}}, timeout_s=20)
            return [part["response"] async for part in parts]

        async with asyncio.timeout(20):
            found = await asyncio.gather(read("a"), read("b"))
    assert list(found) == [["begun", "a met b"], ["begun", "b met a"]]


@conforms("Python client", "models of JSON documents, whole and streamed")
def test_a_model_of_documents(mesh: ConformanceMesh, speller: str) -> None:
    word = {"request": {"word": "mesh"}}
    with MeshClient(mesh.url) as client:
        assert client.predict(speller, word)["response"] == {"letters": ["m", "e", "s", "h"]}
        parts = [part["response"] for part in client.predict_stream(speller, word)]
    assert parts == [{"letter": letter} for letter in "mesh"]


@conforms("Python client", "an error in the middle of a stream is raised after the parts before it")
def test_an_error_in_a_stream(mesh: ConformanceMesh, counter: str) -> None:
    with MeshClient(mesh.url) as client:
        parts = client.stream(counter, {"limit": [20]})
        assert [int(next(parts)["number"][0]) for _ in range(13)] == list(range(13))
        with pytest.raises(InferenceFailed, match="thirteen"):
            next(parts)


@conforms("Python client", "bad input is an InvalidRequest")
def test_bad_input(mesh: ConformanceMesh) -> None:
    with MeshClient(mesh.url) as client:
        with pytest.raises(InvalidRequest, match="image"):
            client.infer("digits", {"image": np.zeros((1, 3), np.float32)})
        with pytest.raises(InvalidRequest):
            client.predict("digits", {"picture": [1]})


@conforms("Python client", "jobs: made, waited for, their result fetched, listed")
def test_jobs(mesh: ConformanceMesh) -> None:
    seen: list[str] = []
    with MeshClient(mesh.url) as client:
        job = client.infer_later("digits", {"image": IMAGE}, idempotency_key="client-job-1")
        again = client.infer_later("digits", {"image": IMAGE}, idempotency_key="client-job-1")
        assert again.id == job.id
        ended = client.wait_job(
            job.id, timeout_s=20, progress=lambda each: seen.append(each.status)
        )
        assert (ended.status, ended.model, ended.error) == ("succeeded", "digits", None)
        assert seen[-1] == "succeeded"
        np.testing.assert_array_equal(
            client.job_result(job.id)["probabilities"],
            client.infer("digits", {"image": IMAGE})["probabilities"],
        )
        assert job.id in {each.id for each in client.jobs(status=["succeeded"])}
    with MeshClient(f"http://127.0.0.1:{mesh.holders[0].http_port}") as elsewhere:
        assert elsewhere.job(job.id).status == "succeeded"


@conforms("Python client", "jobs: watched as they change, cancelled")
async def test_a_job_is_watched_and_cancelled(mesh: ConformanceMesh, slow: str) -> None:
    async with AsyncMeshClient(mesh.url) as client:
        job = await client.predict_later("digits", {"image": IMAGE.tolist()})
        states = [each.status async for each in client.watch_job(job.id, total_s=20)]
        assert states[-1] == "succeeded"
        plain = await client.job_prediction(job.id)
        assert len(plain["probabilities"][0]) == 10
        other = await client.predict_later(slow, {"request": {"s": 60}})
        assert other.status in {"queued", "running"}
        assert (await client.cancel_job(other.id)).status == "cancelled"
        assert (await client.wait_job(other.id, timeout_s=20)).status == "cancelled"
        with pytest.raises(JobCancelled):
            await client.job_prediction(other.id)


@conforms("Python client", "several gateways: the next one where one is gone")
def test_another_gateway_answers(mesh: ConformanceMesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with MeshClient([gone, mesh.url]) as client:
        result = client.infer("digits", {"image": IMAGE})
    assert result.gateway == mesh.url
    assert result["probabilities"].shape == (1, 10)


@conforms("Python client", "several gateways: the line is torn in the middle of inferences")
def test_torn_lines_fail_no_inference(mesh: ConformanceMesh) -> None:
    with Torn(mesh.port) as torn, MeshClient([torn.url, mesh.url], timeout_s=10) as client:
        for number in range(60):
            if number % 20 == 10:
                torn.tear()
            assert client.infer("digits", {"image": IMAGE})["probabilities"].shape == (1, 10)
        assert torn.connections >= 1


@conforms("Python client", "a stream goes on where the connection was lost, each part once")
def test_a_stream_goes_on(mesh: ConformanceMesh, counter: str) -> None:
    with Torn(mesh.port) as torn, MeshClient(torn.url) as client:
        numbers = []
        for part in client.stream(counter, {"limit": np.array([30], np.int32)}):
            numbers.append(int(part["number"][0]))
            if len(numbers) in (5, 12):
                torn.tear()
        assert numbers == list(range(30))
        assert torn.connections >= 3


class _Busy(BaseHTTPRequestHandler):
    """A gateway that is too busy at first, and then answers."""

    asked_at: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked_at.append(time.monotonic())
        is_first = len(self.asked_at) == 1
        document: dict[str, object] = {"error": "too many calls", "code": "throttled"}
        if not is_first:
            document = {"model": "digits", "version": 1, "outputs": {"label": [7]}}
        body = json.dumps(document).encode()
        self.send_response(429 if is_first else 200)
        if is_first:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@conforms("Python client", "Retry-After is waited for, and then asked again")
def test_retry_after_is_honoured() -> None:
    _Busy.asked_at.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        try:
            with MeshClient(f"http://127.0.0.1:{server.server_port}") as client:
                assert client.predict("digits", {"image": [0]})["label"] == [7]
        finally:
            server.shutdown()
            serving.join()
    first, second = _Busy.asked_at
    assert 0.95 <= second - first < 5


@conforms("Python client", "MESHNODE_URL says which gateways there are")
def test_gateways_of_the_environment(
    mesh: ConformanceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_URL", mesh.url)
    with MeshClient() as client:
        assert client.infer("digits", {"image": IMAGE}).gateway == mesh.url
    with MeshClient.discover() as client:
        assert client.infer("digits", {"image": IMAGE}).gateway == mesh.url


@conforms("Python client", "progress bar of an upload and a deployment")
def test_a_progress_bar(mesh: ConformanceMesh, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        MeshClient(mesh.url, api_key=mesh.key("deploy")) as client,
        ProgressBar(sys.stdout, force=True) as bar,
    ):
        client.deploy(DIGITS, name="client-bar", on=["beta"], progress=bar)
        client.undeploy("client-bar")
    assert "client-bar" in capsys.readouterr().out


@conforms("Python client", "deployments and the mesh's events")
def test_deployments_and_events(mesh: ConformanceMesh) -> None:
    with MeshClient(mesh.url) as client:
        assert {"digits"} <= {each.name for each in client.deployments()}
        deployed = client.deployment_of("digits")
        assert (deployed.replicas, set(deployed.placed)) == (2, {"alpha", "beta"})
        with client.events(["deployment"], total_s=20) as events:
            asked = Thread(target=_deploy_later, args=(mesh,))
            asked.start()
            event = next(each for each in events if each.fields.get("name") == "client-digits")
            assert (event.kind, event.fields["change"]) == ("deployment", "written")
            asked.join()
    mesh.undeploy("client-digits")


def _deploy_later(mesh: ConformanceMesh) -> None:
    time.sleep(0.3)
    mesh.deploy(DIGITS, "client-digits", on=("alpha",))


@conforms(
    "Python client", "deployments through a gateway with an API key, uploads and progress included"
)
def test_deploy_through_a_gateway(mesh: ConformanceMesh) -> None:
    stages: list[str] = []
    with MeshClient(mesh.url, api_key=mesh.key("deploy")) as client:
        model = client.deploy(
            DIGITS,
            name="client-uploaded",
            on=["beta"],
            progress=lambda step: stages.append(step.stage),
        )
        assert model.ready_on == ("beta",)
        assert {"uploading", "ready"} <= set(stages)
        assert client.infer("client-uploaded", IMAGE)["label"].shape == (1,)
        client.undeploy("client-uploaded")


@conforms("Python client", "a stream that is closed stops the work")
def test_a_closed_stream_stops_the_work(mesh: ConformanceMesh, counter: str) -> None:
    with MeshClient(mesh.url) as client:
        with client.stream(counter, {"limit": [2**30]}, resume=False) as parts:
            next(parts)
        # The model has one instance: a request waits until the one before it has ended.
        (first, *_) = client.stream(counter, {"limit": [1]}, timeout_s=20)
        assert int(first["number"][0]) == 0


@conforms("Python client", "a coroutine that is cancelled stops the work")
async def test_a_cancelled_stream_stops_the_work(mesh: ConformanceMesh, counter: str) -> None:
    async with AsyncMeshClient(mesh.url) as client:

        async def count() -> None:
            async with client.stream(counter, {"limit": [2**30]}, resume=False) as parts:
                async for _ in parts:
                    pass

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await count()
        parts = [part async for part in client.stream(counter, {"limit": [1]}, timeout_s=20)]
        assert len(parts) == 1
