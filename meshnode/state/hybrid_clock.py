"""A hybrid logical clock: stamps that follow real time and never contradict causality.

A stamp is (wall clock in ms, counter). A new one is greater than every stamp made or seen before,
even when the wall clock stands still or goes back, and stays within the largest clock error of real
time (Kulkarni et al. 2014, "Logical physical clocks and consistent snapshots", algorithm 1; here
with one field for the physical part, since only sends make stamps).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

from meshnode.limits import MAX_STAMP_COUNTER, MAX_STAMP_WALL_MS


class Stamp(NamedTuple):
    """A point in hybrid time, ordered by its fields."""

    wall_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_STAMP_WALL_MS)]
    counter: Annotated[int, msgspec.Meta(ge=0, le=MAX_STAMP_COUNTER)]


class HybridClock:
    """The stamps of one node."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        """Begin before every stamp."""
        self.last = Stamp(0, 0)

    def __repr__(self) -> str:
        return f"<HybridClock at {self.last.wall_ms} ms + {self.last.counter}>"

    def tick(self, wall_ms: int) -> Stamp:
        """Return a new stamp, greater than all before, at `wall_ms` where that is possible."""
        if wall_ms > self.last.wall_ms:
            self.last = Stamp(wall_ms, 0)
        elif self.last.counter < MAX_STAMP_COUNTER:
            self.last = Stamp(self.last.wall_ms, self.last.counter + 1)
        else:
            self.last = Stamp(self.last.wall_ms + 1, 0)
        return self.last

    def see(self, stamp: Stamp) -> None:
        """Stay ahead of another node's stamp."""
        self.last = max(self.last, stamp)
