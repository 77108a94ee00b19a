"""Places to run, and a bounded queue before them: what stands between requests and worker threads.

Each model version has its own `Slots`. A request takes a free slot at once, or waits its turn,
first come first served, until its deadline. A slot belongs to the *run*, not to the caller: who
gives up while its run is in a thread (a deadline, a client that hangs up) leaves at once, but the
slot is free again only when the thread is. Who gives up in the queue frees the place at once.

    free --enter--> running --leave--> next in the queue, else free
    full --enter--> waiting --granted--> running
                    waiting --deadline, cancelled--> gone
"""

from __future__ import annotations

import asyncio
from collections import deque

from meshnode.errors import DeadlineExceeded, Saturated


class Slots:
    """Counts what runs and what waits; owned by one event loop.

    Attributes:
        count: How many may run at once.
        max_waiting: How many may wait; one more is refused with `Saturated`.
        running: Slots taken now.
    """

    __slots__ = ("_idle", "_queue", "count", "max_waiting", "running")

    def __init__(self, count: int, max_waiting: int) -> None:
        self.count = count
        self.max_waiting = max_waiting
        self.running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._idle: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Slots running={self.running}/{self.count} waiting={self.waiting}>"

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def enter(self, timeout_s: float) -> None:
        """Take a slot; every `enter` that returns needs one `leave`.

        Args:
            timeout_s: Seconds that the request may wait.

        Raises:
            Saturated: if the queue is full.
            DeadlineExceeded: if no slot became free in time.
        """
        if self.running < self.count:
            self.running += 1
            return
        if self.waiting >= self.max_waiting:
            raise Saturated(f"{self.running} requests run and {self.waiting} wait for this model")
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queue.append(turn)
        timer = loop.call_later(timeout_s, _expire, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # granted, but cancelled before it could run: pass it on
            else:
                self._queue.remove(turn)
            raise
        finally:
            timer.cancel()

    def leave(self) -> None:
        """Give a slot back: to the first that still waits, if any does."""
        for position, turn in enumerate(self._queue):
            if not turn.done():  # one that is done has given up and takes itself out
                turn.set_result(None)
                del self._queue[position]
                return
        self.running -= 1
        if self.running == 0 and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    async def drained(self) -> None:
        """Wait until nothing runs or waits."""
        while self.running:
            if self._idle is None:
                self._idle = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._idle)


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(
            DeadlineExceeded("the request waited for a free slot until its deadline")
        )
