"""Whether short requests of a model should be joined instead of running at once on the event loop.

A run on the event loop starts without delay, but nothing else happens meanwhile: of requests that come at the same
time, each waits for all before it, and nobody can see that they are several. So every now and then two
requests are sent through the queue, which leaves the loop free. If others come while they run, there is a crowd:
its requests go through the queue, where they are joined, until one after the other finds it empty again. If
nobody comes, the next look is twice as far away, so that a lone caller hardly ever pays for a look.
"""

from __future__ import annotations

from typing import Final

FIRST_LOOK: Final = 64
"""Requests on the loop before the first look, and after each crowd."""

LAST_LOOK: Final = 4096
"""Between two looks at most: two hand-overs of 70 µs each are then lost in seconds of work."""

QUIET: Final = 4
"""Looks at an empty queue, one after the other, that end a crowd; each request looks once or twice."""


class Crowd:
    """Decides for one version."""

    __slots__ = ("_left", "_period", "_quiet", "is_here")

    def __init__(self) -> None:
        """Expect nobody."""
        self.is_here = False
        self._period = FIRST_LOOK
        self._left = FIRST_LOOK
        self._quiet = 0

    def __repr__(self) -> str:
        return f"<Crowd is_here={self.is_here}, next look after {self._left}>"

    def queues(self, in_system: int) -> bool:
        """Whether a request that could run at once should take the queue.

        Args:
            in_system: Requests that run or wait in the queue.
        """
        if not self.is_here:
            self._left -= 1
            if self._left > 0:
                return False
            self.is_here = True
            self._quiet = 0
            return True
        if in_system:
            self._quiet = 0
            self._period = FIRST_LOOK
            return True
        self._quiet += 1
        if self._quiet < QUIET:
            return True
        self.is_here = False
        self._left = self._period
        self._period = min(2 * self._period, LAST_LOOK)
        return False
