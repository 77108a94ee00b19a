"""Regions of shared memory: what may be registered, and what becomes of objects that change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import Forbidden, InvalidRequest, NotFound, Saturated
from meshnode.gateway import shared_memory as module
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.gateway.shared_memory import SharedMemory
from meshnode.limits import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.name == "nt", reason="only Linux has these objects as files")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[SharedMemory]:
    (tmp_path / "object").write_bytes(bytes(range(64)))
    found = SharedMemory(is_on=True, folder=tmp_path, platform="linux")
    yield found
    found.close()


def test_a_region_is_read_and_written_at_its_offset(memory: SharedMemory, tmp_path: Path) -> None:
    memory.register("r", "/object", 8, 16)
    assert memory.read("r", 2, 3) == bytes([10, 11, 12])
    memory.write("r", 15, b"\xff")
    assert (tmp_path / "object").read_bytes()[23] == 255
    assert repr(memory) == "<SharedMemory on: 1 regions>"
    (region,) = memory.status("r")
    assert (region.name, region.key, region.offset, region.size_bytes) == ("r", "/object", 8, 16)


@pytest.mark.parametrize("part", [(0, 17), (16, 1), (1, 16)])
def test_nothing_beyond_a_region_is_reached(memory: SharedMemory, part: tuple[int, int]) -> None:
    memory.register("r", "object", 8, 16)
    offset, size_bytes = part
    with pytest.raises(InvalidRequest, match="not within"):
        memory.read("r", offset, size_bytes)
    with pytest.raises(InvalidRequest, match="not within"):
        memory.write("r", offset, bytes(size_bytes))


def test_a_region_ends_within_its_object(memory: SharedMemory) -> None:
    memory.register("all", "object", 0, 64)
    with pytest.raises(InvalidRequest, match="which has 64 bytes"):
        memory.register("more", "object", 1, 64)


def test_an_object_that_shrinks_is_an_error_and_does_not_grow_again(
    memory: SharedMemory, tmp_path: Path
) -> None:
    memory.register("r", "object", 0, 64)
    os.truncate(tmp_path / "object", 10)
    with pytest.raises(InvalidRequest, match="smaller"):
        memory.read("r", 0, 64)
    with pytest.raises(InvalidRequest, match="smaller"):
        memory.write("r", 8, bytes(8))
    assert (tmp_path / "object").stat().st_size == 10


@pytest.mark.parametrize(
    "key", ["", "/", ".", "..", "/..", "a/b", "../object", "//object", "o\0b", "x" * 256]
)
def test_a_key_is_a_plain_name(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidRequest, match="not the key"):
        memory.register("r", key, 0, 1)


def test_links_folders_and_what_is_not_there_are_refused(
    memory: SharedMemory, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "object")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for key in ("link", "folder", "nothing"):
        with pytest.raises(InvalidRequest, match="cannot be opened"):
            memory.register("r", key, 0, 1)
    with pytest.raises(InvalidRequest, match="not a shared memory object"):
        memory.register("r", "pipe", 0, 1)


@pytest.mark.parametrize(("offset", "size_bytes"), [(-1, 1), (0, 0), (2**63, 1), (0, 2**63)])
def test_offsets_and_sizes_are_checked(memory: SharedMemory, offset: int, size_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match="must be 0 or more"):
        memory.register("r", "object", offset, size_bytes)


def test_names_are_taken_once_and_are_short(memory: SharedMemory) -> None:
    memory.register("r", "object", 0, 1)
    with pytest.raises(InvalidRequest, match="already"):
        memory.register("r", "object", 0, 1)
    for name in ("", "x" * 256):
        with pytest.raises(InvalidRequest, match="1 to 255"):
            memory.register(name, "object", 0, 1)


def test_there_are_only_so_many_regions(
    memory: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARED_MEMORY_REGIONS", 2)
    for name in "ab":
        memory.register(name, "object", 0, 1)
    with pytest.raises(Saturated, match="unregister"):
        memory.register("c", "object", 0, 1)


def test_what_is_forgotten_is_not_found(memory: SharedMemory) -> None:
    for name in "ab":
        memory.register(name, "object", 0, 1)
    memory.unregister("a")
    memory.unregister("a")
    with pytest.raises(NotFound, match="'a'"):
        memory.status("a")
    with pytest.raises(InvalidRequest, match="'a'"):
        memory.read("a", 0, 1)
    memory.unregister("")
    assert memory.status() == []


def test_a_tensor_is_no_larger_than_in_a_body(memory: SharedMemory, tmp_path: Path) -> None:
    os.truncate(tmp_path / "object", MAX_BODY_BYTES + 1)
    memory.register("r", "object", 0, MAX_BODY_BYTES + 1)
    with pytest.raises(InvalidRequest, match="at most"):
        memory.read("r", 0, MAX_BODY_BYTES + 1)


def test_it_is_the_owner_who_turns_it_on(tmp_path: Path) -> None:
    memory = SharedMemory(is_on=False, folder=tmp_path, platform="linux")
    with pytest.raises(Forbidden, match="--shared-memory"):
        memory.register("r", "object", 0, 1)
    assert not memory.is_on


def test_other_systems_do_without(tmp_path: Path) -> None:
    memory = SharedMemory(is_on=True, folder=tmp_path, platform="darwin")
    with pytest.raises(HttpRefusal, match="Linux") as caught:
        memory.register("r", "object", 0, 1)
    assert caught.value.status == 501
    assert not memory.is_on
