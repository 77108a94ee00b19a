"""Opening instances: several of one kind, models in processes, and what is closed when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from meshnode.errors import InferenceFailed, MeshError, ModelError
from meshnode.models.execution import (
    ControlInput,
    ControlKind,
    Execution,
    InstanceGroup,
    SequenceBatching,
    SequenceState,
    WarmUp,
    WarmUpInput,
)
from meshnode.models.manifest import TensorSpec
from meshnode.models.serving.loading import Loader
from meshnode.models.serving.server_config import ServerConfig
from meshnode.types import DataType, Tensor

from .conftest import FakeModel, FakeRuntime, fake_manifest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.models.runtimes.base import Opening
    from meshnode.models.serving.opened import Opened
    from meshnode.types import InferRequest, ResponsePart

NOWHERE = Path("nowhere")


class Process:
    """A model in a process of its own, as far as the host sees it."""

    device = "cpu"
    concurrency = 2
    memory_bytes = 0

    def __init__(self, manifest: Manifest, *, joins_rows: bool, error: MeshError | None) -> None:
        self.inputs = manifest.inputs
        self.outputs = manifest.outputs
        self.joins_rows = joins_rows
        self.error = error
        self.asked: list[InferRequest] = []
        self.closed = False
        self.on_lost = lambda _reason: None

    async def execute(self, requests: Sequence[InferRequest]) -> list[Any]:
        self.asked += requests
        if self.error is not None:
            return [self.error for _ in requests]
        return [tuple(replace(tensor, name="y") for tensor in each.inputs) for each in requests]

    async def stream(self, request: InferRequest) -> AsyncIterator[ResponsePart]:
        self.asked.append(request)
        nothing: tuple[ResponsePart, ...] = ()
        for part in nothing:
            yield part

    async def close(self) -> None:
        self.closed = True


class ProcessRuntime:
    """Opens such models."""

    name = "fake"
    platform = "fake_platform"
    is_code = True
    shares_instance = False

    def __init__(self, *, joins_rows: bool = False, error: MeshError | None = None) -> None:
        self.joins_rows = joins_rows
        self.error = error
        self.opened: list[Process] = []
        self.threads: list[int] = []

    def load(self, opening: Opening) -> Process:
        self.threads.append(opening.threads)
        manifest = fake_manifest()
        self.opened.append(Process(manifest, joins_rows=self.joins_rows, error=self.error))
        return self.opened[-1]


async def open_with(runtime: Any, manifest: Manifest, cores: int = 4, **options: Any) -> Opened:
    timer = runtime.clock if isinstance(runtime, FakeRuntime) else FakeRuntime(manifest).clock
    loader = Loader({"fake": runtime}, ServerConfig(), cores, timer)
    return await loader.open(manifest, NOWHERE, **options)


def with_settings(**settings: Any) -> Manifest:
    return replace(fake_manifest(), execution=Execution(**settings))


async def test_a_runtime_whose_instances_are_apart_opens_each(fake: FakeRuntime) -> None:
    fake.shares_instance = False
    opened = await open_with(fake, with_settings(instance_groups=(InstanceGroup(3),)))
    assert [(each.slots, each.exclusive) for each in opened.instances] == [(1, True)] * 3
    assert len(fake.loaded) == 3
    assert all(model.runs for model in fake.loaded)  # none makes its first request wait
    assert not any(model.closed for model in fake.loaded)


async def test_what_was_opened_is_closed_when_another_instance_fails(
    fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.shares_instance = False
    load = fake.load

    def second_fails(opening: Opening) -> FakeModel:
        if opening.instance == 1:
            raise ModelError("no memory on the device")
        return load(opening)

    monkeypatch.setattr(fake, "load", second_fails)
    with pytest.raises(ModelError, match="no memory on the device"):
        await open_with(fake, with_settings(instance_groups=(InstanceGroup(2),)))
    assert [model.closed for model in fake.loaded] == [True]


async def test_passive_instances_are_opened(fake: FakeRuntime) -> None:
    groups = (InstanceGroup(1), InstanceGroup(1, passive=True))
    opened = await open_with(fake, with_settings(instance_groups=groups))
    assert [each.passive for each in opened.instances] == [False, True]


async def test_more_threads_than_cores_are_warned_of(
    fake: FakeRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "instance_groups": (InstanceGroup(4),),
        "parameters": (("intra_op_thread_count", "2"),),
    }
    opened = await open_with(fake, with_settings(**settings), cores=2)
    assert [each.slots for each in opened.instances] == [4]
    assert fake.loaded[0].threads == 2
    assert "asks for 8 threads at once on 2 cores" in caplog.text


async def test_each_configured_warm_up_reaches_every_instance(fake: FakeRuntime) -> None:
    runtime = ProcessRuntime()
    sample = WarmUp("first", 1, (WarmUpInput("x", DataType.FP32, (1, 2)),), 2)
    manifest = with_settings(instance_groups=(InstanceGroup(2),), warm_up=(sample,))
    opened = await open_with(runtime, manifest)
    assert [len(process.asked) for process in runtime.opened] == [2, 2]
    assert [each.slots for each in opened.instances] == [2, 2]  # as many as a process takes at once
    assert runtime.threads == [2, 2]


async def test_a_process_runs_nothing_of_its_authors_but_what_was_configured() -> None:
    """Only its author knows what such a model may be given."""
    runtime = ProcessRuntime()
    opened = await open_with(runtime, fake_manifest())
    assert runtime.opened[0].asked == []
    assert (opened.profile, runtime.threads) == ((), [4])


async def test_a_process_that_joins_rows_is_measured() -> None:
    runtime = ProcessRuntime(joins_rows=True)
    opened = await open_with(runtime, replace(fake_manifest(), max_batch_size=4))
    asked = runtime.opened[0].asked
    assert asked[0].inputs == (Tensor("x", DataType.FP32, (1, 2), bytes(8)),)
    assert len(asked) >= 3
    assert opened.apart == ""


async def test_a_process_whose_configured_warm_up_fails_is_closed() -> None:
    runtime = ProcessRuntime(error=InferenceFailed("cannot divide"))
    sample = WarmUp("first", 1, (WarmUpInput("x", DataType.FP32, (1, 2)),))
    with pytest.raises(ModelError, match="its warm-up 'first' failed: cannot divide"):
        await open_with(runtime, with_settings(warm_up=(sample,)))
    assert runtime.opened[0].closed


async def test_models_may_keep_what_they_compiled_by_digest(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path | None] = []
    load = fake.load

    def noted(opening: Opening) -> FakeModel:
        folders.append(opening.cache_folder)
        return load(opening)

    monkeypatch.setattr(fake, "load", noted)
    loader = Loader({"fake": fake}, ServerConfig(), 1, fake.clock, lambda digest: tmp_path / digest)
    await loader.open(fake.manifest, NOWHERE)
    assert folders == [tmp_path / fake.manifest.digest]


# Sequence models, whose file has inputs that clients do not see.


def sequence_manifest(initial: str = "") -> Manifest:
    controls = (ControlInput("start", ControlKind.START, DataType.FP32, (0.0, 1.0)),)
    states = (SequenceState("s_in", "s_out", DataType.FP32, (2,), initial),)
    sequences = SequenceBatching(controls=controls, states=states)
    return replace(fake_manifest(), max_batch_size=4, execution=Execution(sequences=sequences))


def file_of(manifest: Manifest, *inputs: str, outputs: tuple[str, ...] = ("s_out",)) -> Manifest:
    """Return a manifest that says what the model's file has."""
    more = tuple(TensorSpec(name, DataType.FP32, (-1, 2)) for name in inputs)
    gives = tuple(TensorSpec(name, DataType.FP32, (-1, 2)) for name in outputs)
    return replace(manifest, inputs=(*manifest.inputs, *more), outputs=(*manifest.outputs, *gives))


