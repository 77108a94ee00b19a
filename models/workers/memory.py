"""The memory that a node and one worker process both map.

The node makes it and shares it out; the process maps what it was given and can neither shrink nor grow
it (a node that touched memory which is gone would be killed). On Linux it is a memfd, elsewhere on Unix an
unlinked file: nothing has a name, so nothing is left behind, whoever dies. Windows names its mappings
itself and forgets them with the last process.
"""

from __future__ import annotations

import mmap
import os
import secrets
import sys
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from meshnode.limits import WORKER_SHARED_EAGER_BYTES
from meshnode.models.workers.arena import ALIGNMENT_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_F_ADD_SEALS = 1033
_F_SEAL_SEAL, _F_SEAL_SHRINK, _F_SEAL_GROW = 1, 2, 4


class SharedMemory:
    """A mapping, and what another process needs to map it too.

    Attributes:
        descriptor: To be inherited by the process; -1 on Windows.
        name: On Windows, of the mapping; else empty.
        size_bytes: Of the mapping.
    """

    def __init__(self, mapping: mmap.mmap, descriptor: int, name: str, size_bytes: int) -> None:
        """Own a mapping and its descriptor."""
        self.descriptor = descriptor
        self.name = name
        self.size_bytes = size_bytes
        self._mapping = mapping
        self.view = memoryview(mapping)

    def __repr__(self) -> str:
        return f"<SharedMemory {self.size_bytes} bytes>"

    @classmethod
    def make(cls, size_bytes: int) -> SharedMemory:
        """Reserve so many bytes, all zero; pages are taken when they are touched.

        Raises:
            OSError: if the system gives none.
        """
        if sys.platform == "win32":
            size = min(size_bytes, WORKER_SHARED_EAGER_BYTES)
            name = f"meshnode-{secrets.token_hex(16)}"
            return cls(mmap.mmap(-1, size, tagname=name), -1, name, size)
        size = -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        descriptor = _nameless(size)
        try:
            return cls(mmap.mmap(descriptor, size), descriptor, "", size)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def attach(cls, descriptor: int, name: str, size_bytes: int) -> SharedMemory:
        """Map what another process made."""
        if sys.platform == "win32":
            return cls(mmap.mmap(-1, size_bytes, tagname=name), -1, name, size_bytes)
        mapping = mmap.mmap(descriptor, size_bytes)
        os.close(descriptor)
        return cls(mapping, -1, "", size_bytes)

    def array(self, offset: int, length: int) -> NDArray[Any]:
        """Return a region as bytes; the mapping lives at least as long as the array."""
        import numpy as np

        return np.frombuffer(self._mapping, np.uint8, length, offset)

    def drop(self, offset: int, length: int) -> None:
        """Give a region's pages back to the system, where it can; they read as zeros afterwards."""
        if hasattr(mmap, "MADV_REMOVE"):
            with suppress(OSError):
                self._mapping.madvise(mmap.MADV_REMOVE, offset, length)

    def release(self) -> None:
        """Let go: the memory is freed when nothing refers to its arrays and no process maps it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        with suppress(BufferError):  # an answer is still being sent from it
            self.view.release()
            self._mapping.close()


def _nameless(size_bytes: int) -> int:
    if hasattr(os, "memfd_create"):
        import fcntl

        descriptor = os.memfd_create("meshnode", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW | _F_SEAL_SEAL)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
    descriptor, path = tempfile.mkstemp(prefix="meshnode-")
    try:
        os.unlink(path)  # noqa: PTH108 - a path of its own, for a moment
        os.ftruncate(descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
