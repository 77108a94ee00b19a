from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from meshnode.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    ModelError,
    NotServing,
    Saturated,
)
from meshnode.limits import MAX_BODY_BYTES
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ModelServer, available_cores
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.tensors import pack_strings, to_numpy
from meshnode.types import DataType, InferRequest, ReplicaState, Tensor

from .conftest import FakeRuntime, fake_manifest, quotient

if TYPE_CHECKING:
    from collections.abc import Callable

NOWHERE = Path("nowhere")
Change = tuple[str, int, ReplicaState, str]


class Served:
    """A server over the fake runtime, with what it told."""

    def __init__(self, fake: FakeRuntime, **options: Any) -> None:
        self.fake = fake
        self.changes: list[Change] = []
        self.server = ModelServer(
            {"fake": fake},
            on_change=lambda *change: self.changes.append(change),
            cores=options.pop("cores", 4),
            timer=fake.clock,
            give_back=lambda: None,
            **options,
        )

    async def load(self, manifest: Manifest | None = None) -> ReplicaState:
        return (await self.server.load(manifest or self.fake.manifest, NOWHERE)).state

    def block(self) -> None:
        """From now on runs in threads wait for `release`."""
        self.fake.gate = threading.Event()

    async def release(self) -> None:
        assert self.fake.gate is not None
        self.fake.gate.set()

    async def in_thread(self, count: int = 1) -> None:
        """Wait until so many more runs have begun in threads."""
        for _ in range(count):
            entered = await asyncio.to_thread(self.fake.entered.acquire, timeout=10)
            assert entered


@pytest.fixture
def served(fake: FakeRuntime) -> Served:
    return Served(fake)


def request(rows: int = 1, *, version: int | None = None, timeout_s: float = 30.0) -> InferRequest:
    tensor = Tensor("x", DataType.FP32, (rows, 2), bytes(8 * rows))
    return InferRequest("m", (tensor,), version=version, timeout_s=timeout_s)


async def test_a_loaded_version_is_ready_and_told(served: Served) -> None:
    assert await served.load() is ReplicaState.READY
    assert served.changes == [
        ("m", 1, ReplicaState.LOADING, ""),
        ("m", 1, ReplicaState.READY, ""),
    ]
    assert repr(served.server) == "<ModelServer ready=1 known=1>"
    [status] = served.server.states()
    assert status.manifest == served.fake.manifest
    # Three on zeros, two of two and of four rows each, and four times six that compare joined rows.
    assert len(served.fake.ran_in) == 31


async def test_a_short_run_happens_on_the_loop(served: Served) -> None:
    await served.load()
    part = served.server.try_infer_inline(request(5))
    assert part is not None
    assert part.outputs[0].name == "y"
    assert served.fake.ran_in[-1] == threading.get_ident()
    report = served.server.load_report("m", 1)
    assert (report.in_system, report.slots) == (0, 1)
    assert report.service_ms == pytest.approx(0.013)


async def test_the_rows_decide_what_is_short(served: Served) -> None:
    """10 µs per row: 49 rows are inline, 50 are not."""
    await served.load()
    assert served.server.try_infer_inline(request(49)) is not None
    assert served.server.try_infer_inline(request(50)) is None
    response = await served.server.infer(request(50))
    assert served.fake.ran_in[-1] != threading.get_ident()
    assert (response.model, response.version) == ("m", 1)
    assert response.single is not None
    assert response.single.outputs[0].shape == (50, 2)


async def test_infer_runs_short_requests_inline_too(served: Served) -> None:
    await served.load()
    response = await served.server.infer(request(1, version=1))
    assert response.version == 1
    assert served.fake.ran_in[-1] == threading.get_ident()


async def test_a_model_that_becomes_slow_moves_to_threads(served: Served) -> None:
    await served.load()
    served.fake.row_s = 0.1
    runs = 0
    while served.server.try_infer_inline(request()) is not None:
        runs += 1
        assert runs < 30
    assert runs > 3


@pytest.mark.parametrize(
    ("row_s", "cores", "slots", "threads"),
    [
        (10e-6, 4, 1, [1]),
        (1e-3, 4, 4, [1]),
        (5e-3, 4, 1, [1, 4]),
        (5e-3, 1, 1, [1]),
    ],
)
async def test_the_measured_time_decides_slots_and_threads(
    fake: FakeRuntime, row_s: float, cores: int, slots: int, threads: list[int]
) -> None:
    served = Served(fake, cores=cores)
    fake.row_s = row_s
    await served.load()
    assert served.server.load_report("m", None).slots == slots
    assert [model.threads for model in fake.loaded] == threads
    assert [model.closed for model in fake.loaded] == [True] * (len(threads) - 1) + [False]


