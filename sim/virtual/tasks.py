"""Handles, tasks and futures of the virtual loop: they know their process, and hash alike in every run.

Sets of tasks, as `asyncio.wait` makes them, iterate in the order of hashes, which by default come from
addresses in memory: two runs of one seed would differ. Here a hash is a number that the loop counts.
"""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from meshnode.sim.virtual.host import Process
    from meshnode.sim.virtual.loop import VirtualLoop

_CLOSE_ATTEMPTS: Final = 1000  # a coroutine may await in its `finally` blocks


class _SameHash:
    """What waits or is waited for, with a hash that is the same in every run of a seed.

    Attributes:
        process: Whose it is; None for the world's.
    """

    _number: int
    process: Process | None = None

    def __hash__(self) -> int:
        try:
            return self._number
        except AttributeError:
            loop: VirtualLoop = self.get_loop()  # type: ignore[attr-defined]  # of the future that it is mixed into
            self._number = loop.next_number()
            return self._number


class VirtualTask(_SameHash, asyncio.Task[Any]):
    """A task of a process, or of the world."""


class VirtualFuture(_SameHash, asyncio.Future[Any]):
    """A future of a process, or of the world."""


class VirtualHandle(asyncio.Handle):
    """A call that a process is to make.

    Attributes:
        process: Whose call it is; it is never made once that has crashed.
    """

    __slots__ = ("process",)

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        process: Process,
        context: Context,
    ) -> None:
        """Make a handle; `VirtualLoop` runs it. It does without what asyncio's keeps for debugging."""
        self.process = process
        self._context = context
        self._callback: Any = callback
        self._args: Any = args
        self._cancelled = False

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else f"{self._callback!r}"
        return f"<{type(self).__name__} {self.process!r} {state}>"

    def cancel(self) -> None:
        """Never make the call."""
        self._cancelled = True
        self._callback = None
        self._args = None

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled


class VirtualTimer(asyncio.TimerHandle):
    """A call that a process is to make at a time."""

    __slots__ = ("_told_when", "process")

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        process: Process,
        context: Context,
        loop: VirtualLoop,
    ) -> None:
        """Make a timer.

        Args:
            when: The time as the process's host reads it.
            callback: What to call.
            args: With what.
            process: Whose timer it is.
            context: In which context.
            loop: Told if it is cancelled.
        """
        self.process = process
        self._told_when = when
        self._context = context
        self._callback: Any = callback
        self._args: Any = args
        self._cancelled = False
        self._loop = loop
        self._scheduled = True

    def __repr__(self) -> str:
        state = "cancelled" if self._cancelled else f"{self._callback!r}"
        return f"<VirtualTimer at {self._told_when:.6f} s {self.process!r} {state}>"

    def __hash__(self) -> int:
        return hash(self._told_when)

    def __eq__(self, other: object) -> bool:
        return self is other

    def cancel(self) -> None:
        """Never make the call."""
        if not self._cancelled:
            self._cancelled = True
            self._callback = None
            self._args = None
            if self._scheduled:
                self._loop.timer_cancelled()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled

    def when(self) -> float:
        """Return when it is due, as the process's host reads time."""
        return self._told_when


AnyHandle = VirtualHandle | VirtualTimer


def settle(future: asyncio.Future[Any], result: object, failure: BaseException | None) -> None:
    """End a future, unless it has ended."""
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def dispose(task: asyncio.Task[Any]) -> None:
    """End a task that nothing runs any more, without a word."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    context = copy_context()
    for _ in range(_CLOSE_ATTEMPTS):  # not `close`, which does not let a `finally` block await
        try:
            context.run(coroutine.throw, asyncio.CancelledError())
        except BaseException:  # noqa: BLE001 - it is over; the process is dead: nobody hears how
            return