async def test_inputs_that_the_node_fills_in_are_the_files_alone() -> None:
    manifest = sequence_manifest()
    fake = FakeRuntime(file_of(manifest, "start", "s_in"))
    assert (await open_with(fake, manifest)).apart == ""


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (("s_in",), ("s_out",), "sequence_batching fills the input 'start'"),
        (("start", "s_in"), (), "sequence_batching keeps the output 's_out'"),
        (("start", "s_in", "other"), ("s_out",), "the manifest has inputs x"),
    ],
)
async def test_a_file_without_them_is_refused_with_both_sides_named(
    inputs: tuple[str, ...], outputs: tuple[str, ...], reason: str
) -> None:
    manifest = sequence_manifest()
    fake = FakeRuntime(file_of(manifest, *inputs, outputs=outputs))
    with pytest.raises(ModelError, match=reason):
        await open_with(fake, manifest)


async def test_an_initial_state_is_read_from_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    (folder / "initial_state").mkdir(parents=True)
    (folder / "initial_state" / "start.raw").write_bytes(b"12345678")
    manifest = sequence_manifest("start.raw")
    fake = FakeRuntime(file_of(manifest, "start", "s_in"))
    loader = Loader({"fake": fake}, ServerConfig(), 1, fake.clock)
    opened = await loader.open(manifest, folder)
    assert opened.initial_states == {"s_in": b"12345678"}
