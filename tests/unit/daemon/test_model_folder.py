"""A node's own folder of models, real files and a real model server, while people work in it."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from meshnode.daemon import model_folder, own_models
from meshnode.daemon.model_folder import ModelFolder
from meshnode.daemon.own_models import OwnModels
from meshnode.daemon.replicas import ReplicaReports
from meshnode.errors import ModelError
from meshnode.models.runtimes.onnx import OnnxRuntime
from meshnode.models.serving.server import ModelServer
from meshnode.node_events import ReplicaChanged, ReplicaGone
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DIGITS = (Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx").read_bytes()


class Place:
    """The folder, the node that serves it, and what the mesh is told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "own"
        self.path.mkdir()
        runtimes = {"onnx": OnnxRuntime()}
        self.server = ModelServer(runtimes)
        self.told: list[ReplicaChanged | ReplicaGone] = []
        tell = cast("Callable[[Any], None]", self.told.append)
        self.models = OwnModels(self.server, ReplicaReports(self.server, tell), runtimes, tell)
        self.folder = self.follow(str(self.path), folder)

    def follow(self, place: str, folder: Path, poll_s: float = 0.0) -> ModelFolder:
        return ModelFolder(
            place, self.models, copies=folder / "copies", poll_s=poll_s, now=time.monotonic
        )

    def put(self, name: str, content: bytes = DIGITS) -> None:
        place = self.path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.folder.look()

    def states(self) -> dict[tuple[str, int], str]:
        """What the mesh was told last of each version."""
        states: dict[tuple[str, int], str] = {}
        for event in self.told:
            if isinstance(event, ReplicaGone):
                states.pop((event.model, event.version), None)
            else:
                states[event.manifest.model, event.manifest.version] = str(event.state)
        return states


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    monkeypatch.setattr(own_models, "UNLOAD_GRACE_S", 0.0)
    place = Place(tmp_path)
    yield place
    await place.server.close()


