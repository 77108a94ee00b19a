"""A node's own folder that was baked: used where it fits, as a folder, as an archive, and for deployed versions."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest

from meshnode.daemon.artifacts import Artifacts
from meshnode.daemon.model_calls import worker_settings
from meshnode.daemon.model_folder import SOURCES_FOLDER, ModelFolder
from meshnode.daemon.own_models import OwnModels
from meshnode.daemon.replicas import ReplicaReports
from meshnode.effects import LoadModel
from meshnode.errors import ModelError
from meshnode.models.artifacts.store import BlobStore
from meshnode.models.baking.baking import Bakery
from meshnode.models.baking.machine import machine_here
from meshnode.models.baking.packing import pack
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.node_events import ReplicaChanged
from meshnode.options import JoinOptions
from meshnode.types import Address, NodeId, ReplicaState

if TYPE_CHECKING:
    from meshnode.models.baking.index import Index

NOWHERE = Address("127.0.0.1", 0)
DIGITS = Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx"


class Kitchen:
    """A baked folder, and a node that starts with it."""

    def __init__(self, folder: Path, index: Index, baked: Path) -> None:
        self.folder = folder
        self.index = index
        self.baked = baked
        self.told: list[Any] = []
        self.server = ModelServer({"onnx": OnnxRuntime()}, cores=machine_here().cores)

    async def start(self, place: Path) -> OwnModels:
        tell = self.told.append
        runtimes = {"onnx": OnnxRuntime()}
        models = OwnModels(self.server, ReplicaReports(self.server, tell), runtimes, tell)
        await self.follow(models, place).look()
        return models

    def follow(self, models: OwnModels, place: Path) -> ModelFolder:
        return ModelFolder(
            str(place), models, copies=self.folder / "copies", poll_s=0, now=time.monotonic
        )

    def states(self) -> dict[str, str]:
        return {
            each.manifest.model: each.state
            for each in self.told
            if isinstance(each, ReplicaChanged)
        }


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    baked = tmp_path / "baked"
    index = Bakery().bake([DIGITS], baked)
    return Kitchen(tmp_path, index, baked)


def was_baked(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("is opened from the graph that was baked")


@pytest.fixture(autouse=True)
def _all_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="meshnode")


@pytest.mark.parametrize("kind", ["folder", "digits.tar", "digits.tgz"])
async def test_a_node_starts_from_what_was_baked(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    place = kitchen.baked
    if kind != "folder":
        place = kitchen.folder / kind
        pack(kitchen.baked, place)
        shutil.rmtree(kitchen.baked)
    await kitchen.start(place)
    assert kitchen.states() == {"digits": "ready"}
    assert was_baked(caplog) == 1
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    (status,) = kitchen.server.states()
    assert status.manifest == kitchen.index.versions[0].manifest


async def test_an_index_that_cannot_be_read_costs_time_and_not_the_models(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    (kitchen.baked / ".baked" / "index.json").write_text("{")
    await kitchen.start(kitchen.baked)
    assert kitchen.states() == {"digits": "ready"}
    assert was_baked(caplog) == 0
    assert "so its models are compiled anew" in caplog.text


async def test_an_archive_that_is_replaced_is_served_anew_and_the_old_copy_goes(
    kitchen: Kitchen,
) -> None:
    archive = kitchen.folder / "models.tar"
    pack(kitchen.baked, archive)
    tell = kitchen.told.append
    runtimes = {"onnx": OnnxRuntime()}
    models = OwnModels(kitchen.server, ReplicaReports(kitchen.server, tell), runtimes, tell)
    folder = kitchen.follow(models, archive)
    await folder.look()
    (kitchen.baked / "digits.onnx").rename(kitchen.baked / "numbers.onnx")
    archive.unlink()
    pack(kitchen.baked, archive)
    for _ in range(3):
        await folder.look()
    assert kitchen.states()["numbers"] == "ready"
    assert len([*(kitchen.folder / "copies").glob("*/*")]) == 1


async def test_an_archive_that_cannot_be_unpacked_is_told_and_leaves_nothing(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    archive = kitchen.folder / "models.tar"
    archive.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="no tar file that can be read"):
        await kitchen.start(archive)
    assert [*(kitchen.folder / "copies").glob("*/*")] == []


def test_code_in_an_archive_of_the_owner_may_run_as_in_a_folder(tmp_path: Path) -> None:
    archive = tmp_path / "models.tar"
    archive.write_bytes(b"")
    options = JoinOptions(
        invite=None, name="anna", region="eu", zone="", labels=(), listen=NOWHERE, http=None,
        data_dir=str(tmp_path), models=str(archive), new=False, mdns=False,
    )  # fmt: skip
    settings = worker_settings(options, tmp_path / "data", 10**9)
    assert settings.why_refused(tmp_path / "data" / SOURCES_FOLDER / "x" / "models") == ""
    assert settings.why_refused(tmp_path / "elsewhere") != ""


class NoPeers:
    """Nobody who could send anything."""


async def test_a_deployed_version_that_was_baked_neither_travels_nor_is_compiled(
    kitchen: Kitchen, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name, version and provenance may be others: what counts is that the files and settings are the same."""
    store = BlobStore(kitchen.folder / "data")
    told: list[Any] = []
    artifacts = Artifacts(
        store=store, models=kitchen.server, peers=cast("Any", NoPeers()), linked=lambda: (),
        tell=told.append, keep=list, runtimes={"onnx": OnnxRuntime()}, name_of=str,
        me=NodeId("a" * 32),
    )  # fmt: skip
    manifest = kitchen.index.versions[0].manifest
    await kitchen.follow(artifacts.own, kitchen.baked).look()
    deployed = msgspec.structs.replace(manifest, model="numbers", version=7)
    artifacts.load(LoadModel(deployed.model, deployed.version, deployed.digest, ()), deployed)
    async with asyncio.timeout(20):
        while not kitchen.server.serves("numbers", 7):
            assert ReplicaState.FAILED not in [getattr(each, "state", None) for each in told], told
            await asyncio.sleep(0.01)
    assert was_baked(caplog) == 2
    await artifacts.close()
