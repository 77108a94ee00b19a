"""Parts of `bench.models` that run models in this process, or in worker processes of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import psutil
from msgspec.structs import replace

from bench import model_files
from bench.models import Figure
from bench.nodes import SETTLE_S, end_on_sigterm, is_ready, node
from meshnode.errors import NotServing
from meshnode.models.execution import DynamicBatching, Execution, Spelling
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.runtimes.processes import load_worker
from meshnode.models.serving.server import ModelServer
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import DataType, InferRequest, Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "digits.onnx"
CONCURRENT = 64
_RELOADS = 50
_HOP_SHAPE = (1, 3, 224, 224)  # 602,112 bytes
_MODEL_PY = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(each, "x").as_numpy()[:, 0, 0, :4].copy())])
            for each in requests
        ]
"""


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _request(name: str, array: Any, model: str = "m") -> InferRequest:
    tensor = Tensor(name, DataType.FP32, array.shape, memoryview(array).cast("B"))
    return InferRequest(model, (tensor,), timeout_s=120.0)


def _manifest(path: Path, model: str = "m", execution: Execution | None = None) -> Manifest:
    """Describe a bare file."""
    (found,) = scan(path, model)
    manifest = describe(found, found.versions[0], OnnxRuntime())
    return manifest if execution is None else replace(manifest, execution=execution)


def _rate(work: Callable[[], Any], seconds: float) -> float:
    """Return how often a second `work` can be done."""
    started, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        count += 1
    return count / elapsed


# A CNN


def cnn(seconds: float, rounds: int) -> list[Figure]:
    """A CNN of the size of ResNet-18: through the model server and over HTTP, next to a raw loop."""
    end_on_sigterm()
    with _folder() as folder:
        (folder / "models" / "cnn" / "1").mkdir(parents=True)
        file = folder / "models" / "cnn" / "1" / "model.onnx"
        model_files.resnet18(file)
        options = onnxruntime.SessionOptions()
        session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
        picture = np.random.default_rng(1).random(_HOP_SHAPE, np.float32)
        with (
            node(folder, "alpha", "--new", "--models", str(folder / "models"), quiet=True) as alpha,
            _member(folder, alpha) as beta,
            asyncio.Runner() as runner,
        ):
            _wait(lambda: is_ready(alpha.control) and is_ready(beta.control))
            time.sleep(SETTLE_S)
            server = ModelServer({"onnx": OnnxRuntime()})
            runner.run(server.load(_manifest(file), file.parent))
            request = _request("x", picture)
            ways: dict[str, Callable[[], Any]] = {
                "raw ONNX Runtime loop": lambda: session.run(None, {"x": picture}),
                "model server": lambda: runner.run(server.infer(request)),
                "HTTP, local": _caller(alpha.port, picture),
                "HTTP, one hop": _caller(beta.port, picture),
            }
            rates = _interleaved(ways, seconds, rounds)
            runner.run(server.close())
    raw = rates["raw ONNX Runtime loop"]
    return [
        Figure("raw ONNX Runtime loop, runs/s", raw),
        Figure("model server / raw loop", rates["model server"] / raw, least=0.95),
        Figure("HTTP on the node itself / raw loop", rates["HTTP, local"] / raw, least=0.95),
        Figure("HTTP one hop away / raw loop", rates["HTTP, one hop"] / raw, least=0.90),
    ]


@contextmanager
def _member(folder: Path, founder: Any) -> Iterator[Any]:
    invite = str(founder.control.post("/mesh/v1/invites", {"ttl_s": 600})["invite"])
    with node(folder, "beta", invite, quiet=True) as member:
        yield member


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the benchmark's nodes did not become ready")
        time.sleep(0.1)


def _caller(port: int, picture: Any) -> Callable[[], None]:
    """Return what asks a node over one connection, with binary tensors both ways."""
    head = json.dumps({
        "inputs": [{
            "name": "x", "shape": list(picture.shape), "datatype": "FP32",
            "parameters": {"binary_data_size": picture.nbytes},
        }],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }).encode()  # fmt: skip
    body = head + picture.tobytes()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call() -> None:
        connection.request("POST", "/v2/models/cnn/infer", body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content.decode())

    return call


