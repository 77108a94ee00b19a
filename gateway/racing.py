"""Tries of one request side by side: the first is awaited, others are sent beside it when it is slow.

The first try runs in the task that waits for the answer, and most end there: only a timer is made
for them. A try beside it has a task of its own. Where that one answers first, it takes the place of
the first by cancelling it, as `asyncio.timeout` does; a cancelling from outside ends all of them.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING

from meshnode.errors import MeshError
from meshnode.routing.tries import GiveUp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshnode.routing.attempts import Attempts
    from meshnode.routing.tries import Try
    from meshnode.types import InferResponse


class Race:
    """One try, and those that are sent beside it. Use it once, within the task that waits."""

    __slots__ = ("_answered", "_attempts", "_failed", "_first_is_out", "_is_over", "_now", "_others", "_outrun", "_send", "_task", "_timer", "_won")  # fmt: skip

    def __init__(
        self,
        attempts: Attempts,
        now: Callable[[], float],
        send: Callable[[Try], Awaitable[InferResponse]],
        answered: Callable[[Try, InferResponse], None],
        failed: Callable[[Try, MeshError], None],
    ) -> None:
        """Begin without a try.

        Args:
            attempts: Decides when another try is sent.
            now: Returns monotonic seconds.
            send: Sends a try, and returns its answer when that has begun.
            answered: Told of the try that answered first, and tells `attempts`.
            failed: Told of each that failed while none had answered, and tells `attempts`.
        """
        self._attempts = attempts
        self._now = now
        self._send = send
        self._answered = answered
        self._failed = failed
        self._task: asyncio.Task[object] | None = None
        self._first_is_out = False
        self._outrun = False  # the first was cancelled here
        self._is_over = False  # nobody asks any more
        self._others: dict[asyncio.Task[None], Try] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._won: InferResponse | None = None

    def __repr__(self) -> str:
        return f"<Race of {len(self._others)} beside the first: {self._attempts!r}>"

    async def run(self, first: Try) -> InferResponse | None:
        """Return the first answer; None once none is out any more, and those that failed are told."""
        self._set_timer()
        try:
            await self._run_first(first)
            while self._won is None and self._others:
                if isinstance(self._attempts.next(self._now()), GiveUp):
                    break  # what the first said holds for all
                await asyncio.wait(self._others, return_when=asyncio.FIRST_COMPLETED)
            won, self._won = self._won, None
            return won
        finally:
            self._is_over = True
            if self._timer is not None:
                self._timer.cancel()
            for task in self._others:
                task.cancel()
            if self._won is not None:  # cancelled from outside just then
                _drop(self._won)

    async def _run_first(self, first: Try) -> None:
        """Run the first try until it ends, or another one has won."""
        task = self._task = asyncio.current_task()
        assert task is not None
        cancellings = task.cancelling()
        self._first_is_out = True
        try:
            await self._run(first)
        except MeshError as error:
            if self._won is None:
                self._failed(first, error)
        except asyncio.CancelledError:
            if not self._outrun or task.uncancel() > cancellings:
                raise
        finally:
            self._first_is_out = False

    async def _run(self, step: Try) -> None:
        response = await self._send(step)
        if self._won is None and not self._is_over:
            self._won = response
            self._answered(step, response)
        else:
            _drop(response)

    def _set_timer(self) -> None:
        at = self._attempts.beside_at
        if at < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, at - self._now()), self._slow)

    def _slow(self) -> None:
        """The newest try is slow: send another, if that is allowed."""
        self._timer = None
        if self._won is not None:
            return
        step = self._attempts.beside(self._now())
        if step is not None:
            task = asyncio.ensure_future(self._run(step))
            self._others[task] = step
            task.add_done_callback(self._ended)
        self._set_timer()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One beside the first has ended: if it won, the first need not go on."""
        step = self._others.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            if self._won is None and not self._is_over:
                defect = MeshError("the gateway failed; its log says why")
                self._failed(step, error if isinstance(error, MeshError) else defect)
            if not isinstance(error, MeshError):
                raise error
        elif self._won is not None and self._first_is_out:
            assert self._task is not None
            self._outrun = True
            self._task.cancel()


_dropping: set[asyncio.Task[None]] = set()  # the loop itself keeps no task alive


def _drop(response: InferResponse) -> None:
    """End an answer that nobody wants: where it is a stream, the work on it is cancelled."""
    if response.single is None:
        task = asyncio.ensure_future(_end(response))
        _dropping.add(task)
        task.add_done_callback(_dropping.discard)


async def _end(response: InferResponse) -> None:
    try:
        async with aclosing(aiter(response)) as parts:
            async for _ in parts:  # one that was never begun would not hear of its end
                return
    except MeshError:
        return  # it had ended by itself
