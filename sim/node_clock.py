"""A virtual node's clocks: those of its world, until somebody makes them run fast or sets them.

As on a machine, both count on while it sleeps (`meshnode.net.clock`); the monotonic one cannot be set, the wall clock
can. What stands still then are its timers, which are its driver's to keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.clock import Clock


class NodeClock:
    """A `Clock` that runs by another one.

    Attributes:
        is_true: Whether it has shown the world's own time ever since it was made.
    """

    __slots__ = ("_monotonic_s", "_rate", "_since_s", "_wall_s", "_world", "is_true")

    def __init__(self, world: Clock) -> None:
        """Begin with the time of `world`."""
        self.is_true = True
        self._world = world
        self._rate = 1.0
        self._since_s = self._monotonic_s = world.now()
        self._wall_s = world.wall_s()

    def __repr__(self) -> str:
        return f"<NodeClock {self.now():.6f} s, rate {self._rate:g}>"

    @property
    def rate(self) -> float:
        """How fast it runs; 1 is right."""
        return self._rate

    @property
    def since_s(self) -> float:
        """The world's second in which it was last set or made to run otherwise."""
        return self._since_s

    def now(self) -> float:
        """Return the node's monotonic seconds."""
        if self.is_true:
            return self._world.now()
        return self._monotonic_s + (self._world.now() - self._since_s) * self._rate

    def wall_s(self) -> float:
        """Return what the node takes for the seconds since the Unix epoch."""
        if self.is_true:
            return self._world.wall_s()
        return self._wall_s + (self._world.now() - self._since_s) * self._rate

    def run_at(self, rate: float) -> None:
        """Run so fast from now on, above 0."""
        self._begin_anew()
        self._rate = rate

    def jump(self, by_s: float) -> None:
        """Set the wall clock forward, or back if negative."""
        self._begin_anew()
        self._wall_s += by_s

    def _begin_anew(self) -> None:
        now, wall_s = self.now(), self.wall_s()
        if self.is_true:
            self.is_true = False
        self._since_s, self._monotonic_s, self._wall_s = self._world.now(), now, wall_s
