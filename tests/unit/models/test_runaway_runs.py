"""Runs that take far longer than anybody foresaw: real ONNX models, a real server, and models that never end."""

from __future__ import annotations

import asyncio
import mmap
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from meshnode.errors import Cancelled, DeadlineExceeded, InvalidRequest, NotServing
from meshnode.models.manifest import Manifest
from meshnode.models.runtimes.base import Opening
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.runtimes.onnx_graph import read_facts
from meshnode.models.runtimes.run_memory import RunMemory
from meshnode.models.serving import replica as replica_module
from meshnode.models.serving.inline_watch import InlineWatch
from meshnode.models.serving.measure import RunTime
from meshnode.models.serving.server import ModelServer
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.serving.threads import RunThreads
from meshnode.models.tensors import from_numpy, to_numpy
from meshnode.types import InferRequest, ReplicaState
from tests.unit.models.conftest import FakeRuntime, identity, onnx_model
from tests.unit.models.replica_models import Bench, Doubler, request, turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.types import Tensor

FOREVER = 10**12
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def rounds() -> bytes:
    """Doubles `x` as often as `n` says."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [value("i", INT64, []), value("go", TensorProto.BOOL, []), value("v", FLOAT, [1])],
        [value("on", TensorProto.BOOL, []), value("w", FLOAT, [1])],
    )
    return onnx_model(
        [helper.make_node("Loop", ["n", "yes", "x"], ["y"], body=body)],
        {"n": (INT64, []), "x": (FLOAT, [1])},
        {"y": (FLOAT, [1])},
        [numpy_helper.from_array(np.array(True), "yes")],
    )


def filled(size: str) -> bytes:
    """Sums as many numbers as `n` says (or, for "shape", as it has)."""
    shaped = [helper.make_node("Shape", ["n"], ["shape"])] if size == "shape" else []
    return onnx_model(
        [
            *shaped,
            helper.make_node("ConstantOfShape", [size], ["a"]),
            helper.make_node("ReduceSum", ["a"], ["y"], keepdims=0),
        ],
        {"n": (INT64, ["k"])},
        {"y": (FLOAT, [])},
    )


def asked(n: int, timeout_s: float = 30.0) -> InferRequest:
    inputs = (
        from_numpy("n", np.array(n, np.int64)),
        from_numpy("x", np.ones(1, np.float32)),
    )
    return InferRequest("m", inputs, timeout_s=timeout_s)


class Served:
    """A server with one ONNX model."""

    def __init__(self, folder: Path, content: bytes) -> None:
        (folder / "model.onnx").write_bytes(content)
        runtime = OnnxRuntime()
        self.told: list[tuple[ReplicaState, str]] = []
        self.server = ModelServer(
            {"onnx": runtime}, on_change=lambda _m, _v, state, why: self.told.append((state, why))
        )
        self.folder = folder
        found = runtime.describe(Opening(folder=folder, entry="model.onnx"))
        self.manifest = Manifest(
            "m", 1, "onnx", "onnx", found.inputs, found.outputs, 0, (), "model.onnx"
        )

    async def load(self) -> None:
        status = await self.server.load(self.manifest, self.folder)
        assert status.state is ReplicaState.READY, status.reason


async def test_a_model_whose_values_say_how_long_it_runs_never_runs_on_the_loop(
    tmp_path: Path,
) -> None:
    """Eleven short requests, then one of a trillion rounds: it froze the whole node for ever."""
    served = Served(tmp_path, rounds())
    await served.load()
    for _ in range(11):
        assert served.server.try_infer_inline(asked(1)) is None
        await served.server.infer(asked(1))
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="still running"):
        await served.server.infer(asked(FOREVER, timeout_s=0.1))
    assert time.monotonic() - began < 5
    for _ in range(4):  # it was ended: no place is lost, and unloading does not wait for it
        await served.server.infer(asked(1))
    await asyncio.wait_for(served.server.close(), 1.5)


async def test_a_run_ends_when_its_only_caller_gives_up(tmp_path: Path) -> None:
    served = Served(tmp_path, rounds())
    await served.load()
    task = asyncio.ensure_future(served.server.infer(asked(FOREVER)))
    await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait_for(served.server.close(), 1.5)
    assert task.cancelled()


async def test_unloading_ends_what_still_runs_after_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.models.serving.server.UNLOAD_DRAIN_S", 0.05)
    served = Served(tmp_path, rounds())
    await served.load()
    task = asyncio.ensure_future(served.server.infer(asked(FOREVER)))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(served.server.unload("m", 1), 1.5)
    with pytest.raises(NotServing, match="stopped serving"):
        await task


@pytest.mark.parametrize(
    ("content", "by_values"),
    [
        (identity(), False),
        (rounds(), True),
        (filled("n"), True),
        (filled("shape"), False),
        (b"no model", True),
        (
            onnx_model(
                [helper.make_node("Odd", ["x"], ["y"], domain="mine")],
                {"x": (FLOAT, [1])},
                {"y": (FLOAT, [1])},
            ),
            True,
        ),
        (
            onnx_model(
                [
                    helper.make_node("Cast", ["x"], ["size"], to=INT64),
                    helper.make_node("Expand", ["one", "size"], ["y"]),
                ],
                {"x": (FLOAT, [1])},
                {"y": (FLOAT, None)},
                [numpy_helper.from_array(np.ones(1, np.float32), "one")],
            ),
            True,
        ),
        (
            onnx_model(
                [helper.make_node("Tile", ["x", "twice"], ["y"])],
                {"x": (FLOAT, ["n"])},
                {"y": (FLOAT, ["m"])},
                [numpy_helper.from_array(np.array([2]), "twice")],
            ),
            False,
        ),
    ],
    ids=["plain", "loop", "size", "shape", "damaged", "unknown", "computed", "constant"],
)
def test_sizes_are_followed_through_the_graph(
    tmp_path: Path, content: bytes, by_values: bool
) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert read_facts(tmp_path / "model.onnx").works_by_values is by_values


def test_a_run_is_ended_by_another_thread_and_may_go_on_after(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(rounds())
    model = OnnxRuntime().load(Opening(folder=tmp_path, entry="model.onnx"))
    assert model.works_by_values
    run = model.stoppable()
    threading.Timer(0.05, run.stop).start()
    with pytest.raises(Cancelled):
        run.run(asked(FOREVER).inputs, ())
    assert run.stopped
    assert to_numpy(model.run(asked(3).inputs, ())[0]).tolist() == [8]  # runs of others go on
    run.rearm()
    assert to_numpy(run.run(asked(2).inputs, ())[0]).tolist() == [4]


class Endless(Doubler):
    """A model whose runs last until they are stopped, once it is told to stall."""

    def __init__(self) -> None:
        super().__init__()
        self.stall = False
        self.stopped_in: list[str] = []
        self.stopped = False
        self.ended = threading.Event()

    def stoppable(self) -> Endless:
        return self

    def stop(self) -> None:
        self.stopped = True
        self.stopped_in.append(threading.current_thread().name)
        self.ended.set()

    def rearm(self) -> None:
        self.stopped = False
        self.stall = False

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str]) -> tuple[Tensor, ...]:
        if self.stall:
            assert self.ended.wait(10)
            raise Cancelled("stopped")
        return super().run(inputs, outputs)


async def test_a_short_run_that_does_not_end_is_ended_and_made_again_in_a_thread() -> None:
    model = Endless()
    bench = Bench(model, inline_limit_s=1e-3, apart="told so")
    bench.replica._run_time.observe(1e-6, 1)
    for _ in range(3):
        assert bench.replica.try_inline(request(1)) is not None
    model.stall = True
    assert bench.replica.try_inline(request(1)) is None
    assert model.stopped_in == ["inline-watch"]
    task = bench.ask(1)
    await turn()
    assert len(bench.workers.work) == 1  # not on the loop again
    await bench.workers.run_all()
    await task


def test_a_watch_ends_its_thread_when_nothing_runs() -> None:
    looks = threading.Semaphore(0)

    def sleep(_seconds: float) -> None:
        looks.release()
        time.sleep(1e-4)

    watch = InlineWatch(sleep)
    watch.wake()
    thread = watch._thread
    assert thread is not None
    thread.join(5)
    assert not thread.is_alive()
    assert not watch.awake


def test_a_model_that_surprises_again_and_again_is_expected_to_be_short_ever_later() -> None:
    run_time = RunTime()
    waits = []
    for _ in range(3):
        run_time.observe(1e-6, 1)
        run_time.distrust()
        waits.append(run_time.runs_needed)
    assert waits == [4, 64, 1024]


class Unstoppable(Doubler):
    """A model in this process whose runs nobody can end."""


async def test_a_place_whose_run_does_not_end_counts_as_lost_and_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "RUN_END_GRACE_S", 0.01)
    bench = Bench(Unstoppable(), slots=2)
    told: list[tuple[str, str]] = []
    bench.replica.on_lost = lambda reason: told.append(("lost", reason))
    bench.replica.on_trouble = lambda reason: told.append(("trouble", reason))
    for place in range(2):
        with pytest.raises(DeadlineExceeded):
            await bench.ask(1, timeout_s=0.001)
        await asyncio.sleep(0.05)
        assert f"{place + 1} of 2 places" in told[place][1]
    assert [kind for kind, _ in told] == ["trouble", "lost"]
    with pytest.raises(NotServing, match="2 of 2 places"):
        await bench.ask(1)
    assert not await asyncio.wait_for(
        bench.replica.drained(), 5
    )  # unloading does not wait for ever
    await bench.replica.close()
    assert not bench.models[0].closed  # what runs must not be freed
    told.clear()
    await bench.workers.run_all()
    assert told[0] == ("lost", "")
    assert told[-1] == ("trouble", "")
    assert await bench.replica.drained()


def test_threads_of_runs_do_not_keep_the_process() -> None:
    code = (
        "import threading; from meshnode.models.serving.threads import RunThreads; "
        "RunThreads(1, 'm').submit(threading.Event().wait)"
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)


def test_as_many_threads_run_as_were_asked_for() -> None:
    threads = RunThreads(2, "m")
    gate, done = threading.Barrier(2), threading.Semaphore(0)
    names: list[str] = []

    def work() -> None:
        gate.wait(10)
        names.append(threading.current_thread().name)
        done.release()

    for _ in range(4):
        threads.submit(work)
    for _ in range(4):
        assert done.acquire(timeout=10)
    assert set(names) == {"m_0", "m_1"}
    threads.shutdown()


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * mmap.PAGESIZE / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_an_unusually_large_run_is_given_back(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(filled("n"))
    model = OnnxRuntime().load(Opening(folder=tmp_path, entry="model.onnx"))

    def run(count: int) -> None:
        model.run([from_numpy("n", np.array([count]))], ())

    for _ in range(3):
        run(1)
    before = resident_mb()
    run(50_000_000)
    assert resident_mb() - before < 60  # of 200


def test_memory_is_given_back_after_what_is_unusual_only() -> None:
    steady = RunMemory()
    assert not any([steady.is_to_shrink(0.1, float(at)) for at in range(1, 100)][20:])
    assert steady.is_to_shrink(10.0, 100.0)
    assert not steady.is_to_shrink(10.0, 100.5)  # soon again: not twice in two seconds
    assert steady.is_to_shrink(0.1, 103.0)  # but later, for the one before


def gather(indices: Sequence[Any] = ()) -> bytes:
    return onnx_model(
        [*indices, helper.make_node("Gather", ["table", "at" if indices else "i"], ["y"])],
        {"i": (INT64, ["n"])},
        {"y": (FLOAT, ["n"])},
        [
            numpy_helper.from_array(np.arange(3, dtype=np.float32), "table"),
            numpy_helper.from_array(np.array(5), "five"),
        ],
    )


@pytest.mark.parametrize(
    ("content", "sent"),
    [
        (gather(), from_numpy("i", np.array([9]))),
        (
            onnx_model(
                [helper.make_node("Cast", ["i"], ["y"], to=FLOAT)],
                {"i": (TensorProto.STRING, ["n"])},
                {"y": (FLOAT, ["n"])},
            ),
            from_numpy("i", np.array([b"abc"], object)),
        ),
        (identity(), from_numpy("x", np.ones(3, np.float32))),
    ],
    ids=["index", "text", "rank"],
)
def test_a_bad_value_is_the_callers_mistake(tmp_path: Path, content: bytes, sent: Tensor) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    model = OnnxRuntime().load(Opening(folder=tmp_path, entry="model.onnx"))
    with pytest.raises(InvalidRequest, match="the model refuses"):
        model.run([sent], ())


def test_an_index_that_the_model_computed_is_its_own_mistake(tmp_path: Path) -> None:
    content = gather([helper.make_node("Add", ["i", "five"], ["at"])])
    (tmp_path / "model.onnx").write_bytes(content)
    model = OnnxRuntime().load(Opening(folder=tmp_path, entry="model.onnx"))
    with pytest.raises(Exception, match="the model failed"):
        model.run([from_numpy("i", np.array([0]))], ())


async def test_a_replica_whose_places_are_lost_is_shown_with_the_reason_until_they_are_back(
    fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replica_module, "RUN_END_GRACE_S", 0.01)
    (tmp_path / "nowhere").mkdir()
    server = ModelServer({"fake": fake}, config=ServerConfig(inline_limit_s=0, slots=1))
    await server.load(fake.manifest, tmp_path / "nowhere")
    fake.gate = threading.Event()
    sent = InferRequest("m", (from_numpy("x", np.zeros((1, 2), np.float32)),), timeout_s=0.02)
    with pytest.raises(DeadlineExceeded):
        await server.infer(sent)
    await asyncio.sleep(0.05)
    assert [(each.state, each.reason[:20]) for each in server.states()] == [
        (ReplicaState.LOADING, "1 of 1 places are he")  # others are not sent here
    ]
    fake.gate.set()
    while server.states()[0].reason:  # noqa: ASYNC110 - the state is polled as others would
        await asyncio.sleep(0.01)
    assert server.states()[0].state is ReplicaState.READY
    await server.close()
