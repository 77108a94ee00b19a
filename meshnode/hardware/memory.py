"""Memory that this process holds without using it."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress


def give_memory_back() -> None:
    """Look for objects that nothing needs any more, and return free memory to the system.

    The search stops all threads of the program, for a tenth of a second where there are many objects.
    """
    gc.collect()
    trim_memory()


def trim_memory() -> None:
    """Return free memory to the system, as far as its C library can; other threads go on meanwhile."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
