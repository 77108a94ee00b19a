"""Tasks that run beside everything else of a part, and end with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging
    from collections.abc import Coroutine, Iterator


class BackgroundTasks:
    """The tasks of one part of the daemon; what fails in one is logged, and the others go on."""

    def __init__(self, log: logging.Logger, failure: str) -> None:
        """Begin with none.

        Args:
            log: Where a failure is told.
            failure: What it is, as a sentence without a full stop.
        """
        self._log = log
        self._failure = failure
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<BackgroundTasks: {len(self)} run>"

    def __len__(self) -> int:
        """How many have not ended."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[asyncio.Task[None]]:
        """All that have not ended."""
        return iter(tuple(self._tasks))

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do this until it ends or the part does."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def cancel(self) -> None:
        """Have all of them end."""
        for task in self:
            task.cancel()

    async def close(self) -> None:
        """End all of them; return when they have."""
        self.cancel()
        await asyncio.gather(*self, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error(self._failure, exc_info=error)