def _interleaved(
    ways: dict[str, Callable[[], Any]], seconds: float, rounds: int
) -> dict[str, float]:
    """Return the median rate of each way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(_rate(work, seconds))
    return {name: statistics.median(rates) for name, rates in found.items()}


# A small model


def overhead(seconds: float, rounds: int) -> list[Figure]:
    """Digits: what the model server adds to one call of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(DIGITS), options, ["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    image = np.random.default_rng(1).random((1, 8, 8), np.float32)
    with asyncio.Runner() as runner:
        server = ModelServer({"onnx": OnnxRuntime()})
        runner.run(server.load(_manifest(DIGITS), DIGITS.parent))
        request = _request(given, image)

        async def inline(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                if server.try_infer_inline(request) is None:
                    raise RuntimeError("a short model does not run inline")
            return (time.perf_counter() - started) / count

        async def awaited(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                await server.infer(request)
            return (time.perf_counter() - started) / count

        def raw(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                session.run(None, {given: image})
            return (time.perf_counter() - started) / count

        count = max(1000, int(seconds * 20_000))
        raws, inlines, awaiteds = [], [], []
        for _ in range(rounds):
            raws.append(raw(count))
            inlines.append(runner.run(inline(count)))
            awaiteds.append(runner.run(awaited(count)))
        runner.run(server.close())
    base = statistics.median(raws)
    return [
        Figure("raw call of digits, µs", base * 1e6),
        Figure("the server adds, inline, µs", (statistics.median(inlines) - base) * 1e6),
        Figure("the server adds, awaited, µs", (statistics.median(awaiteds) - base) * 1e6),
    ]


# Batching


def batching(seconds: float, rounds: int) -> list[Figure]:
    """A batch-friendly model: 64 at once with and without batching, and one alone with and without."""
    with _folder() as folder, asyncio.Runner() as runner:
        file = folder / "model.onnx"
        model_files.dense(file)
        kinds = {
            "unbatched": Execution(adaptive=False),
            "adaptive": Execution(),
            "dynamic": Execution(batching=DynamicBatching()),
        }
        server = ModelServer({"onnx": OnnxRuntime()}, config=ServerConfig(max_waiting=4096))
        for name, execution in kinds.items():
            manifest = _manifest(file, name, execution)
            if execution.batching is not None:
                manifest = replace(manifest, max_batch_size=CONCURRENT)
            status = runner.run(server.load(manifest, folder))
            if status.reason:
                raise RuntimeError(status.reason)
        row = np.random.default_rng(1).random((1, 1024), np.float32)

        async def crowd(model: str) -> float:
            request = _request("x", row, model)
            ends = time.perf_counter() + seconds
            counts = [0] * CONCURRENT

            async def caller(number: int) -> None:
                while time.perf_counter() < ends:
                    await server.infer(request)
                    counts[number] += 1

            started = time.perf_counter()
            await asyncio.gather(*map(caller, range(CONCURRENT)))
            return sum(counts) / (time.perf_counter() - started)

        rates: dict[str, list[float]] = {name: [] for name in kinds}
        for name in kinds:
            runner.run(crowd(name))  # adaptive batching learns
        for _ in range(rounds):
            for name in kinds:
                rates[name].append(runner.run(crowd(name)))
        added, spread = runner.run(_added_latency(server, row, seconds * rounds))
        runner.run(server.close())
    plain = statistics.median(rates["unbatched"])
    return [
        Figure("unbatched, 64 at once, requests/s", plain),
        Figure("adaptive / unbatched", statistics.median(rates["adaptive"]) / plain, least=3.0),
        Figure("dynamic / unbatched", statistics.median(rates["dynamic"]) / plain, least=3.0),
        Figure("one alone: adaptive adds, share of the latency", added),
        Figure("one alone: lower end of its 95 % interval", added - spread, most=0.0),
    ]


async def _added_latency(server: ModelServer, row: Any, seconds: float) -> tuple[float, float]:
    """Return what adaptive batching adds to a request alone, relative, and its 95 % interval's half."""
    plain, joined = _request("x", row, "unbatched"), _request("x", row, "adaptive")

    async def once(request: InferRequest) -> float:
        started = time.perf_counter()
        await server.infer(request)
        return time.perf_counter() - started

    differences, bases = [], []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        first = await once(
            plain
        )  # each pair in both orders: what ran before warms what comes after
        second = await once(joined)
        third = await once(joined)
        fourth = await once(plain)
        differences.append((second + third - first - fourth) / 2)
        bases.append((first + fourth) / 2)
    differences = sorted(differences)[len(differences) // 20 : -len(differences) // 20]
    base = statistics.median(bases)
    half = 1.96 * statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences) / base, half / base


# A Python model's process


def hop(seconds: float, rounds: int) -> list[Figure]:
    """A Python model that looks at 600 KB: what its process costs a request."""
    del rounds
    with _folder() as folder, asyncio.Runner() as runner:
        (folder / "model.py").write_text(_MODEL_PY)
        opening = Opening(
            folder=folder, entry="model.py", model="m", device="cpu",
            inputs=(TensorSpec("x", DataType.FP32, (-1, 3, 224, 224)),),
            outputs=(TensorSpec("y", DataType.FP32, (-1, 4)),),
            execution=Execution(spelling=Spelling.TRITON),
        )  # fmt: skip
        model = load_worker("python", Spelling.TRITON, opening, WorkerSettings(allow_code=True))
        request = _request("x", np.random.default_rng(1).random(_HOP_SHAPE, np.float32))

        async def measure() -> list[float]:
            times = []
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                started = time.perf_counter()
                (outcome,) = await model.execute([request])
                times.append(time.perf_counter() - started)
                if isinstance(outcome, Exception):
                    raise outcome
            return times

        times = runner.run(measure())
        runner.run(model.close())
    return [
        Figure("a request with 600 KB to a Python model, median, µs",
               statistics.median(times) * 1e6, most=300.0),
        Figure("the same, 99th percentile, µs", statistics.quantiles(times, n=100)[98] * 1e6),
    ]  # fmt: skip


# Memory


def reloads(seconds: float, rounds: int) -> list[Figure]:
    """The CNN, loaded again fifty times under requests: memory against after the first load."""
    del seconds, rounds
    with _folder() as folder, asyncio.Runner() as runner:
        file = folder / "model.onnx"
        model_files.resnet18(file)
        server = ModelServer({"onnx": OnnxRuntime()}, config=ServerConfig(profile_s=0.1))
        first = _manifest(file)
        picture = np.zeros(_HOP_SHAPE, np.float32)

        def rss() -> int:
            return int(psutil.Process().memory_info().rss)

        async def reload(number: int) -> None:
            parameters = (("release", str(number)),)  # another digest: what is executed has changed
            manifest = replace(first, execution=Execution(parameters=parameters))
            status = await server.load(manifest, folder)
            if status.reason:
                raise NotServing(status.reason)
            await server.infer(_request("x", picture))

        runner.run(reload(0))
        runner.run(asyncio.sleep(0.5))
        after_first = rss()
        sizes = []
        for number in range(1, _RELOADS + 1):
            runner.run(reload(number))
            sizes.append(rss())
        runner.run(asyncio.sleep(0.5))
        after_last = rss()
        runner.run(server.close())
        shutil.rmtree(folder, ignore_errors=True)
    return [
        Figure("memory after the first load, MB", after_first / 1e6),
        Figure("at most, while reloading, MB", max(sizes) / 1e6),
        Figure("after 50 reloads / after the first", after_last / after_first, most=1.1),
    ]
