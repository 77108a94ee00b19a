"""The owner's limits on the process: priority, processors, memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from meshnode.daemon import enforcement
from meshnode.daemon.enforcement import (
    GuardedRuntime,
    MemoryRoom,
    not_enforced,
    rss_bytes,
)
from meshnode.errors import ModelError
from meshnode.hardware.memory import give_memory_back
from meshnode.models.runtimes.base import Capability, Described, Opening

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024**2

CHILD = """
import json, os, psutil, threading
from meshnode.daemon.enforcement import apply_to_process, not_enforced
apply_to_process(1, 7)
seen = []
def look():
    seen.append((os.sched_getaffinity(0), os.nice(0)))
thread = threading.Thread(target=look)
thread.start()
thread.join()
cpus, nice = seen[0]
print(json.dumps([len(cpus), nice, not_enforced(1, 7), not_enforced(1, 0)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs processor affinity")
def test_priority_and_processors_hold_for_threads_that_start_later() -> None:
    import json

    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, check=True, text=True, timeout=60
    )
    cpus, nice, nothing, something = json.loads(done.stdout)
    assert (cpus, nice, nothing) == (1, 7, [])
    assert something == ["--nice 0: the priority is 7, and this user may not raise it"]


class NoAffinity:
    def nice(self) -> int:
        return 0


def test_what_a_system_cannot_keep_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "Process", NoAffinity)
    (sentence,) = not_enforced(2, None)
    assert sentence.startswith("--max-cpus 2: ")
    assert sentence.endswith("has no processor affinity; only the threads of runtimes are limited")
    assert not_enforced(None, None) == []


def test_an_affinity_that_could_not_be_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stubborn(NoAffinity):
        def cpu_affinity(self, wanted: list[int] | None = None) -> list[int]:
            if wanted is not None:
                raise PermissionError
            return [0, 1, 2]

    monkeypatch.setattr(psutil, "Process", Stubborn)
    enforcement.apply_to_process(2, None)
    (sentence,) = not_enforced(2, None)
    assert "could not be set" in sentence
    assert not_enforced(3, None) == []


class Opens:
    """A runtime that opens anything, and shows what happens meanwhile."""

    name = "onnx"
    platform = "onnxruntime_onnx"
    is_code = False
    shares_instance = True

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.during: Any = lambda: None
        self.made: Any = None

    def capability(self) -> Capability:
        return Capability("1.0")

    def describe(self, opening: Opening) -> Described:
        self.load(opening)
        return Described((), ())

    def load(self, opening: Opening) -> Any:
        self.opened.append(opening.entry)
        self.during()
        return self.made or object()


def version_folder(tmp_path: Path, name: str, size_bytes: int) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"\0" * (size_bytes // 2))
    (folder / "weights.bin").write_bytes(b"\0" * (size_bytes // 2))
    return folder


@pytest.mark.parametrize("name", ["1", "a" * 64])
def test_a_model_for_which_there_is_no_room_is_not_opened(tmp_path: Path, name: str) -> None:
    """All files of its folder count: 20 MiB, twice while it is opened, and the overhead."""
    runtime = Opens()
    guarded = GuardedRuntime(runtime, MemoryRoom(100 * MIB, rss=lambda: 30 * MIB))
    folder = version_folder(tmp_path, name, 20 * MIB)
    with pytest.raises(
        ModelError, match=r"about 74 MiB .* 20 MiB.* allows 100 MiB .* 70 MiB are left"
    ):
        guarded.load(Opening(folder=folder, entry="model.onnx"))
    assert runtime.opened == []
    GuardedRuntime(runtime, MemoryRoom(110 * MIB, rss=lambda: 30 * MIB)).load(
        Opening(folder=folder, entry="model.onnx")
    )
    GuardedRuntime(runtime, MemoryRoom(None, rss=lambda: 10**12)).load(
        Opening(folder=folder, entry="model.onnx")
    )
    assert runtime.opened == ["model.onnx"] * 2


def test_a_node_above_its_limit_has_no_room_at_all(tmp_path: Path) -> None:
    guarded = GuardedRuntime(Opens(), MemoryRoom(100 * MIB, rss=lambda: 200 * MIB))
    with pytest.raises(ModelError, match="of which 0 MiB are left"):
        guarded.load(Opening(folder=version_folder(tmp_path, "1", MIB), entry="model.onnx"))


def test_of_a_bare_file_the_neighbours_do_not_count(tmp_path: Path) -> None:
    folder = version_folder(tmp_path, "models", 20 * MIB)
    runtime = Opens()
    GuardedRuntime(runtime, MemoryRoom(100 * MIB, rss=lambda: 30 * MIB)).load(
        Opening(folder=folder, entry="model.onnx")
    )
    assert runtime.opened == ["model.onnx"]


def test_two_models_that_are_opened_at_once_do_not_share_the_room(tmp_path: Path) -> None:
    runtime = Opens()
    guarded = GuardedRuntime(runtime, MemoryRoom(150 * MIB, rss=lambda: 30 * MIB))
    folder = version_folder(tmp_path, "1", 20 * MIB)
    refused: list[str] = []

    def meanwhile() -> None:
        runtime.during = lambda: None
        try:
            guarded.load(Opening(folder=folder, entry="model.onnx"))
        except ModelError as error:
            refused.append(str(error))

    def from_another_thread() -> None:
        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join()

    runtime.during = from_another_thread
    guarded.load(Opening(folder=folder, entry="model.onnx"))
    assert len(refused) == 1
    guarded.load(Opening(folder=folder, entry="model.onnx"))  # what was reserved is free again
    assert repr(guarded).endswith(" 0 bytes reserved>>")


def test_a_missing_file_is_the_runtimes_to_name(tmp_path: Path) -> None:
    runtime = Opens()
    GuardedRuntime(runtime, MemoryRoom(100 * MIB, rss=lambda: 0)).load(
        Opening(folder=tmp_path, entry="no.onnx")
    )
    assert runtime.opened == ["no.onnx"]


class InAProcess:
    """What counts of a model in a process of its own."""

    inputs = outputs = ()
    device = "cpu"
    joins_rows = False
    concurrency = 1
    memory_bytes = 60 * MIB
    on_lost: Any = None

    async def execute(self, requests: Any) -> Any: ...
    def stream(self, request: Any) -> Any: ...
    async def close(self) -> None: ...


def test_the_processes_of_models_count_as_long_as_they_are_there(tmp_path: Path) -> None:
    runtime = Opens()
    room = MemoryRoom(150 * MIB, rss=lambda: 30 * MIB)
    runtime.made = InAProcess()
    guarded = GuardedRuntime(runtime, room)
    model = guarded.load(Opening(folder=version_folder(tmp_path, "1", MIB), entry="model.onnx"))
    assert room.why_too_large() == ""
    another = version_folder(tmp_path, "2", 20 * MIB)
    with pytest.raises(ModelError, match="of which 60 MiB are left"):
        guarded.load(Opening(folder=another, entry="model.onnx"))
    runtime.made = None
    del model
    guarded.load(Opening(folder=another, entry="model.onnx"))


def test_a_model_that_took_more_than_it_should_must_go_again() -> None:
    assert MemoryRoom(None, rss=lambda: 10**12).why_too_large() == ""
    assert MemoryRoom(100 * MIB, rss=lambda: 100 * MIB).why_too_large() == ""
    assert MemoryRoom(100 * MIB, rss=lambda: 130 * MIB).why_too_large() == (
        "with it loaded this node used 130 MiB of memory; its owner allows 100 MiB (--max-memory)"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs malloc_trim of glibc")
def test_free_memory_goes_back_to_the_system() -> None:
    """A million small objects leave holes that only a trim returns."""
    held = [bytes(1000) for _ in range(100_000)]
    del held[::2]
    before = rss_bytes()
    del held
    give_memory_back()
    assert rss_bytes() < before - 20 * MIB
