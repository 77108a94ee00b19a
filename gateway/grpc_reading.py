"""Places for reading the messages of gRPC calls.

How large a message is shows only when it is here, so only so many are read at once. What has not begun to come
holds a place, too: gRPC tells nobody. So each caller has only some of the places, and who waits for one does not
wait behind all that another caller has begun.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from meshnode.errors import InvalidRequest, Saturated

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Places:
    """Places of one kind of message."""

    def __init__(self, places: int, per_caller: int, message_timeout_s: float) -> None:
        """Make them all free.

        Args:
            places: Messages that are read at once.
            per_caller: So many of one caller.
            message_timeout_s: How long one may take to arrive, in seconds; to wait for a place, too.
        """
        self._places = asyncio.Semaphore(places)
        self._per_caller = per_caller
        self._timeout_s = message_timeout_s
        self._callers: dict[str, tuple[asyncio.Semaphore, int]] = {}

    def __repr__(self) -> str:
        return f"<Places: {len(self._callers)} callers>"

    @asynccontextmanager
    async def place(self, caller: str) -> AsyncIterator[None]:
        """Hold a place while a message is read.

        Args:
            caller: What tells callers from one another.

        Raises:
            Saturated: if no place was free for so long.
            InvalidRequest: if the message did not come in time.
        """
        mine, waiting = self._callers.get(caller) or (asyncio.Semaphore(self._per_caller), 0)
        self._callers[caller] = mine, waiting + 1
        is_placed = False
        try:
            try:
                async with asyncio.timeout(self._timeout_s) as limit, mine, self._places:
                    is_placed = True
                    limit.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                    yield
            except TimeoutError:
                if is_placed:
                    raise InvalidRequest(
                        f"the message of this call did not come within {self._timeout_s:.0f} s"
                    ) from None
                raise Saturated(
                    f"this gateway had no place to read this call's message for {self._timeout_s:.0f} s: it waits for "
                    "the messages of other calls; nothing ran, try again, or send each message as its call begins"
                ) from None
        finally:
            mine, waiting = self._callers[caller]
            if waiting > 1:
                self._callers[caller] = mine, waiting - 1
            else:
                del self._callers[caller]
