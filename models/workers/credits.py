"""How many parts of a stream may still go: a stream waits for the node to take what it was sent."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.models.workers.adaptor import Interruption


class Credits:
    """The credits of one stream."""

    def __init__(self, parts: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Begin with so many; `loop` is the one that an asynchronous adaptor lives on."""
        self._credits = parts
        self._changed = threading.Condition()
        self._loop = loop
        self._awake = asyncio.Event() if loop is not None else None

    def take(self, interruption: Interruption) -> bool:
        """Wait for a credit; False if nobody waits for the stream any more."""
        with self._changed:
            while self._credits <= 0 and not interruption.reason:
                self._changed.wait()
            self._credits -= 1
        return not interruption.reason

    async def take_soon(self) -> None:
        """Wait for a credit on the event loop; cancellation ends it."""
        assert self._awake is not None
        while self._credits <= 0:
            self._awake.clear()
            await self._awake.wait()
        self._credits -= 1

    def add(self, parts: int) -> None:
        """Let so many more parts go; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._add_here, parts)
            return
        with self._changed:
            self._credits += parts
            self._changed.notify()

    def _add_here(self, parts: int) -> None:
        assert self._awake is not None
        self._credits += parts
        self._awake.set()

    def wake(self) -> None:
        """Let who waits look at the interruption."""
        with self._changed:
            self._changed.notify()