async def test_free_dimensions_are_unknown_until_a_real_request_was_measured(
    fake: FakeRuntime,
) -> None:
    fake.manifest = fake_manifest(shape=(-1, -1))
    served = Served(fake)
    await served.load()
    assert served.server.load_report("m", 1).slots == 4
    assert served.server.try_infer_inline(request()) is None
    for _ in range(4):  # the sizes of its outputs are free too
        assert served.server.try_infer_inline(request()) is None
        await served.server.infer(request())
    assert served.server.try_infer_inline(request()) is not None


async def test_where_sizes_do_not_tell_the_work_three_requests_run_in_threads(
    fake: FakeRuntime,
) -> None:
    """A list of integers may say how often a tensor is repeated."""
    repeats = TensorSpec("k", DataType.INT64, (2,))
    fake.manifest = msgspec.structs.replace(fake.manifest, inputs=(*fake.manifest.inputs, repeats))
    served = Served(fake)
    await served.load()
    asked = request()
    asked = replace(asked, inputs=(*asked.inputs, Tensor("k", DataType.INT64, (2,), bytes(16))))
    for _ in range(3):
        assert served.server.try_infer_inline(asked) is None
        await served.server.infer(asked)
    assert served.server.try_infer_inline(asked) is not None


async def test_a_model_with_free_dimensions_may_refuse_the_warm_up(fake: FakeRuntime) -> None:
    """A convolution over three pixels cannot run on one."""
    fake.manifest = fake_manifest(shape=(-1, -1))
    fake.error = InferenceFailed("too small")
    served = Served(fake)
    assert await served.load() is ReplicaState.READY
    with pytest.raises(InferenceFailed):
        await served.server.infer(request())


async def test_a_manifest_that_claims_huge_tensors_costs_no_memory(fake: FakeRuntime) -> None:
    fake.manifest = fake_manifest(shape=(MAX_BODY_BYTES, 2**30))
    served = Served(fake)
    assert await served.load() is ReplicaState.READY
    assert fake.ran_in == []


async def test_a_warm_up_that_raises_is_a_warning_and_the_time_stays_unknown(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """Zeros may be bad input for a good model."""
    served.fake.error = InferenceFailed("the model failed: division by zero")
    assert await served.load() is ReplicaState.READY
    assert "model m version 1: its warm-up on zeros failed" in caplog.text
    assert "division by zero" in caplog.text
    served.fake.error = None
    assert served.server.try_infer_inline(request()) is None
    await served.server.infer(request())
    assert served.fake.ran_in[-1] != threading.get_ident()
    assert served.server.try_infer_inline(request()) is not None


async def test_a_file_that_cannot_be_opened_makes_the_version_failed(served: Served) -> None:
    served.fake.load_error = ModelError("damaged")
    status = await served.server.load(served.fake.manifest, NOWHERE)
    assert (status.state, status.reason) == (ReplicaState.FAILED, "damaged")
    assert served.changes[-1] == ("m", 1, ReplicaState.FAILED, "damaged")
    with pytest.raises(NotServing, match="does not serve version 1 of model 'm'"):
        served.server.load_report("m", 1)


async def test_a_failed_version_can_be_loaded_again_or_forgotten(served: Served) -> None:
    served.fake.load_error = ModelError("damaged")
    assert await served.load() is ReplicaState.FAILED
    served.fake.load_error = None
    assert await served.load() is ReplicaState.READY
    await served.server.unload("m", 1)
    assert served.server.states() == ()


async def test_an_unknown_runtime_is_a_reason(served: Served) -> None:
    status = await served.server.load(fake_manifest(runtime="torch"), NOWHERE)
    assert (status.state, status.reason) == (
        ReplicaState.FAILED,
        "this node has no runtime 'torch'",
    )


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("inputs", r"the manifest has inputs z \(FP32\), the file x \(FP32\)"),
        ("outputs", r"the manifest has outputs z \(FP32\), the file y \(FP32\)"),
    ],
)
async def test_a_manifest_that_does_not_fit_its_file_fails(
    served: Served, field: str, reason: str
) -> None:
    """A peer may send any manifest with any files."""
    import re

    changes: dict[str, Any] = {field: (TensorSpec("z", DataType.FP32, (-1,)),)}
    status = await served.server.load(
        msgspec.structs.replace(served.fake.manifest, **changes), NOWHERE
    )
    assert re.search(reason, status.reason)


async def test_an_unexpected_error_is_raised_but_leaves_no_version_loading(served: Served) -> None:
    served.fake.load_error = MemoryError("no memory")
    with pytest.raises(MemoryError):
        await served.load()
    assert served.server.states()[0].state is ReplicaState.FAILED


