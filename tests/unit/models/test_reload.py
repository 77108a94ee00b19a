"""Replacing what serves: without a gap, never by something broken, and with the memory given back."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from meshnode.errors import InferenceFailed, ModelError
from meshnode.limits import MAX_PROFILE_BATCH
from meshnode.models.execution import Execution, Route, WarmUp, WarmUpInput
from meshnode.models.manifest import Manifest, TensorSpec
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.models.serving.server_config import ServerConfig
from meshnode.types import DataType, InferRequest, ReplicaState, Tensor

from .conftest import FakeRuntime, fake_manifest, onnx_model

NOWHERE = Path("nowhere")
READY, FAILED = ReplicaState.READY, ReplicaState.FAILED


class Served:
    """A server over the fake runtime, with what it told."""

    def __init__(self, fake: FakeRuntime, **options: Any) -> None:
        self.fake = fake
        self.changes: list[tuple[ReplicaState, str]] = []
        self.server = ModelServer(
            {"fake": fake},
            on_change=lambda _model, _version, state, reason: self.changes.append((state, reason)),
            cores=4,
            timer=fake.clock,
            give_back=lambda: None,
            **options,
        )
        self.old = fake.manifest
        self.new = replace(fake.manifest, max_batch_size=4)

    async def load(self, manifest: Manifest) -> ReplicaState:
        return (await self.server.load(manifest, NOWHERE)).state


@pytest.fixture
def served(fake: FakeRuntime) -> Served:
    return Served(fake)


def request(rows: int = 1, value: int = 0) -> InferRequest:
    return InferRequest("m", (Tensor("x", DataType.FP32, (rows, 2), bytes([value]) * 8 * rows),))


# Replacing.


async def test_the_old_version_serves_until_the_new_one_is_ready(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.load(served.old)
    answered: list[int] = []
    load = served.fake.load

    def watched(opening: Any) -> Any:
        part = served.server.try_infer_inline(request(9))  # more rows than the new one takes
        assert part is not None
        answered.append(part.outputs[0].rows)
        return load(opening)

    monkeypatch.setattr(served.fake, "load", watched)
    assert await served.load(served.new) is READY
    assert answered == [9]
    [status] = served.server.states()
    assert (status.manifest, status.state, status.reason) == (served.new, READY, "")
    states = [state for state, _ in served.changes]
    assert states == [ReplicaState.LOADING, READY, READY, READY]  # at no time anything else
    await served.server.close()
    assert [model.closed for model in served.fake.loaded] == [True, True]


async def test_a_broken_new_version_never_replaces_a_working_one(served: Served) -> None:
    await served.load(served.old)
    served.fake.load_error = ModelError("damaged")
    status = await served.server.load(served.new, NOWHERE)
    assert (status.manifest, status.state, status.reason) == (served.new, FAILED, "damaged")
    assert served.server.serves("m", 1)
    [shown] = served.server.states()
    assert (shown.manifest, shown.state) == (served.old, READY)
    assert shown.reason == (
        f"it still serves the files {served.old.digest[:12]}; the new ones "
        f"({served.new.digest[:12]}) failed: damaged"
    )
    assert served.server.try_infer_inline(request(9)) is not None
    served.fake.load_error = None
    assert await served.load(served.new) is READY


async def test_a_load_that_is_interrupted_leaves_the_old_version_serving(served: Served) -> None:
    await served.load(served.old)
    served.fake.load_error = MemoryError("no memory")
    with pytest.raises(MemoryError):
        await served.load(served.new)
    assert served.server.serves("m", 1)
    assert "MemoryError" in served.server.states()[0].reason


async def test_what_runs_on_the_old_version_ends_there(fake: FakeRuntime) -> None:
    import threading

    served = Served(fake)
    fake.row_s = 1e-3
    await served.load(served.old)
    gate = fake.gate = threading.Event()
    running = asyncio.create_task(served.server.infer(request()))
    assert await asyncio.to_thread(fake.entered.acquire, timeout=10)
    fake.gate = None
    assert await served.load(served.new) is READY
    assert not fake.loaded[0].closed
    gate.set()
    assert (await running).single is not None
    await served.server.close()
    assert fake.loaded[0].closed


async def test_without_room_for_both_the_old_one_goes_first(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    await served.load(served.old)
    served.server.room_bytes = lambda: 1000
    served.changes.clear()
    assert await served.load(served.new) is READY
    assert [state for state, _ in served.changes] == [
        ReplicaState.UNLOADING, ReplicaState.LOADING, READY,
    ]  # fmt: skip
    assert "the old ones go first" in caplog.text


async def test_several_versions_are_replaced_apart(served: Served) -> None:
    second = fake_manifest(version=2)
    await served.load(served.old)
    await served.load(second)
    await served.load(served.new)
    assert [each.manifest for each in served.server.states()] == [served.new, second]


@pytest.mark.skipif(
    sys.platform != "linux", reason="reads this process's resident memory as Linux does"
)
async def test_memory_after_many_reloads_is_what_it_was(tmp_path: Path) -> None:
    """Weights of 8 MB, replaced 20 times: 160 MB if they stayed. The allocator keeps a copy at times."""
    weights = np.ones((2048, 1024), dtype=np.float32)
    initializer = helper.make_tensor(
        "w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True
    )
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    content = onnx_model(
        [node],
        {"x": (TensorProto.FLOAT, ["n", 2048])},
        {"y": (TensorProto.FLOAT, ["n", 1024])},
        [initializer],
    )
    (tmp_path / "model.onnx").write_bytes(content)
    del initializer, content
    specs = (
        (TensorSpec("x", DataType.FP32, (-1, 2048)),),
        (TensorSpec("y", DataType.FP32, (-1, 1024)),),
    )
    first = Manifest("m", 1, "onnx", "onnxruntime_onnx", *specs, 1, (), "model.onnx")
    server = ModelServer({"onnx": OnnxRuntime()}, cores=1, config=ServerConfig(profile_s=0.0))
    process = psutil.Process()

    async def reload(number: int) -> int:
        manifest = replace(first, execution=Execution(parameters=(("round", str(number)),)))
        assert (await server.load(manifest, tmp_path)).state is READY
        await asyncio.gather(*server._retiring)
        return int(process.memory_info().rss)

    taken = [await reload(number) for number in range(20)]
    assert min(taken[-5:]) <= max(taken[:5]) + 16 * 2**20
    await server.close()


async def test_the_reason_of_a_failed_replacement_goes_when_the_old_files_are_wanted_again(
    served: Served,
) -> None:
    await served.load(served.old)
    served.fake.load_error = ModelError("damaged")
    await served.load(served.new)
    assert await served.load(served.old) is READY
    assert served.server.states()[0].reason == ""
    assert len(served.fake.loaded) == 1


async def test_a_version_whose_processes_have_ended_is_loading_until_one_is_back(
    served: Served,
) -> None:
    await served.load(served.old)
    replica = served.server._ready["m", 1].replica
    replica.on_lost("its process ended")
    status = await served.server.load(served.old, NOWHERE)
    assert (status.state, status.reason) == (ReplicaState.LOADING, "its process ended")
    replica.on_lost("")
    assert served.changes[-2:] == [(ReplicaState.LOADING, "its process ended"), (READY, "")]
    await served.load(served.new)
    replica.on_lost("of one that was replaced")
    assert served.changes[-1] == (READY, "")


# Warm-up.


def warmed(*inputs: WarmUpInput, rows: int = 2, count: int = 3) -> Manifest:
    sample = WarmUp("first", rows, inputs, count)
    return replace(fake_manifest(), max_batch_size=4, execution=Execution(warm_up=(sample,)))


ZEROS = WarmUpInput("x", DataType.FP32, (2,))


async def test_configured_requests_run_before_a_version_is_ready(served: Served) -> None:
    assert await served.load(replace(warmed(ZEROS), execution=Execution())) is READY
    without = len(served.fake.ran_in)
    served.fake.ran_in.clear()
    assert await served.load(warmed(ZEROS)) is READY
    assert len(served.fake.ran_in) == without + 3


async def test_a_configured_warm_up_that_fails_makes_the_version_failed(served: Served) -> None:
    served.fake.error = InferenceFailed("cannot divide")
    status = await served.server.load(warmed(ZEROS), NOWHERE)
    assert (status.state, status.reason) == (FAILED, "its warm-up 'first' failed: cannot divide")
    assert served.fake.loaded[0].closed


async def test_a_warm_up_reads_its_file_of_one_row_or_of_all(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "nowhere"
    (folder / "warmup").mkdir(parents=True)
    given: list[bytes] = []
    load = fake.load

    def watched(opening: Any) -> Any:
        model = load(opening)
        run = model.run

        def noted(inputs: Any, outputs: Any) -> Any:
            given.append(bytes(inputs[0].data))
            return run(inputs, outputs)

        monkeypatch.setattr(model, "run", noted)
        return model

    monkeypatch.setattr(fake, "load", watched)
    served = Served(fake)
    manifest = warmed(WarmUpInput("x", DataType.FP32, (2,), file="row.raw"), count=1)
    for content in (b"12345678", b"1234567812345678"):
        (folder / "warmup" / "row.raw").write_bytes(content)
        given.clear()
        assert (await served.server.load(manifest, folder)).state is READY
        assert b"12345678" * 2 in given
        await served.server.unload("m", 1)
    (folder / "warmup" / "row.raw").write_bytes(b"123")
    status = await served.server.load(manifest, folder)
    assert status.reason == (
        "its warm-up 'first': 'warmup/row.raw' has 3 bytes; input 'x' (FP32) needs 8 for each row"
    )
    (folder / "warmup" / "row.raw").unlink()
    status = await served.server.load(manifest, folder)
    assert "'warmup/row.raw' is not there" in status.reason


async def test_random_data_are_the_same_each_time_and_fit_the_type(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    from meshnode.models.serving.warmup_requests import warm_up_requests

    inputs = [WarmUpInput(str(each), each, (3,), "random") for each in DataType]
    manifest = warmed(*inputs)
    [made], [again] = (warm_up_requests(manifest, tmp_path) for _ in range(2))
    assert made == again
    for tensor in made.request.inputs:
        width = tensor.datatype.size_bytes or 5
        assert (tensor.shape, tensor.size_bytes) == ((2, 3), 6 * width)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (warmed(ZEROS, rows=5), "batch_size 5, above max_batch_size 4"),
        (warmed(ZEROS, count=100_000), "asks for 100000 requests"),
        (warmed(WarmUpInput("x", DataType.FP32, (-1,))), "write sizes, not -1"),
        (warmed(WarmUpInput("x", DataType.FP32, (2**40,))), "larger than any request may be"),
        (
            warmed(WarmUpInput("x", DataType.FP32, (2,), file="../../secret")),
            "not a plain relative path",
        ),
    ],
)
async def test_a_warm_up_that_cannot_be_made_is_a_reason(
    served: Served, manifest: Manifest, reason: str
) -> None:
    status = await served.server.load(manifest, NOWHERE)
    assert status.state is FAILED
    assert reason in status.reason


# Profile, pressure, routes.


async def test_the_service_time_of_each_batch_size_is_measured(served: Served) -> None:
    """10 µs per row, so that larger batches bring nothing after two doublings."""
    await served.load(served.old)
    details = served.server.details("m", 1)
    assert [rows for rows, _ in details.profile] == [1, 2, 4]
    assert [ms for _, ms in details.profile] == pytest.approx([0.01, 0.02, 0.04])
    assert (details.device, details.instances) == ("cpu", 1)


async def test_a_profile_of_no_time_has_one_row(fake: FakeRuntime) -> None:
    served = Served(fake, config=ServerConfig(profile_s=0.0))
    await served.load(served.old)
    [(rows, ms)] = served.server.details("m", 1).profile
    assert rows == 1
    assert ms == pytest.approx(0.01)


async def test_under_pressure_batches_shrink_and_kept_answers_go(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshnode.models.serving.replica import Replica

    limits: list[int | None] = []
    monkeypatch.setattr(Replica, "limit_rows", lambda _self, rows: limits.append(rows))
    cached = replace(served.old, execution=Execution(cache=True))
    await served.load(cached)
    served.server.try_infer_inline(request())
    assert len(served.server.cache) == 1
    for level in (1, 1, 2, 0):
        served.server.under_pressure(level)
    assert limits == [None, MAX_PROFILE_BATCH // 2, MAX_PROFILE_BATCH // 4, None]
    assert len(served.server.cache) == 0


async def test_two_models_cannot_answer_one_route(served: Served) -> None:
    routed = Execution(routes=(Route("GET", "/items"),))
    await served.load(replace(served.old, model="first", execution=routed))
    status = await served.server.load(
        replace(served.old, model="second", execution=routed), NOWHERE
    )
    assert status.state is FAILED
    assert "first" in status.reason
    assert "second" in status.reason


# The response cache.


async def test_an_answer_is_given_again_without_a_run(fake: FakeRuntime) -> None:
    served = Served(fake)
    await served.load(replace(served.old, execution=Execution(cache=True)))
    first = served.server.try_infer_inline(request(value=1))
    ran = len(fake.ran_in)
    assert first is not None
    assert "cache" not in first.parameters
    again = served.server.try_infer_inline(request(value=1))
    assert again is not None
    hit = {"cache": "hit", "cache_age_s": 0.0}
    assert (again.outputs, again.parameters) == (first.outputs, hit)
    assert len(fake.ran_in) == ran
    response = await served.server.infer(request(value=1))
    assert response.single is not None
    assert response.single.parameters == hit
    assert len(fake.ran_in) == ran
    served.server.try_infer_inline(request(value=2))
    assert len(fake.ran_in) == ran + 1
    counted = served.server.statistics()["m", 1]
    assert (counted.cache_hit.count, counted.cache_miss.count) == (2, 2)
    assert (served.server.cache.hits, served.server.cache.misses) == (2, 2)


async def test_equal_requests_in_threads_run_once(fake: FakeRuntime) -> None:
    fake.row_s = 1e-3
    served = Served(fake)
    await served.load(replace(served.old, execution=Execution(cache=True)))
    ran = len(fake.ran_in)
    asked = [request(value=7) for _ in range(4)]
    assert served.server.try_infer_inline(asked[0]) is None
    answers = await asyncio.gather(*(served.server.infer(each) for each in asked))
    assert len(fake.ran_in) == ran + 1
    assert len({bytes(each.single.outputs[0].data) for each in answers if each.single}) == 1
    assert served.server.shared_runs == 3


async def test_only_versions_that_ask_for_it_are_cached(served: Served) -> None:
    await served.load(served.old)
    served.server.try_infer_inline(request())
    assert len(served.server.cache) == 0


async def test_an_answer_says_which_variant_gave_it(fake: FakeRuntime) -> None:
    served = Served(fake)
    await served.load(replace(served.old, variant="int8"))
    part = served.server.try_infer_inline(request())
    assert part is not None
    assert part.parameters == {"variant": "int8"}
    response = await served.server.infer(request())
    assert response.single is not None
    assert response.single.parameters == {"variant": "int8"}
