"""Virtual time: a heap of calls, run in the order of their times, then of their making.

Nothing waits. The clock jumps to the next call's time, so a minute of a quiet world costs as much
as its few calls do.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

WALL_START_S: Final = 1_750_000_000.0
"""The Unix time at which worlds begin (June 2025), so that stamps and expiry dates look real."""


class Scheduler:
    """A virtual `Clock` and what is to happen on it."""

    def __init__(self, wall_start_s: float = WALL_START_S) -> None:
        """Begin at monotonic second 0 with nothing to do."""
        self._now = 0.0
        self._wall_start_s = wall_start_s
        self._made = 0
        self._calls: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        return f"<Scheduler at {self._now:.6f} s, {len(self._calls)} calls ahead>"

    def now(self) -> float:
        """Return virtual seconds since the world began."""
        return self._now

    def wall_s(self) -> float:
        """Return virtual seconds since the Unix epoch."""
        return self._wall_start_s + self._now

    def at(self, time_s: float, call: Callable[..., object], *args: Any) -> None:
        """Run `call(*args)` at a time, at once if it has passed; equal times keep their order."""
        self._made += 1
        heappush(self._calls, (max(time_s, self._now), self._made, call, args))

    def after(self, delay_s: float, call: Callable[..., object], *args: Any) -> None:
        """Run `call(*args)` after `delay_s` seconds."""
        self.at(self._now + delay_s, call, *args)

    def run_to(self, time_s: float) -> None:
        """Run all calls up to and including this time, then stand at it."""
        calls = self._calls
        while calls and calls[0][0] <= time_s:
            self._now, _, call, args = heappop(calls)
            call(*args)
        self._now = max(self._now, time_s)
