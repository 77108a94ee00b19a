"""What stays on a disk, and what goes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshnode.errors import TransferFailed
from meshnode.limits import DISK_RESERVE_BYTES
from meshnode.models.artifacts.disk_budget import (
    DiskState,
    Unused,
    evicted,
    require_room,
    spare_bytes,
)

GIB = 1 << 30
DISK = DiskState(size_bytes=1000 * GIB, free_bytes=500 * GIB, kept_bytes=20 * GIB, missing_bytes=0)


def unused(*sizes_and_times: tuple[int, float]) -> list[Unused]:
    return [Unused(f"b{number}", size, at) for number, (size, at) in enumerate(sizes_and_times)]


def test_what_was_wanted_least_recently_goes_first_and_only_as_much_as_must() -> None:
    found = unused((10, 3.0), (10, 1.0), (10, 2.0))
    assert evicted(found, 30, 100.0) == []
    assert evicted(found, 20, 100.0) == ["b1"]
    assert evicted(found, 10, 100.0) == ["b1", "b2"]
    assert evicted(found, 0, 100.0) == ["b1", "b2", "b0"]


def test_what_is_young_stays_whatever_it_takes() -> None:
    assert evicted(unused((10, 50.0), (10, 1.0)), 0, 10.0) == ["b1"]


def test_empty_leftovers_go_where_nothing_may_stay() -> None:
    assert evicted(unused((0, 1.0)), 0, 10.0) == ["b0"]


def test_without_a_limit_a_tenth_of_the_disk_may_be_unused() -> None:
    assert spare_bytes(DISK, 5 * GIB) == 100 * GIB


def test_what_is_unused_gives_way_to_what_comes() -> None:
    full = replace(DISK, free_bytes=10 * GIB, missing_bytes=30 * GIB)
    assert spare_bytes(full, 50 * GIB) == 29 * GIB, "50 and 10, less 30, less what stays free"
    assert spare_bytes(full, 5 * GIB) == 0


def test_a_limit_is_for_all_model_files_together() -> None:
    assert spare_bytes(replace(DISK, budget_bytes=50 * GIB), 0) == 30 * GIB
    assert spare_bytes(replace(DISK, budget_bytes=10 * GIB), 0) == 0


def test_what_does_not_fit_is_refused_with_what_to_do() -> None:
    require_room(DISK, "it")
    with pytest.raises(TransferFailed, match=r"would take 20 GiB .* --max-disk allows 10 GiB"):
        require_room(replace(DISK, budget_bytes=10 * GIB), "version 1 of 'm'")
    with pytest.raises(TransferFailed, match=r"30 GiB are still to come, and the disk has 9 GiB"):
        require_room(replace(DISK, free_bytes=10 * GIB, missing_bytes=30 * GIB), "it")


def test_a_small_disk_keeps_less_free() -> None:
    assert DISK.reserve_bytes == DISK_RESERVE_BYTES
    assert replace(DISK, size_bytes=10 * GIB).reserve_bytes == GIB // 2
    require_room(DiskState(10 * GIB, 0, 0, 0), "what is here already")
