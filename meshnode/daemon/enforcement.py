"""What the owner's limits do to this process: priority, processors, memory.

| limit | kept by |
|---|---|
| `--nice` | the process's priority; on Windows its priority class |
| `--max-cpus` | processor affinity where the system has it, and runtimes' threads everywhere |
| `--max-memory` | loads that would not fit are refused, requests too while the process is above it |

What a system cannot keep is said, in the log and in the node's capabilities, and not pretended.
`apply_to_process` comes first in a process's life: threads take over priority and affinity from the
one that starts them, and later changes would reach the main thread only.
"""

from __future__ import annotations

import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import psutil

from meshnode.errors import ModelError
from meshnode.models.runtimes.base import ProcessModel
from meshnode.owner_limits import load_estimate_bytes, size_text, why_no_room

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshnode.models.runtimes.base import (
        Capability,
        Described,
        LoadedModel,
        Opening,
        Runtime,
    )


_DIGEST_LENGTH = 64  # of a manifest, in hexadecimal


def apply_to_process(max_cpus: int | None, nice: int | None) -> None:
    """Set this process's priority and processors, before it has threads.

    What does not succeed is found by `not_enforced`.

    Args:
        max_cpus: How many processors it may use, or None for all.
        nice: 0 to 19, or None to leave the priority as it is.
    """
    process = psutil.Process()
    if nice is not None:
        with suppress(OSError, psutil.Error):
            process.nice(_priority(nice))
    if max_cpus is not None and hasattr(process, "cpu_affinity"):
        with suppress(OSError, psutil.Error):
            process.cpu_affinity(sorted(process.cpu_affinity())[:max_cpus])


def not_enforced(max_cpus: int | None, nice: int | None) -> list[str]:
    """Return what `apply_to_process` could not keep on this system, as sentences."""
    process = psutil.Process()
    sentences = []
    if nice is not None and process.nice() != _priority(nice):
        sentences.append(
            f"--nice {nice}: the priority is {int(process.nice())}, and this user may not raise it"
        )
    if max_cpus is not None and not hasattr(process, "cpu_affinity"):
        sentences.append(
            f"--max-cpus {max_cpus}: {sys.platform} has no processor affinity; only the threads of "
            "runtimes are limited"
        )
    elif max_cpus is not None and len(process.cpu_affinity()) > max_cpus:
        sentences.append(
            f"--max-cpus {max_cpus}: the processor affinity could not be set; only the threads of "
            "runtimes are limited"
        )
    return sentences


def _priority(nice: int) -> int:
    """Return the priority in the system's own words: Windows has a few classes, and no numbers."""
    if sys.platform == "win32":
        if nice >= 10:
            return int(psutil.IDLE_PRIORITY_CLASS)
        return int(psutil.BELOW_NORMAL_PRIORITY_CLASS if nice else psutil.NORMAL_PRIORITY_CLASS)
    return nice


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


class MemoryRoom:
    """The room for models within the owner's memory limit, for all runtimes together.

    What is being opened counts as taken, since it is not resident yet; so do the processes of models
    that have their own.
    """

    def __init__(self, max_memory_bytes: int | None, rss: Callable[[], int] = rss_bytes) -> None:
        """Without a limit there is always room."""
        self._max_memory_bytes = max_memory_bytes
        self._rss = rss
        self._lock = threading.Lock()
        self._reserved_bytes = 0
        self._processes: weakref.WeakSet[ProcessModel] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"<MemoryRoom of {self._max_memory_bytes}, {self._reserved_bytes} bytes reserved>"

    @contextmanager
    def reserved(self, opening: Opening) -> Iterator[None]:
        """Hold the room that a model needs while it is opened.

        Raises:
            ModelError: if it would take more memory than the owner allows.
        """
        if self._max_memory_bytes is None:
            yield
            return
        need_bytes = self._reserve(_size_bytes(opening.folder, opening.entry))
        try:
            yield
        finally:
            with self._lock:
                self._reserved_bytes -= need_bytes

    def count_process(self, model: ProcessModel) -> None:
        """From now on this model's process counts too, as long as there is one."""
        with self._lock:
            self._processes.add(model)

    def _used_bytes(self) -> int:
        return self._rss() + sum(model.memory_bytes for model in self._processes)

    def _reserve(self, files_bytes: int) -> int:
        assert self._max_memory_bytes is not None
        with self._lock:
            room_bytes = self._max_memory_bytes - self._used_bytes() - self._reserved_bytes
            reason = why_no_room(files_bytes, max(0, room_bytes), self._max_memory_bytes)
            if reason:
                raise ModelError(reason)
            need_bytes = load_estimate_bytes(files_bytes)
            self._reserved_bytes += need_bytes
        return need_bytes

    def why_too_large(self) -> str:
        """Return why a model that was just loaded must go again, or an empty text."""
        if self._max_memory_bytes is None:
            return ""
        with self._lock:
            now_bytes = self._used_bytes()
        if now_bytes <= self._max_memory_bytes:
            return ""
        return (
            f"with it loaded this node used {size_text(now_bytes)} of memory; its owner allows "
            f"{size_text(self._max_memory_bytes)} (--max-memory)"
        )


class GuardedRuntime:
    """A runtime that opens no model for which the owner's memory limit has no room."""

    def __init__(self, runtime: Runtime, room: MemoryRoom) -> None:
        """Guard `runtime`."""
        self._runtime = runtime
        self._room = room

    def __repr__(self) -> str:
        return f"<GuardedRuntime {self._runtime!r} in {self._room!r}>"

    @property
    def name(self) -> str:
        """As the runtime's."""
        return self._runtime.name

    @property
    def platform(self) -> str:
        """As the runtime's."""
        return self._runtime.platform

    @property
    def is_code(self) -> bool:
        """As the runtime's."""
        return self._runtime.is_code

    @property
    def shares_instance(self) -> bool:
        """As the runtime's."""
        return self._runtime.shares_instance

    def capability(self) -> Capability:
        """As the runtime's."""
        return self._runtime.capability()

    def describe(self, opening: Opening) -> Described:
        """Open a model briefly; see `Runtime.describe`.

        Raises:
            ModelError: also if it would take more memory than the owner allows.
        """
        with self._room.reserved(opening):
            return self._runtime.describe(opening)

    def load(self, opening: Opening) -> LoadedModel | ProcessModel:
        """Open a model; see `Runtime.load`.

        Raises:
            ModelError: also if it would take more memory than the owner allows.
        """
        with self._room.reserved(opening):
            model = self._runtime.load(opening)
        if isinstance(model, ProcessModel):
            self._room.count_process(model)
        return model


def _size_bytes(folder: Path, entry: str) -> int:
    """Return the size of a version's files: of its folder, or of the one file if it is bare.

    A version's folder is named by its number, one in the data folder by its digest; a bare file lies
    in a folder with whatever else its owner keeps there.
    """
    try:
        if folder.name.isdigit() or len(folder.name) == _DIGEST_LENGTH:
            return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
        return (folder / entry).stat().st_size
    except OSError:
        return 0  # the runtime says what is wrong with it
