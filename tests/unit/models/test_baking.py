"""Baking: what is compiled and measured once is used again, and nothing of it where it may not hold."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from meshnode.errors import ConfigError, MeshError, ModelError
from meshnode.models.baking.baking import Bakery
from meshnode.models.baking.folder import BakedFolder, Prepared
from meshnode.models.baking.index import (
    Machine,
    Measured,
    read_index,
)
from meshnode.models.repository.publish import describe
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.base import Environment, ProcessModel
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.runtimes.registry import all_runtimes
from meshnode.models.serving import loading, warmup
from meshnode.models.serving.loading import Loader
from meshnode.models.serving.server_config import ServerConfig
from meshnode.models.serving.thread_plan import Pace
from meshnode.models.tensors import pack_strings
from meshnode.models.workers.settings import WorkerSettings
from meshnode.types import DataType, InferRequest, InferResponse, ResponsePart, Tensor

from .conftest import (
    FakeRuntime,
    add_and_subtract,
    external,
    identity,
    onnx_model,
    quotient,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.opened import Opened
    from meshnode.models.serving.profile import Profile

HERE = Machine(
    system="linux", architecture="x86_64", features="f0", python="3.11",
    packages={"onnxruntime": "1.20", "torch": "2.5"}, processor="Fast 9", cores=4,
)  # fmt: skip
NOWHERE = Path("nowhere")
ALL_LEVELS = onnxruntime.GraphOptimizationLevel


@pytest.fixture
def bakery() -> Bakery:
    return Bakery(machine=HERE)


class Sessions:
    """Notes each session that ONNX Runtime makes: which file, and whether it was optimised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, bool]] = []
        make = onnxruntime.InferenceSession

        def noted(path: str, options: Any, **rest: Any) -> Any:
            level = options.graph_optimization_level
            self.made.append((path.rpartition("/")[2], level != ALL_LEVELS.ORT_DISABLE_ALL))
            return make(path, options, **rest)

        monkeypatch.setattr(onnxruntime, "InferenceSession", noted)


async def start(folder: Path, here: Machine = HERE) -> tuple[BakedFolder, list[Opened]]:
    """Describe and open all models of a baked folder, as a node does."""
    baked = BakedFolder.read(folder, here)
    loader = Loader(
        {"onnx": OnnxRuntime()}, ServerConfig(), here.cores, time.perf_counter,
        prepared=baked.prepared,
    )  # fmt: skip
    opened = []
    for model in scan(folder):
        for version in model.versions:
            manifest = describe(model, version, OnnxRuntime(), baked.manifest_of)
            opened.append(await loader.open(manifest, version.folder))
    return baked, opened


def bake(bakery: Bakery, source: Path, target: Path) -> Path:
    bakery.bake([source], target)
    return target


