"""Signs of life of a streamed answer between its parts.

By them its reader tells a model that takes its time from a stream that has stalled.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshnode.limits import MAX_LIFE_SIGN_S

if TYPE_CHECKING:
    from collections.abc import Callable

_SHORTEST_S = 0.1  # whoever asks for more of them gets so many


def interval_s(asked_ms: float) -> float:
    """Return how often a peer is told that its stream lives, in seconds; 0 if it asked for no signs."""
    return min(max(asked_ms / 1e3, _SHORTEST_S), MAX_LIFE_SIGN_S) if asked_ms > 0 else 0.0


class LifeSigns:
    """Tells signs of life while nothing else is told.

    A reader that takes nothing is told nothing: a sign would wait behind what it has not taken.
    """

    __slots__ = ("_interval_s", "_is_held", "_loop", "_tell", "_timer", "_told_at")

    def __init__(self, interval_s: float, tell: Callable[[], None]) -> None:
        """Call `tell` after each `interval_s` seconds of silence; never if that is 0."""
        self._interval_s = interval_s
        self._tell = tell
        self._is_held = False
        self._loop = asyncio.get_running_loop()
        self._told_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        if interval_s:
            self._timer = self._loop.call_later(interval_s, self._look)

    def __repr__(self) -> str:
        return f"<LifeSigns each {self._interval_s} s>"

    def told(self) -> None:
        """Note that a part was told."""
        self._told_at = self._loop.time()

    def hold(self, *, held: bool) -> None:
        """Note that the reader takes nothing at present, or does again."""
        self._is_held = held

    def close(self) -> None:
        """Tell no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        left_s = self._told_at + self._interval_s - self._loop.time()
        if left_s <= 0:
            if not self._is_held:
                self._tell()
            self.told()
            left_s = self._interval_s
        self._timer = self._loop.call_later(left_s, self._look)