async def test_a_folder_is_loaded_and_each_bad_model_is_told(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("good/1/model.onnx")
    place.put("bad/1/model.onnx", b"no model")
    place.put("odd/1/model.onnx")
    place.put("odd/config.pbtxt", b"foo: 1\n")
    await place.look()
    assert place.states() == {("good", 1): "ready", ("bad", 1): "failed", ("odd", 1): "failed"}
    assert not any(each.deployed for each in place.told if isinstance(each, ReplicaChanged))
    assert caplog.text.count("cannot be served") == 2


async def test_what_versions_there_are_is_known_after_the_first_look(place: Place) -> None:
    place.put("net/1/model.onnx")
    assert not place.models.is_settled
    await place.look()
    assert place.models.is_settled


async def test_a_folder_in_which_nothing_is_found_is_told_once(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("good/1/model.onnx")
    place.put("notes/readme.txt", b"read me")
    await place.look()
    place.put("notes/more.txt", b"more")
    await place.look()
    assert caplog.text.count("folder 'notes' is passed over") == 1
    assert place.states() == {("good", 1): "ready"}


async def test_a_new_version_takes_over_while_serving_and_the_old_one_goes(place: Place) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    place.put("net/2/model.onnx", DIGITS[:1000])  # half copied
    await place.look()
    place.put("net/2/model.onnx")
    await place.look(2)
    assert place.server.serves("net", 1)
    assert place.server.serves("net", 2)
    await place.look()
    assert place.states() == {("net", 2): "ready"}
    assert not place.server.serves("net", 1)


async def test_a_version_that_takes_long_to_unload_does_not_hold_up_the_others(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that never ended held its unloading, and with that the whole folder, for ever."""
    monkeypatch.setattr(model_folder, "UNLOAD_PATIENCE_S", 0.01)
    ends = asyncio.Event()
    unload = place.models.unload

    async def unload_slowly(model: str, version: int) -> None:
        await ends.wait()
        await unload(model, version)

    monkeypatch.setattr(place.models, "unload", unload_slowly)
    place.put("stuck/1/model.onnx")
    await place.look()
    shutil.rmtree(place.path / "stuck")
    place.put("other/1/model.onnx")
    await place.look(3)
    assert place.server.serves("other", 1)
    place.put("stuck/1/model.onnx")  # it comes back, and is loaded after its unloading
    await place.look(2)
    ends.set()
    await asyncio.gather(*place.folder._going.values())
    assert place.server.serves("stuck", 1)
    assert place.states() == {("stuck", 1): "ready", ("other", 1): "ready"}


async def test_a_broken_new_version_never_replaces_one_that_works(place: Place) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    place.put("net/2/model.onnx", b"broken")
    await place.look(4)
    assert place.server.serves("net", 1)
    assert place.states() == {("net", 1): "ready", ("net", 2): "failed"}
    shutil.rmtree(place.path / "net" / "2")
    await place.look(3)
    assert place.states() == {("net", 1): "ready"}


async def test_broken_files_of_the_same_version_leave_the_old_ones_serving(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    place.put("net/1/model.onnx", b"broken")
    await place.look(2)
    assert place.server.serves("net", 1)
    assert place.told[-1].reason  # type: ignore[union-attr]
    place.put("net/config.pbtxt", b"max_batch_")
    await place.look(2)
    assert place.server.serves("net", 1)
    assert "cannot be read any more, and serves as before" in caplog.text


async def test_a_removed_model_is_unloaded_and_a_mended_one_served(place: Place) -> None:
    place.put("net/1/model.onnx")
    place.put("odd/config.pbtxt", b"foo: 1")
    place.put("odd/1/model.onnx")
    await place.look()
    shutil.rmtree(place.path / "net")
    place.put("odd/config.pbtxt", b"")
    await place.look(3)
    assert place.states() == {("odd", 1): "ready"}
    states = [each.state for each in place.told if isinstance(each, ReplicaChanged)]
    assert ReplicaState.UNLOADING in states


async def test_the_last_model_of_a_folder_goes_too(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    shutil.rmtree(place.path / "net")
    await place.look(4)
    assert place.states() == {}
    assert caplog.text.count("it holds no model yet") == 1


async def test_a_folder_that_did_not_change_is_not_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    monkeypatch.setattr("meshnode.daemon.model_folder.scan", None)  # would raise
    await place.look(2)


async def test_a_folder_that_is_gone_for_a_moment_changes_nothing(place: Place) -> None:
    place.put("net/1/model.onnx")
    await place.look()
    place.path.rename(place.path.with_name("away"))
    with pytest.raises(ModelError, match="does not exist"):
        await place.look()
    assert place.server.serves("net", 1)


async def test_trouble_with_the_place_is_logged_once_and_survived(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await place.follow("http://127.0.0.1:1/none.onnx", tmp_path).follow()
    assert "cannot be served: http://127.0.0.1:1/none.onnx cannot be reached" in caplog.text
    assert place.told == []
    await place.follow(str(tmp_path / "nowhere"), tmp_path).follow()
    assert "does not exist" in caplog.text


async def test_a_model_of_the_folder_is_held_back_until_it_is_released(place: Place) -> None:
    """What a client of the repository unloads stays unloaded, also when its files change meanwhile."""
    place.put("digits/1/model.onnx")
    await place.look()
    assert await place.models.hold("digits")
    assert not place.server.serves("digits", 1)
    assert list(place.models.held) == [("digits", 1)]
    place.put("digits/2/model.onnx")
    await place.look(2)
    assert not place.server.serves("digits", 2)
    assert ("digits", 2) in place.models.held
    assert await place.models.release("digits") == 2
    assert place.server.serves("digits", 2)
    assert not list(place.models.held)
    assert not await place.models.hold("nothing")
    assert await place.models.release("nothing") is None
