"""Whose picture is decoded next: a few bytes can take seconds to decode, and everybody's pictures go through here.

    small pictures ──> one at a time ──┐
    large pictures ──> one at a time ──┴─> the model

Small ones have a lane of their own, so that they never wait for large ones. In each lane callers take turns, each with
the oldest of what it sent; how much may wait, and how long, is bounded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from meshnode.errors import DeadlineExceeded, Saturated
from meshnode.limits import (
    DEFAULT_REQUEST_TIMEOUT_S,
    MAX_CALLER_WAITING_PICTURES,
    MAX_WAITING_PICTURES,
    SMALL_PICTURE_PIXELS,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from typing import TypeVar

    _T = TypeVar("_T")

_LANES: Final = 2


class PictureTurns:
    """Decodes one small picture and one large one at a time."""

    def __init__(self, wait_s: float = DEFAULT_REQUEST_TIMEOUT_S) -> None:
        """Let nobody wait for longer than so many seconds."""
        self._lanes = tuple(_Lane(wait_s) for _ in range(_LANES))

    def __repr__(self) -> str:
        return f"<PictureTurns {self._lanes}>"

    async def run(self, caller: str, pixels: int, decode: Callable[[], _T]) -> _T:
        """Return what `decode` returns, which a thread is given when it is its turn.

        Args:
            caller: Who sent the picture.
            pixels: How large it is: of all of a request's pictures together.
            decode: Decodes it. Once begun it runs to its end, even if nobody waits for it any longer.

        Raises:
            Saturated: if too many wait already.
            DeadlineExceeded: if its turn does not come in time.
        """
        lane = self._lanes[pixels > SMALL_PICTURE_PIXELS]
        async with lane.turn(caller):
            future = asyncio.get_running_loop().run_in_executor(None, decode)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait({future})  # the next one's memory is only free then
                raise


class _Lane:
    """One picture at a time; who waits is kept by caller, and the callers in the order of their turns."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s = wait_s
        self._is_busy = False
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    def __repr__(self) -> str:
        return f"<lane: {self._count()} wait>"

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, caller: str) -> AsyncGenerator[None, None]:
        if self._is_busy:
            await self._wait(caller)
        self._is_busy = True
        try:
            yield
        finally:
            self._is_busy = False
            self._call_next()

    async def _wait(self, caller: str) -> None:
        own = self._waiting.get(caller, ())
        if len(own) >= MAX_CALLER_WAITING_PICTURES or self._count() >= MAX_WAITING_PICTURES:
            raise Saturated(
                f"{len(own)} large pictures of this caller, {self._count()} of all, wait to be decoded by this "
                "gateway already; try again later, or send smaller ones"
            )
        place = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(place)
        try:
            async with asyncio.timeout(self._wait_s):
                await place
        except TimeoutError:
            self._leave(caller, place)
            raise DeadlineExceeded(
                f"the picture was not decoded in {self._wait_s:.0f} s, because larger ones came before it; try again later"
            ) from None
        except BaseException:
            self._leave(caller, place)
            raise

    def _leave(self, caller: str, place: asyncio.Future[None]) -> None:
        """Give up a place; one whose turn has come gives the turn to the next."""
        if place.done() and not place.cancelled():
            self._is_busy = False
            self._call_next()
            return
        place.cancel()
        own = self._waiting.get(caller)
        if own is not None and place in own:
            own.remove(place)
            if not own:
                del self._waiting[caller]

    def _call_next(self) -> None:
        """Give the turn to the caller whose last one is longest ago."""
        for caller in list(self._waiting):
            own = self._waiting.pop(caller)
            place = own.popleft()
            if own:
                self._waiting[caller] = own  # behind all others
            if not place.done():
                self._is_busy = True
                place.set_result(None)
                return
