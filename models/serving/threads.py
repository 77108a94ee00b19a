"""Threads for runs of models, which do not keep the process when it is to end.

`concurrent.futures` waits for its threads at the end of the process, and a run may never end.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Work = tuple[Callable[..., Any], tuple[Any, ...]]


class RunThreads:
    """So many threads at most, each started when it is first needed; owned by one thread."""

    def __init__(self, count: int, name: str) -> None:
        """Have no thread yet.

        Args:
            count: Threads at most.
            name: Of the threads, for people.
        """
        self._count = count
        self._name = name
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def __repr__(self) -> str:
        return f"<RunThreads {self._name}: {self._started} of {self._count}>"

    def submit(self, work: Callable[..., Any], /, *args: Any) -> None:
        """Run `work(*args)` in a thread soon; it must not raise."""
        self._work.put((work, args))
        if self._idle.acquire(blocking=False) or self._started >= self._count:
            return
        self._started += 1
        name = f"{self._name}_{self._started - 1}"
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:
        """Let the threads end once what was submitted has run; `wait` is not heeded."""
        del wait
        for _ in range(self._started):
            self._work.put(None)

    def _serve(self) -> None:
        while (item := self._work.get()) is not None:
            work, args = item
            work(*args)
            del item, work, args  # a request's tensors must not stay until the next one
            self._idle.release()
