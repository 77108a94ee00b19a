"""Bringing models here, and taking them away."""

from __future__ import annotations

import asyncio
import hashlib
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import artifacts as artifacts_module
from meshnode.daemon.artifacts import Artifacts
from meshnode.daemon.disk_room import DiskRoom
from meshnode.effects import LoadModel
from meshnode.errors import TransferFailed
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.models.repository.scanning import scan
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ReplicaDetails
from meshnode.node_events import FilesHere, ReplicaChanged, ReplicaGone
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport
from tests.unit.daemon.conftest import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.serving.server import ModelServer
    from meshnode.net.peers import PeerClient

DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"
CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).digest()


def manifest(name: str = "m", version: int = 1) -> Manifest:
    files = (FileEntry("model.onnx", len(CONTENT), SHA256),)
    return Manifest(name, version, "onnx", "onnxruntime_onnx", (), (), 0, files, "model.onnx")


class FakePeers:
    """Each node has the file, if the test says so."""

    def __init__(self) -> None:
        self.has: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def ask_files(
        self, node: NodeId, names: Sequence[bytes], known: int, wait_s: float
    ) -> tuple[int, tuple[bytes | None, ...]]:
        return 0, tuple(None if node in self.has else b"" for _ in names)

    async def fetch_part(self, node: NodeId, sha256: bytes, offset: int, length: int) -> bytes:
        self.asked.append(node)
        await self.gate.wait()
        return self.has[node][offset : offset + length]


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

    def details(self, model: str, version: int) -> ReplicaDetails:
        return ReplicaDetails("cpu", 1, "", ((1, 1.5),))

    def serves(self, model: str, version: int) -> bool:
        return False


class Setup:
    def __init__(self, folder: Path) -> None:
        self.store = BlobStore(folder)
        self.peers = FakePeers()
        self.models = FakeModels()
        self.told: list[ReplicaChanged | ReplicaGone | FilesHere] = []
        self.kept: list[Manifest] = []
        self.artifacts = Artifacts(
            store=self.store,
            models=cast("ModelServer", self.models),
            peers=cast("PeerClient", self.peers),
            linked=lambda: [NodeId("holder"), NodeId("other")],
            tell=cast("Callable[[Any], None]", self.told.append),
            keep=lambda: self.kept,
            runtimes={"onnx": OnnxRuntime()},
            name_of=lambda node: f"<{node}>",
            me=NodeId("me"),
        )

    def load(self, made: Manifest, *holders: str) -> None:
        effect = LoadModel(made.model, made.version, made.digest, tuple(map(NodeId, holders)))
        self.artifacts.load(effect, made)

    async def outcome(self) -> ReplicaChanged:
        def last() -> bool:
            return bool(self.told) and not self.artifacts._tasks

        await eventually(last)
        changed = next(each for each in reversed(self.told) if not isinstance(each, FilesHere))
        assert isinstance(changed, ReplicaChanged)
        return changed


@pytest.fixture
async def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


async def test_a_model_is_fetched_from_its_holder_and_loaded(setup: Setup) -> None:
    setup.peers.has["holder"] = CONTENT
    setup.load(manifest(), "holder")
    ready = await setup.outcome()
    assert (ready.state, ready.slots, ready.service_ms) == (ReplicaState.READY, 4, 1.5)
    assert (setup.models.loads[0] / "model.onnx").read_bytes() == CONTENT
    states = [each.state for each in setup.told if isinstance(each, ReplicaChanged)]
    assert states == [ReplicaState.LOADING, ReplicaState.READY]
    setup.load(manifest(), "holder")
    await setup.outcome()
    assert setup.peers.asked == ["holder"]  # it is here now


async def test_which_files_are_here_is_told_when_that_has_changed(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_module, "UNLOAD_GRACE_S", 0.05)
    monkeypatch.setattr(setup.store, "collect", partial(setup.store.collect, min_age_s=-1.0))
    setup.kept.append(manifest())
    setup.peers.has["holder"] = CONTENT
    for _ in range(2):
        setup.load(manifest(), "holder")
        await setup.outcome()
    setup.kept.clear()  # it is deployed no more
    setup.artifacts._room = DiskRoom(setup.store, 2)  # bytes: no room for what nobody wants
    setup.artifacts.unload(manifest())
    await eventually(lambda: not setup.artifacts._tasks)
    told = [each.digests for each in setup.told if isinstance(each, FilesHere)]
    assert told == [frozenset({manifest().digest}), frozenset()]