def test_a_start_from_a_baked_folder_compiles_and_measures_nothing_again(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repository = write_model("sums", add_and_subtract())
    write_model("plain", identity())
    folder = tmp_path / "baked"
    index = bakery.bake([repository], folder)
    sessions = Sessions(monkeypatch)
    for name in ("measure_profile", "why_not_joined_process"):
        monkeypatch.setattr(loading, name, None, raising=False)  # whoever calls it fails
    baked, opened = asyncio.run(start(folder))
    assert baked.warnings == ()
    assert sessions.made == [("graph-cpu.onnx", False)] * 2
    assert [each.profile for each in opened] == [
        each.measured.profile for each in index.versions if each.measured
    ]
    assert [each.apart for each in opened] == ["", ""]


async def test_without_baking_the_same_start_compiles_each_model_more_than_once(
    write_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would see if nothing of a baked folder were used."""
    repository = write_model("plain", identity())
    sessions = Sessions(monkeypatch)
    loader = Loader({"onnx": OnnxRuntime()}, ServerConfig(), 4, time.perf_counter)
    (model,) = scan(repository)
    manifest = describe(model, model.versions[0], OnnxRuntime())
    await loader.open(manifest, model.versions[0].folder)
    assert sessions.made == [("model.onnx", True)] * len(sessions.made)
    assert len(sessions.made) >= 2


def test_on_another_processor_all_is_compiled_anew_with_one_warning(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    sessions = Sessions(monkeypatch)
    there = replace(HERE, features="other", processor="Slow 1")
    baked, opened = asyncio.run(start(folder, there))
    (warning,) = baked.warnings
    assert "compiled and measured anew" in warning
    assert "the processor (Slow 1) has other instruction sets than Fast 9" in warning
    assert all(each == ("model.onnx", True) for each in sessions.made)
    assert opened[0].profile


def test_on_a_slower_machine_of_the_same_build_only_times_are_measured_anew(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    sessions = Sessions(monkeypatch)
    asked: list[str] = []
    measure = warmup.measure_profile

    def noted(manifest: Manifest, *rest: Any) -> Profile:
        asked.append(manifest.model)
        return measure(manifest, *rest)

    monkeypatch.setattr(loading, "measure_profile", noted)
    baked, _ = asyncio.run(start(folder, replace(HERE, cores=1)))
    (warning,) = baked.warnings
    assert "measured anew (nothing is compiled)" in warning
    assert "1 cores may be used here and were 4" in warning
    assert set(sessions.made) == {("graph-cpu.onnx", False)}
    assert asked == ["plain"]


def test_a_model_that_was_changed_since_is_opened_anew(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    (folder / "plain" / "1" / "model.onnx").write_bytes(add_and_subtract())
    baked, opened = asyncio.run(start(folder))
    assert [spec.name for spec in opened[0].instances[0].model.inputs] == ["a", "b"]
    (found,) = scan(folder)
    manifest = describe(found, found.versions[0], OnnxRuntime(), baked.manifest_of)
    assert baked.prepared(manifest) is None


def test_a_changed_configuration_counts_although_the_files_are_the_same(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    (folder / "plain" / "config.pbtxt").write_text(
        'input [{name: "x" data_type: TYPE_FP64 dims: [-1, 2]}]'
    )
    with pytest.raises(ModelError, match="FP64"):
        asyncio.run(start(folder))


def test_a_damaged_graph_is_never_opened(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = bake(bakery, write_model("plain"), tmp_path / "baked")
    (graph,) = folder.rglob("graph-cpu.onnx")
    graph.write_bytes(graph.read_bytes()[:-1])
    sessions = Sessions(monkeypatch)
    _, opened = asyncio.run(start(folder))
    assert opened[0].instances
    assert ("graph-cpu.onnx", False) not in sessions.made
    assert "graph-cpu.onnx" in caplog.text
    assert "is damaged" in caplog.text


async def test_a_graph_that_does_not_open_costs_the_time_and_not_the_model(
    tmp_path: Path, write_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    (model,) = scan(write_model("plain"))
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    (graphs / "graph-cpu.onnx").write_bytes(b"no graph")
    loader = Loader(
        {"onnx": OnnxRuntime()}, ServerConfig(), 1, time.perf_counter,
        prepared=lambda _manifest: Prepared(graphs),
    )  # fmt: skip
    manifest = describe(model, model.versions[0], OnnxRuntime())
    assert (await loader.open(manifest, model.versions[0].folder)).instances
    assert "its baked graph cannot be opened, so it is optimised anew" in caplog.text


def test_external_data_is_in_the_graph_that_was_baked(bakery: Bakery, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big.onnx").write_bytes(external("big.onnx.data"))
    (source / "big.onnx.data").write_bytes(bytes(8))
    folder = bake(bakery, source / "big.onnx", tmp_path / "baked")
    (version,) = read_index((folder / ".baked/index.json").read_bytes()).versions
    assert version.notes == ()
    assert [*version.graphs] == ["graph-cpu.onnx"]
    _, opened = asyncio.run(start(folder))
    assert opened[0].instances


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"no graph", "it cannot be opened again"), (None, "output 'y' differs")],
)
def test_a_graph_that_is_not_the_model_is_not_kept(
    bakery: Bakery,
    write_model: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    reason: str,
) -> None:
    """As an optimiser with a mistake would leave it."""
    other = onnx_model(
        [helper.make_node("Neg", ["x"], ["y"])],
        {"x": (TensorProto.FLOAT, ("n", 2))},
        {"y": (TensorProto.FLOAT, ("n", 2))},
    )
    make = onnxruntime.InferenceSession

    def spoilt(path: str, options: Any, **rest: Any) -> Any:
        session = make(path, options, **rest)
        if options.optimized_model_filepath:
            Path(options.optimized_model_filepath).write_bytes(content or other)
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", spoilt)
    (version,) = bakery.bake([write_model("plain")], tmp_path / "baked").versions
    assert version.notes == (f"the optimised graph is not kept: {reason}",)
    assert version.graphs == {}
    assert not [*(tmp_path / "baked").rglob("graph-*.onnx")]
    assert version.measured is not None


async def test_known_times_are_taken_over_with_a_single_run(fake: FakeRuntime) -> None:
    known = Measured(first_s=0.5, pace=Pace.LONG, profile=((1, 500.0),), apart="rows differ")
    loader = Loader(
        {"fake": fake}, ServerConfig(), 4, fake.clock,
        prepared=lambda _manifest: Prepared(measured=known),
    )  # fmt: skip
    opened = await loader.open(fake.manifest, NOWHERE)
    assert [model.runs for model in fake.loaded] == [1]
    assert fake.loaded[0].threads == 4
    assert (opened.profile, opened.apart, opened.pace) == (((1, 500.0),), "rows differ", Pace.LONG)
    assert opened.run_time.expected_s(1) == 0.5


async def test_what_the_code_of_a_model_kept_is_copied_once_and_is_then_the_nodes_own(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    (kept / "engine").mkdir(parents=True)
    (kept / "engine" / "plan").write_text("compiled")
    loader = Loader(
        {"fake": fake}, ServerConfig(), 1, fake.clock, lambda digest: tmp_path / "own" / digest,
        lambda _manifest: Prepared(cache=kept),
    )  # fmt: skip
    await loader.open(fake.manifest, NOWHERE)
    own = tmp_path / "own" / fake.manifest.digest / "engine" / "plan"
    assert own.read_text() == "compiled"
    own.write_text("compiled again")
    await loader.open(fake.manifest, NOWHERE)
    assert own.read_text() == "compiled again"


PIPELINE = """
import os

class Pipeline:
    def compile(self):
        place = os.path.join("exe_cache", "compiled")
        self.found = os.path.exists(place)
        if not self.found:
            os.makedirs("exe_cache")
            os.makedirs(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            for file in (place, os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], "kernel.so")):
                with open(file, "w") as written:
                    written.write("compiled")

    def __call__(self, inputs):
        return {"found": self.found}
"""


def start_pipeline(folder: Path, kept: Path, *, baked: bool) -> dict[str, Any]:
    """Start the pipeline as a node does, with `kept` for what versions keep; return what it answers."""

    async def nobody(_: InferRequest) -> InferResponse:
        raise AssertionError

    async def started() -> dict[str, Any]:
        workers = WorkerSettings(own_folders=(folder,))
        runtimes = all_runtimes(
            Environment(infer=nobody, manifest_of=lambda _name, _version: None, workers=workers)
        )
        prepared = BakedFolder.read(folder, HERE).prepared if baked else lambda _manifest: None
        loader = Loader(
            runtimes, ServerConfig(), 1, time.perf_counter, lambda digest: kept / digest, prepared
        )
        (model,) = scan(folder)
        manifest = describe(model, model.versions[0], runtimes["python"])
        opened = await loader.open(manifest, model.versions[0].folder)
        process = opened.instances[0].model
        assert isinstance(process, ProcessModel)
        try:
            request = InferRequest(
                "maker", (Tensor("request", DataType.BYTES, (1,), pack_strings([b"{}"])),)
            )
            (outcome,) = await process.execute([request])
            assert not isinstance(outcome, MeshError), outcome
            tensors = outcome.outputs if isinstance(outcome, ResponsePart) else outcome
            found: dict[str, Any] = json.loads(bytes(tensors[0].data)[4:])
            return found
        finally:
            await process.close()

    return asyncio.run(started())


@pytest.mark.slow
def test_what_a_python_model_compiled_is_there_at_its_next_start(
    bakery: Bakery, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "maker").mkdir(parents=True)
    (source / "maker" / "pipeline.py").write_text(PIPELINE)
    folder = bake(bakery, source, tmp_path / "baked")
    (version,) = read_index((folder / ".baked/index.json").read_bytes()).versions
    kept = BakedFolder.read(folder, HERE).prepared(version.manifest)
    assert kept is not None
    assert kept.cache is not None
    files = [path for path in kept.cache.rglob("*") if not path.is_dir()]
    assert sorted(path.name for path in files) == ["compiled", "kernel.so"]
    assert not any(path.is_symlink() for path in files)  # they would lead to where it was baked
    assert start_pipeline(folder, tmp_path / "a", baked=True) == {"found": True}
    assert start_pipeline(folder, tmp_path / "b", baked=False) == {"found": False}


def test_a_model_that_cannot_be_served_leaves_nothing_behind(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    repository = write_model("good")
    write_model("bad", b"no model")
    with pytest.raises(ModelError, match="bad"):
        bakery.bake([repository], tmp_path / "out" / "baked")
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_model_that_refuses_zeros_is_baked_unmeasured(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    index = bakery.bake([write_model("quotient", quotient())], tmp_path / "baked")
    (version,) = index.versions
    assert version.measured == Measured(first_s=0.0, apart=version.measured.apart)  # type: ignore[union-attr]
    assert [*version.graphs] == ["graph-cpu.onnx"]


def test_two_models_of_one_name_and_a_folder_in_use_are_refused(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    repository = write_model("plain")
    other = tmp_path / "other"
    shutil.copytree(repository, other)
    with pytest.raises(ConfigError, match="both called 'plain'"):
        bakery.bake([repository, other], tmp_path / "baked")
    with pytest.raises(ConfigError, match="exists already"):
        bakery.bake([repository], other)


def test_links_that_lead_out_of_a_model_and_hidden_files_are_not_taken_along(
    bakery: Bakery, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    repository = write_model("plain")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    (repository / "plain" / "1" / "stolen.txt").symlink_to(secret)
    (repository / "plain" / "1" / ".token").write_text("mine")
    folder = bake(bakery, repository, tmp_path / "baked")
    assert sorted(path.name for path in (folder / "plain" / "1").iterdir()) == ["model.onnx"]
