from __future__ import annotations

import os
import sys

import pytest

from meshnode.models.workers.memory import SharedMemory

unix_only = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are Unix's")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="seals and holes are Linux's")


@unix_only
def test_what_one_side_writes_the_other_reads() -> None:
    memory = SharedMemory.make(10_000)
    other = SharedMemory.attach(os.dup(memory.descriptor), memory.name, memory.size_bytes)
    assert memory.size_bytes == 12_288  # whole pages
    memory.view[4096:4100] = b"abcd"
    assert other.array(4096, 4).tobytes() == b"abcd"
    other.array(0, 2)[:] = 7
    assert bytes(memory.view[:3]) == b"\7\7\0"
    other.release()
    memory.release()


@linux_only
def test_the_other_side_can_neither_shrink_nor_grow_it() -> None:
    memory = SharedMemory.make(8192)
    for size_bytes in (0, 4096, 16_384):
        with pytest.raises(PermissionError):
            os.ftruncate(memory.descriptor, size_bytes)
    memory.release()


@linux_only
def test_pages_that_are_dropped_read_as_zeros() -> None:
    memory = SharedMemory.make(3 * 4096)
    memory.view[:] = b"x" * (3 * 4096)
    memory.drop(4096, 4096)
    assert bytes(memory.view) == b"x" * 4096 + bytes(4096) + b"x" * 4096
    memory.release()


def test_an_array_outlives_the_release() -> None:
    memory = SharedMemory.make(4096)
    array = memory.array(0, 4)
    array[:] = 5
    memory.release()
    assert array.tolist() == [5, 5, 5, 5]
