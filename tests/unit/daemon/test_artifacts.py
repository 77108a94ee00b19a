"""Bringing models here: from whoever has them, verified, resumed, once."""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import artifacts as artifacts_module
from meshnode.daemon.artifacts import Artifacts
from meshnode.effects import LoadModel
from meshnode.errors import LinkLost, MeshError, ModelError, TransferFailed
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.models.repository import scan
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.store import BlobStore
from meshnode.node import ReplicaChanged, ReplicaGone
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.server import ModelServer
    from meshnode.net.peers import BlobSink, PeerClient

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).digest()


def manifest(name: str = "m", version: int = 1) -> Manifest:
    files = (FileEntry("model.onnx", len(CONTENT), SHA256),)
    return Manifest(name, version, "onnx", "onnxruntime_onnx", (), (), 0, files, "model.onnx")


class FakePeers:
    """Each node sends what the test says: bytes of the file, then an error or the end."""

    def __init__(self) -> None:
        self.sends: dict[str, tuple[bytes, MeshError | None]] = {}
        self.asked: list[tuple[str, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch_blob(self, node: NodeId, sha256: bytes, sink: BlobSink) -> None:
        self.asked.append((node, sink.offset))
        await self.gate.wait()
        content, error = self.sends.get(node, (b"", TransferFailed("it is not here")))
        sink.write(memoryview(content[sink.offset :]))
        if error is not None:
            raise error


class FakeModels:
    def __init__(self) -> None:
        self.loads: list[Path] = []
        self.unloads: list[tuple[str, int]] = []
        self.state = ReplicaState.READY
        self.fails: Exception | None = None

    async def load(self, manifest: Manifest, folder: Path) -> Any:
        if self.fails is not None:
            raise self.fails
        self.loads.append(folder)
        return SimpleNamespace(state=self.state, reason="it does not open")

    async def unload(self, model: str, version: int) -> None:
        self.unloads.append((model, version))

    def load_report(self, model: str, version: int) -> LoadReport:
        return LoadReport(0, 4, 1.5)


class Setup:
    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder)
        self.peers = FakePeers()
        self.models = FakeModels()
        self.told: list[ReplicaChanged | ReplicaGone] = []
        self.kept: list[Manifest] = []
        self.artifacts = Artifacts(
            store=self.store,
            models=cast("ModelServer", self.models),
            peers=cast("PeerClient", self.peers),
            linked=lambda: [NodeId("holder"), NodeId("other")],
            tell=cast("Callable[[Any], None]", self.told.append),
            keep=lambda: self.kept,
            runtime=OnnxRuntime(),
            name_of=lambda node: f"<{node}>",
        )

    def load(self, made: Manifest, *holders: str) -> None:
        effect = LoadModel(made.model, made.version, made.digest, tuple(map(NodeId, holders)))
        self.artifacts.load(effect, made)

    async def outcome(self) -> ReplicaChanged:
        def last() -> bool:
            return bool(self.told) and not self.artifacts._tasks

        await eventually(last)
        changed = self.told[-1]
        assert isinstance(changed, ReplicaChanged)
        return changed


@pytest.fixture
async def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_a_model_is_fetched_from_its_holder_and_loaded(setup: Setup) -> None:
    setup.peers.sends["holder"] = (CONTENT, None)
    setup.load(manifest(), "holder")
    ready = await setup.outcome()
    assert (ready.state, ready.slots, ready.service_ms) == (ReplicaState.READY, 4, 1.5)
    assert (setup.models.loads[0] / "model.onnx").read_bytes() == CONTENT
    states = [each.state for each in setup.told if isinstance(each, ReplicaChanged)]
    assert states == [ReplicaState.LOADING, ReplicaState.READY]
    setup.load(manifest(), "holder")
    await setup.outcome()
    assert setup.peers.asked == [("holder", 0)]  # it is here now


async def test_the_next_holder_continues_where_the_last_one_stopped(setup: Setup) -> None:
    setup.peers.sends["holder"] = (CONTENT[:1000], LinkLost("cut"))
    setup.peers.sends["other"] = (CONTENT, None)
    setup.load(manifest(), "holder")
    assert (await setup.outcome()).state is ReplicaState.READY
    assert setup.peers.asked == [("holder", 0), ("other", 1000)]


async def test_a_holder_that_sends_something_else_is_passed_over(setup: Setup) -> None:
    setup.peers.sends["holder"] = (bytes(len(CONTENT)), None)
    setup.peers.sends["other"] = (CONTENT, None)
    setup.load(manifest(), "holder", "other")
    assert (await setup.outcome()).state is ReplicaState.READY
    assert setup.peers.asked == [("holder", 0), ("other", 0)]


async def test_where_nobody_has_it_each_is_named_with_why(setup: Setup) -> None:
    setup.load(manifest(), "gone")
    failed = await setup.outcome()
    assert failed.state is ReplicaState.FAILED
    assert failed.deployed
    assert "<gone>: it is not here; <holder>: it is not here; <other>:" in failed.reason


async def test_two_models_that_share_a_file_fetch_it_once(setup: Setup) -> None:
    setup.peers.sends["holder"] = (CONTENT, None)
    setup.peers.gate.clear()
    setup.load(manifest("one"), "holder")
    setup.load(manifest("two"), "holder")
    await eventually(lambda: setup.peers.asked)
    setup.peers.gate.set()
    await setup.outcome()
    assert setup.peers.asked == [("holder", 0)]
    ready = {each.manifest.model for each in setup.told
             if isinstance(each, ReplicaChanged) and each.state is ReplicaState.READY}  # fmt: skip
    assert ready == {"one", "two"}
    assert not setup.artifacts._fetching


async def test_a_model_that_does_not_open_has_failed(setup: Setup) -> None:
    setup.peers.sends["holder"] = (CONTENT, None)
    setup.models.state = ReplicaState.FAILED
    setup.load(manifest(), "holder")
    failed = await setup.outcome()
    assert (failed.state, failed.reason) == (ReplicaState.FAILED, "it does not open")


async def test_a_mistake_while_loading_is_logged_and_the_replica_has_failed(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.peers.sends["holder"] = (CONTENT, None)
    setup.models.fails = ZeroDivisionError("oh")
    setup.load(manifest(), "holder")
    failed = await setup.outcome()
    assert failed.state is ReplicaState.FAILED
    assert "ZeroDivisionError" in failed.reason
    assert "loading or unloading a model failed" in caplog.text


async def test_unloading_waits_for_gateways_to_hear_and_removes_what_nobody_wants(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_module, "UNLOAD_GRACE_S", 0.05)
    monkeypatch.setattr(setup.store, "collect", partial(setup.store.collect, min_age_s=-1.0))
    setup.peers.sends["holder"] = (CONTENT, None)
    setup.load(manifest(), "holder")
    await setup.outcome()
    setup.artifacts.unload(manifest())
    assert setup.models.unloads == []
    await eventually(lambda: not setup.artifacts._tasks)
    assert setup.models.unloads == [("m", 1)]
    assert setup.told[-1] == ReplicaGone("m", 1)
    assert not setup.store.has(SHA256)


async def test_nothing_is_removed_while_something_is_published(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_module, "UNLOAD_GRACE_S", 0.0)
    monkeypatch.setattr(setup.store, "collect", partial(setup.store.collect, min_age_s=-1.0))
    (model,) = scan(DIGITS)

    async def deploy() -> None:
        setup.kept += await setup.artifacts.publish(model)

    deploying = asyncio.ensure_future(deploy())
    await eventually(setup.artifacts._publishing.locked)
    setup.artifacts.unload(manifest())
    await deploying
    await eventually(lambda: not setup.artifacts._tasks)
    (published,) = setup.kept
    assert setup.store.has(published.files[0].sha256)


async def test_closing_gives_up_what_is_under_way(setup: Setup) -> None:
    setup.peers.gate.clear()
    setup.load(manifest(), "holder")
    await eventually(lambda: setup.peers.asked)
    await setup.artifacts.close()
    assert setup.told == []
    assert not setup.store._receiving


async def test_a_folder_of_models_is_loaded_and_each_bad_one_reported(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = tmp_path / "own"
    for name, content in (("good", DIGITS.read_bytes()), ("bad", b"no model"), ("odd", b"x")):
        (models / name / "1").mkdir(parents=True)
        (models / name / "1" / "model.onnx").write_bytes(content)
    (models / "odd" / "config.pbtxt").write_text("foo: 1\n")
    await setup.artifacts.load_folder(models)
    outcome = {
        each.manifest.model: (each.state, each.deployed)
        for each in setup.told
        if isinstance(each, ReplicaChanged)
    }
    assert outcome["bad"] == (ReplicaState.FAILED, False)
    assert outcome["odd"] == (ReplicaState.FAILED, False)
    assert outcome["good"] == (ReplicaState.READY, False)
    assert "cannot be served" in caplog.text
    with pytest.raises(ModelError):
        await setup.artifacts.load_folder(tmp_path / "nowhere")
