"""What becomes of replicas is told to the cores; memory is watched for the models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.advertisement import ShownReplica
from meshnode.daemon.memory_watch import MemoryWatch
from meshnode.daemon.replicas import ReplicaReports
from meshnode.errors import NotServing
from meshnode.limits import PRESSURE_STEADY_S
from meshnode.models.manifest import FileEntry, Manifest
from meshnode.models.serving.server import ReplicaDetails, ReplicaStatus
from meshnode.node_events import ReplicaChanged
from meshnode.types import ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.serving.server import ModelServer

READY, FAILED, LOADING, UNLOADING = (
    ReplicaState.READY, ReplicaState.FAILED, ReplicaState.LOADING, ReplicaState.UNLOADING,
)  # fmt: skip
FOLDER = Path("nowhere")


def manifest(content: str = "weights") -> Manifest:
    files = (FileEntry(content, 1, bytes(32)),)
    return Manifest("m", 1, "onnx", "onnxruntime_onnx", (), (), 0, files, content)


class Models:
    """A model server that does what the test says."""

    def __init__(self) -> None:
        self.on_change: Callable[[str, int, ReplicaState, str], None] = lambda *_: None
        self.room_bytes: Callable[[], int | None] = lambda: None
        self.fails = ""
        self.goes_first = False
        self.serving = False
        self.unloads = 0
        self.levels: list[int] = []

    async def load(self, made: Manifest, folder: Path) -> ReplicaStatus:
        assert folder == FOLDER
        if self.goes_first:
            self.on_change("m", 1, UNLOADING, "")
            self.serving = False
        if self.fails:
            return ReplicaStatus(made, FAILED, self.fails)
        self.serving = True
        self.on_change("m", 1, READY, "")
        return ReplicaStatus(made, READY)

    async def unload(self, model: str, version: int) -> None:
        self.unloads += 1
        self.serving = False

    def serves(self, model: str, version: int) -> bool:
        return self.serving

    def load_report(self, model: str, version: int) -> LoadReport:
        if not self.serving:
            raise NotServing("it went")
        return LoadReport(0, 4, 1.5)

    def details(self, model: str, version: int) -> ReplicaDetails:
        profile = ((1, 1.25), (2, 2.0))
        return ReplicaDetails("cpu", 2, "adaptive", profile, "restarted once, last: it died")

    def under_pressure(self, level: int) -> None:
        self.levels.append(level)


class Stage:
    def __init__(self, too_large: str = "") -> None:
        self.models = Models()
        self.told: list[ReplicaChanged] = []
        self.reports = ReplicaReports(
            cast("ModelServer", self.models),
            cast("Callable[[Any], None]", self.told.append),
            lambda: too_large,
        )

    async def bring_up(self, made: Manifest | None = None) -> list[ReplicaChanged]:
        self.told.clear()
        await self.reports.bring_up(made or manifest(), FOLDER, deployed=True)
        return self.told


async def test_a_ready_replica_is_told_with_its_profile_and_what_people_see() -> None:
    stage = Stage()
    loading, ready = await stage.bring_up()
    assert (loading.state, loading.replaces) == (LOADING, True)
    assert ready == ReplicaChanged(
        manifest(), READY, slots=4, service_ms=1.25, profile=((1, 1.25), (2, 2.0)),
        shown=ShownReplica("cpu", 2, "adaptive", "restarted once, last: it died"),
    )  # fmt: skip
    assert repr(stage.reports) == "<ReplicaReports 1 up, 0 on their way>"


@pytest.mark.parametrize("serves", [True, False])
async def test_a_failure_says_whether_the_old_files_serve_on(serves: bool) -> None:
    stage = Stage()
    stage.models.fails, stage.models.serving = "damaged", serves
    *_, failed = await stage.bring_up()
    assert (failed.state, failed.reason, failed.replaces) == (FAILED, "damaged", serves)


async def test_old_files_that_go_first_are_told_to_be_gone_at_once() -> None:
    stage = Stage()
    await stage.bring_up()
    stage.models.goes_first = True
    edited = manifest("edited")
    states = [(each.state, each.replaces) for each in await stage.bring_up(edited)]
    assert states == [(LOADING, True), (LOADING, False), (READY, True)]
    assert all(each.manifest == edited for each in stage.told)


async def test_what_turns_out_too_large_goes_again() -> None:
    stage = Stage("with it loaded this node used too much")
    *_, failed = await stage.bring_up()
    assert (failed.state, failed.replaces, stage.models.unloads) == (FAILED, False, 1)


async def test_a_replica_without_processes_is_loading_until_one_is_back() -> None:
    stage = Stage()
    await stage.bring_up()
    stage.told.clear()
    stage.models.on_change("m", 1, LOADING, "its process ended")
    [lost] = stage.told
    assert (lost.state, lost.reason, lost.replaces) == (LOADING, "its process ended", False)
    stage.models.on_change("m", 1, READY, "")
    assert (stage.told[-1].state, stage.told[-1].slots) == (READY, 4)
    stage.models.on_change("m", 1, UNLOADING, "")
    stage.models.on_change("m", 1, LOADING, "too late")
    stage.models.on_change("other", 1, READY, "")
    assert len(stage.told) == 2


# Memory.


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


def test_short_memory_makes_batches_shrink_and_its_return_lets_them_grow() -> None:
    models, clock = Models(), Clock()
    watch = MemoryWatch(cast("ModelServer", models), 1000, clock)
    assert models.room_bytes() is None  # nothing was read yet
    watch.see(50, 50)
    assert models.room_bytes() == 50
    watch.see(500, 500)
    clock.now_s = PRESSURE_STEADY_S
    watch.see(500, 400)
    assert models.levels == [1, 1, 0]
    assert models.room_bytes() == 400


def test_an_owners_limit_that_is_reached_is_pressure_too() -> None:
    models = Models()
    watch = MemoryWatch(cast("ModelServer", models), 1000, Clock())
    watch.see(500, 0)
    assert models.levels == [1]
    assert repr(watch) == "<MemoryWatch <Pressure 1 of 6>, room 0>"