async def test_loading_the_same_twice_loads_once(served: Served) -> None:
    first, second = await asyncio.gather(served.load(), served.load())
    assert first is second is ReplicaState.READY
    assert len(served.fake.loaded) == 1


async def test_other_content_under_the_same_version_replaces_it(served: Served) -> None:
    await served.load()
    other = msgspec.structs.replace(served.fake.manifest, max_batch_size=4)
    assert await served.load(other) is ReplicaState.READY
    await asyncio.gather(*served.server._retiring)
    assert [model.closed for model in served.fake.loaded] == [True, False]
    with pytest.raises(InvalidRequest, match="max_batch_size 4"):
        served.server.try_infer_inline(request(5))


async def test_the_newest_ready_version_answers_unless_one_is_named(served: Served) -> None:
    assert served.server.newest("m") is None
    for version in (2, 10, 1):
        await served.load(fake_manifest(version=version))
    assert served.server.newest("m") == 10
    assert (await served.server.infer(request())).version == 10
    assert (await served.server.infer(request(version=2))).version == 2
    await served.server.unload("m", 10)
    assert (await served.server.infer(request())).version == 2
    assert [status.manifest.version for status in served.server.states()] == [1, 2]


async def test_what_is_not_served_is_told(served: Served) -> None:
    with pytest.raises(NotServing, match="does not serve model 'm'"):
        served.server.try_infer_inline(request())
    with pytest.raises(NotServing, match="version 3 of model 'm'"):
        await served.server.infer(request(version=3))


async def test_a_bad_peer_gets_invalid_request(served: Served) -> None:
    await served.load()
    good = request()
    for tensor in (
        replace(good.inputs[0], name="z"),
        replace(good.inputs[0], shape=(1, 3)),
        replace(good.inputs[0], shape=(-1, 2)),
        replace(good.inputs[0], data=b"1"),
        replace(good.inputs[0], datatype=DataType.INT8),
    ):
        with pytest.raises(InvalidRequest):
            served.server.try_infer_inline(replace(good, inputs=(tensor,)))
    with pytest.raises(InvalidRequest):
        await served.server.infer(replace(good, outputs=("z",)))


async def test_no_time_left_means_no_run(served: Served) -> None:
    await served.load()
    served.fake.ran_in.clear()
    with pytest.raises(DeadlineExceeded):
        served.server.try_infer_inline(request(timeout_s=0))
    assert served.fake.ran_in == []


async def slow(fake: FakeRuntime, **options: Any) -> Served:
    """A server whose version runs in one thread, and blocks there."""
    served = Served(fake, cores=1, **options)
    fake.row_s = 1e-3
    await served.load()
    served.block()
    return served


async def test_a_full_queue_is_saturated(fake: FakeRuntime) -> None:
    served = await slow(fake, config=ServerConfig(max_waiting=2))
    tasks = [asyncio.create_task(served.server.infer(request())) for _ in range(3)]
    await served.in_thread()
    report = served.server.load_report("m", 1)
    assert (report.in_system, report.slots) == (3, 1)
    with pytest.raises(Saturated):
        await served.server.infer(request())
    await served.release()
    assert len(await asyncio.gather(*tasks)) == 3
    assert served.server.load_report("m", 1).in_system == 0


async def test_a_deadline_holds_in_the_queue_and_during_the_run(fake: FakeRuntime) -> None:
    served = await slow(fake)
    running = asyncio.create_task(served.server.infer(request(timeout_s=0.05)))
    await served.in_thread()
    waiting = asyncio.create_task(served.server.infer(request(timeout_s=0.01)))
    with pytest.raises(DeadlineExceeded, match="waited for a free slot"):
        await waiting
    with pytest.raises(DeadlineExceeded, match="still running at the deadline"):
        await running
    assert served.server.load_report("m", 1).in_system == 1  # its thread is not free yet
    await served.release()
    await served.server.infer(request())


