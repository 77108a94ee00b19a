from __future__ import annotations

import random

from meshnode.sim.disk import Disk


def test_a_full_disk_keeps_the_old_value_and_the_new_one_waits_in_memory() -> None:
    disk = Disk()
    assert disk.write("members", b"old")
    disk.is_full = True
    assert not disk.write("members", b"new")
    assert not disk.write_unsaved()
    assert disk.stored == {"members": b"old"}
    disk.is_full = False
    assert disk.write_unsaved()
    assert disk.stored == {"members": b"new"}
    assert not disk.unsaved


def test_what_could_not_be_written_is_lost_with_the_process() -> None:
    disk = Disk()
    disk.is_full = True
    disk.write("members", b"new")
    disk.lose_memory()
    disk.is_full = False
    assert disk.write_unsaved()
    assert not disk.stored


def test_a_later_value_that_fits_makes_the_waiting_one_void() -> None:
    disk = Disk()
    disk.is_full = True
    disk.write("members", b"first")
    disk.is_full = False
    disk.write("members", b"second")
    assert disk.write_unsaved()
    assert disk.stored == {"members": b"second"}


def test_a_torn_write_leaves_the_beginning_of_the_new_file_or_the_whole_old_one() -> None:
    seen = set()
    for seed in range(60):
        disk = Disk()
        disk.write("members", b"old")
        disk.write("desired", b"other")
        disk.write("members", b"0123456789")
        assert disk.tear(random.Random(seed))
        assert disk.stored["desired"] == b"other"
        seen.add(disk.stored["members"])
    assert b"old" in seen
    assert b"0123456789" not in seen
    assert all(b"0123456789".startswith(each) for each in seen - {b"old"})
    assert len(seen) > 5


def test_tearing_the_first_file_ever_may_leave_none() -> None:
    left = set()
    for seed in range(20):
        disk = Disk()
        disk.write("members", b"x")
        disk.tear(random.Random(seed))
        left.add(disk.stored.get("members"))
    assert left == {None, b""}
    assert Disk().tear(random.Random(1)) == ""