async def test_where_nobody_has_it_each_is_named_with_why(setup: Setup) -> None:
    setup.load(manifest(), "gone")
    failed = await setup.outcome()
    assert failed.state is ReplicaState.FAILED
    assert failed.deployed
    absent = "it has none of the files"
    assert f"<gone>: {absent}; <holder>: {absent}; <other>: {absent}" in failed.reason


async def test_two_models_that_share_a_file_fetch_it_once(setup: Setup) -> None:
    setup.peers.has["holder"] = CONTENT
    setup.peers.gate.clear()
    setup.load(manifest("one"), "holder")
    setup.load(manifest("two"), "holder")
    await eventually(lambda: setup.peers.asked)
    setup.peers.gate.set()
    await setup.outcome()
    assert setup.peers.asked == ["holder"]
    ready = {each.manifest.model for each in setup.told
             if isinstance(each, ReplicaChanged) and each.state is ReplicaState.READY}  # fmt: skip
    assert ready == {"one", "two"}
    assert not setup.artifacts._fetcher._locks


async def test_a_model_that_does_not_open_has_failed(setup: Setup) -> None:
    setup.peers.has["holder"] = CONTENT
    setup.models.state = ReplicaState.FAILED
    setup.load(manifest(), "holder")
    failed = await setup.outcome()
    assert (failed.state, failed.reason) == (ReplicaState.FAILED, "it does not open")


async def test_a_mistake_while_loading_is_logged_and_the_replica_has_failed(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.peers.has["holder"] = CONTENT
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
    setup.peers.has["holder"] = CONTENT
    setup.load(manifest(), "holder")
    await setup.outcome()
    setup.artifacts._room = DiskRoom(setup.store, 2)  # bytes: no room for what nobody wants
    setup.artifacts.unload(manifest())
    assert setup.models.unloads == []
    await eventually(lambda: not setup.artifacts._tasks)
    assert setup.models.unloads == [("m", 1)]
    assert setup.told[-1] == ReplicaGone("m", 1)
    assert not setup.store.has(SHA256)


async def test_caches_go_with_their_versions_once_it_is_known_whose_they_are(setup: Setup) -> None:
    setup.kept = [manifest()]
    caches = setup.store.caches
    for digest in (manifest().digest, "former"):
        (caches.root / digest).mkdir(parents=True)
        os.utime(caches.root / digest, (1, 1))
    setup.artifacts.own.is_settled = False  # the node's own folder has not been looked at
    await setup.artifacts.sweep_caches()
    assert len([*caches.root.iterdir()]) == 2
    setup.artifacts.own.is_settled = True
    await setup.artifacts.sweep_caches()
    assert [each.name for each in caches.root.iterdir()] == [manifest().digest]


async def test_a_node_looks_for_caches_that_nobody_wants_now_and_then(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts_module, "CACHE_SWEEP_S", 0.01)
    former = setup.store.caches.root / "former"
    former.mkdir(parents=True)
    os.utime(former, (1, 1))
    tending = asyncio.ensure_future(setup.artifacts.tend())
    await eventually(lambda: not former.exists())
    tending.cancel()


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
    setup.peers.has["holder"] = CONTENT
    setup.peers.gate.clear()
    setup.load(manifest(), "holder")
    await eventually(lambda: setup.peers.asked)
    assert setup.artifacts.is_fetching
    await setup.artifacts.close()
    assert setup.told == []
    assert not setup.store._receiving
    assert not setup.artifacts.is_fetching


async def test_a_file_that_is_found_damaged_while_it_is_sent_is_fetched_again(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    setup.store.add_file(source)
    wanted = manifest()
    folder = setup.store.materialise(wanted)
    setup.kept.append(wanted)
    setup.peers.has["other"] = CONTENT
    setup.store.path(SHA256).write_bytes(bytes(len(CONTENT)))
    with pytest.raises(TransferFailed, match="damaged"):
        await asyncio.to_thread(setup.store.read_chunk, SHA256, 0, 100)
    await eventually(lambda: "are right again" in caplog.text)
    assert setup.store.read_chunk(SHA256, 0, 100) == CONTENT[:100]
    assert (folder / "model.onnx").read_bytes() == CONTENT
    assert "a file of version 1 of m is damaged" in caplog.text


async def test_a_damaged_file_that_nobody_else_has_is_told_with_what_to_do(
    setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    setup.kept.append(manifest())
    setup.artifacts.damaged(SHA256)
    await eventually(lambda: "publish it again from its source" in caplog.text)
