"""A virtual disk: what fills it up, and what a crash in the middle of a write leaves on it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import ConfigError
from meshnode.sim.virtual.folder import VirtualDataFolder, VirtualDisk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def disk() -> VirtualDisk:
    return VirtualDisk()


@pytest.fixture
def folder(tmp_path: Path, disk: VirtualDisk) -> Iterator[VirtualDataFolder]:
    opened = VirtualDataFolder(tmp_path / "data", disk, random.Random(1).randbytes)
    yield opened
    opened.close()


def test_the_key_comes_from_the_given_chance(tmp_path: Path, folder: VirtualDataFolder) -> None:
    again = VirtualDataFolder(tmp_path / "other", VirtualDisk(), random.Random(1).randbytes)
    assert again.identity().node_id == folder.identity().node_id
    again.close()


def test_a_full_disk_takes_nothing_and_keeps_what_it_has(
    folder: VirtualDataFolder, disk: VirtualDisk
) -> None:
    folder.save_state("members", b"first")
    disk.is_full = True
    with pytest.raises(ConfigError, match="no space left on device"):
        folder.save_state("members", b"second")
    assert folder.state("members") == b"first"
    assert repr(disk) == "<VirtualDisk 1 writes, full>"


def test_a_torn_write_leaves_the_former_content_and_a_half_new_file(
    folder: VirtualDataFolder, disk: VirtualDisk
) -> None:
    folder.save_state("members", b"first")
    folder.save_state("members", b"second content")
    said = disk.tear(random.Random(1))
    assert said.startswith("members is as before its last write")
    assert folder.state("members") == b"first"
    left = (folder.path / "state" / "members.new").read_bytes()
    assert b"second content".startswith(left)
    assert len(left) < len(b"second content")


def test_a_torn_first_write_leaves_no_file(folder: VirtualDataFolder, disk: VirtualDisk) -> None:
    folder.save_state("members", b"first")
    disk.tear(random.Random(1))
    assert folder.state("members") is None


def test_nothing_is_torn_where_nothing_was_written_or_what_makes_the_device_what_it_is(
    folder: VirtualDataFolder, disk: VirtualDisk
) -> None:
    assert disk.tear(random.Random(1)) == ""
    key = folder.identity().node_id
    assert disk.tear(random.Random(1)) == ""
    assert folder.identity().node_id == key
