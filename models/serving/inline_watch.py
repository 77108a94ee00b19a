"""Ends runs on the event loop that take far longer than expected.

Such a run holds up everything: the node's other requests, and what it owes its peers. The loop itself cannot
end it, so a thread looks every `INLINE_TICK_S` whether the same run is still under way. It exists only while
there are such runs; a node that nobody asks has no thread that wakes.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from meshnode.limits import INLINE_TICK_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.models.runtimes.base import StoppableRun

_IDLE_TICKS: Final = 20
"""Looks without a run in between after which the thread ends: starting one takes some 60 µs."""


class InlineWatch:
    """Watches the runs of one event loop.

    Attributes:
        run: What runs on the loop now; set it after `began`, call `wake` unless `awake`, and set it to None in
            the end.
        began: Tells runs apart: the time when it began.
        awake: Whether a thread looks.
    """

    __slots__ = ("_sleep", "_thread", "awake", "began", "run")

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Watch nothing yet; `sleep` waits between two looks."""
        self.run: StoppableRun | None = None
        self.began = 0.0
        self.awake = False
        self._sleep = sleep
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<InlineWatch of {self.run}{', awake' if self.awake else ''}>"

    def wake(self) -> None:
        """Begin to look."""
        self.awake = True
        self._thread = threading.Thread(target=self._look, name="inline-watch", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        seen = -1.0
        idle = 0
        while self._thread is threading.current_thread():
            self._sleep(INLINE_TICK_S)
            run, began = self.run, self.began
            if run is not None and began == seen:
                run.stop()
            idle = idle + 1 if run is None and began == seen else 0
            seen = began
            if idle >= _IDLE_TICKS:
                self.awake = False
                if self.run is None:  # whoever began one now sees that nobody looks
                    return
                self.awake = True


_of_threads = threading.local()


def watch_of_this_thread() -> InlineWatch:
    """Return the watch of the event loop that runs in this thread."""
    watch: InlineWatch | None = getattr(_of_threads, "watch", None)
    if watch is None:
        watch = _of_threads.watch = InlineWatch()
    return watch