async def test_cancelling_frees_the_place_in_the_queue_at_once(fake: FakeRuntime) -> None:
    served = await slow(fake, config=ServerConfig(max_waiting=1))
    running = asyncio.create_task(served.server.infer(request()))
    await served.in_thread()
    waiting = asyncio.create_task(served.server.infer(request()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert served.server.load_report("m", 1).in_system == 1
    next_one = asyncio.create_task(served.server.infer(request()))
    await served.release()
    assert (await next_one).version == 1


@pytest.mark.parametrize("error", [InferenceFailed("bad input"), ValueError("not translated")])
async def test_a_run_that_raises_in_its_thread_fails_that_request_alone(
    fake: FakeRuntime, error: Exception
) -> None:
    fake.row_s = 1e-3
    served = Served(fake)
    await served.load()
    fake.error = error
    with pytest.raises(InferenceFailed, match=r"bad input|ValueError\('not translated'\)"):
        await served.server.infer(request())
    fake.error = None
    assert (await served.server.infer(request())).version == 1


async def test_unloading_waits_for_what_runs_and_waits_and_refuses_the_rest(
    fake: FakeRuntime,
) -> None:
    served = await slow(fake)
    tasks = [asyncio.create_task(served.server.infer(request())) for _ in range(3)]
    await served.in_thread()
    unload = asyncio.create_task(served.server.unload("m", 1))
    await asyncio.sleep(0)
    assert served.changes[-1] == ("m", 1, ReplicaState.UNLOADING, "")
    assert [status.state for status in served.server.states()] == [ReplicaState.UNLOADING]
    with pytest.raises(NotServing):
        await served.server.infer(request())
    assert [model.closed for model in fake.loaded] == [False]
    await served.release()
    assert len(await asyncio.gather(*tasks)) == 3
    await unload
    assert fake.loaded[0].closed
    assert served.server.states() == ()


async def test_unloading_that_was_interrupted_goes_on_when_asked_again(fake: FakeRuntime) -> None:
    served = await slow(fake)
    task = asyncio.create_task(served.server.infer(request()))
    await served.in_thread()
    first = asyncio.create_task(served.server.unload("m", 1))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await served.release()
    await served.server.unload("m", 1)
    assert fake.loaded[0].closed
    await task


async def test_close_unloads_everything_and_unloading_nothing_is_fine(served: Served) -> None:
    await served.load(fake_manifest(version=1))
    await served.load(fake_manifest(version=2))
    await served.server.close()
    await served.server.unload("m", 7)
    assert served.server.states() == ()
    assert all(model.closed for model in served.fake.loaded)


def test_an_answer_for_a_loop_that_has_ended_is_dropped(fake: FakeRuntime) -> None:
    async def leave_it_running() -> Served:
        served = await slow(fake)
        task = asyncio.create_task(served.server.infer(request()))
        await served.in_thread()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return served

    with asyncio.Runner() as runner:
        served = runner.run(leave_it_running())
    pool = served.server._ready["m", 1].replica._instances._workers
    assert pool is not None
    assert fake.gate is not None
    fake.gate.set()
    pool.shutdown(wait=True)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores() >= 1
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert available_cores() == 1


def real_server() -> ModelServer:
    return ModelServer({"onnx": OnnxRuntime()}, cores=1)


async def test_triton_s_examples_answer(triton_examples: Path) -> None:
    server = real_server()
    for model in scan(triton_examples):
        version = model.versions[0]
        manifest = describe(model, version, OnnxRuntime())
        status = await server.load(manifest, version.folder)
        assert status.state is ReplicaState.READY, status.reason
    left, right = np.arange(32, dtype=np.int32).reshape(2, 16), np.full((2, 16), 3, np.int32)

    numbers = [Tensor(name, DataType.INT32, (2, 16), value.tobytes())
               for name, value in (("INPUT0", left), ("INPUT1", right))]  # fmt: skip
    response = await server.infer(InferRequest("simple", tuple(numbers)))
    assert response.single is not None
    total, difference = map(to_numpy, response.single.outputs)
    assert (total == left + right).all()
    assert (difference == left - right).all()

    strings = [Tensor(name, DataType.BYTES, (2, 16), pack_strings(value.ravel().tolist()))
               for name, value in (("INPUT0", left), ("INPUT1", right))]  # fmt: skip
    response = await server.infer(InferRequest("simple_string", tuple(strings)))
    assert response.single is not None
    total, difference = map(to_numpy, response.single.outputs)
    assert total.tolist() == (left + right).astype(str).tolist()
    await server.close()


async def test_a_real_model_that_raises_on_zeros_answers_other_requests(
    write_model: Callable[..., Path],
) -> None:
    repo = write_model("net", quotient())
    [model] = scan(repo / "net")
    manifest = describe(model, model.versions[0], OnnxRuntime())
    server = real_server()
    status = await server.load(manifest, model.versions[0].folder)
    assert status.state is ReplicaState.READY
    tensor = Tensor("x", DataType.INT32, (2,), np.array([3, 7], "<i4").tobytes())
    response = await server.infer(InferRequest("net", (tensor,)))
    assert response.single is not None
    assert to_numpy(response.single.outputs[0]).tolist() == [1, 1]
    await server.close()
