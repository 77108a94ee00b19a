"""What a replica's queue is by now, given what it was when the replica told of it.

A told queue is forgotten: after about twice the time that a request spends there, all that was in it has left, and what
is there instead depends on the others. Measured in the simulator, of the difference from its average that a queue
had, an e-th is left after one to three such times, for fast and slow replicas, few gateways and many. So what was told is
taken back towards the average, the more the older it is. Who reads old queues as if they were new finds the same
replica idle as all others who heard the same, and runs there with them.

The average is the replica's own, over the last seconds; of one that was hardly heard of, that of replicas of the same
class (`meshnode.routing.alike`). A replica of which nothing was ever heard is so no idle one.
"""

from __future__ import annotations

import math
from typing import Final

TURNOVERS: Final = 2.0
"""After so many times the time that a request spends there, an e-th of a queue's difference from its average is left."""

LEAST_KEPT_S: Final = 0.02
"""Time constant of a queue of runs that take no time: that of the network."""

AVERAGED_S: Final = 15.0
"""Seconds over which a queue is averaged: long beside its ups and downs, short beside a change of the load."""

OWN_AFTER_S: Final = 2.0
"""Seconds of reports until a replica's own average counts alone; before that, its class's counts with it."""

_LEAST_AVERAGED_S: Final = 0.25  # the first reports may come in the same instant


class UsualQueue:
    """The average queue of one replica, in requests in its system.

    Attributes:
        known_s: Seconds of reports that it is made of, `AVERAGED_S` at most.
        level: What a told queue is taken back to.
        kept_s: After so many seconds an e-th of what was told is left.
        is_known: Whether there is such a level.
    """

    __slots__ = ("_average", "is_known", "kept_s", "known_s", "level")

    def __init__(self) -> None:
        self._average = 0.0
        self.known_s = 0.0
        self.level = 0.0
        self.kept_s = LEAST_KEPT_S
        self.is_known = False

    def __repr__(self) -> str:
        return f"<UsualQueue {self.level:.2g} over {self.known_s:.2g} s>"

    def held(self, in_system: int, for_s: float) -> None:
        """What was told held for so many seconds, until the next report."""
        known_s = self.known_s = min(AVERAGED_S, self.known_s + for_s)
        gain = 1.0 - math.exp(-for_s / max(_LEAST_AVERAGED_S, known_s))
        self._average += gain * (in_system - self._average)

    def told(self, slots: int, service_ms: float, crowd: float | None) -> None:
        """A report came: work out what its queue turns into, and how soon.

        Args:
            slots: Requests that run at once.
            service_ms: Time of one.
            crowd: Requests per slot at replicas of the same class; None if that is not known.
        """
        level, known_s = self._average, self.known_s
        if known_s < OWN_AFTER_S and crowd is not None:
            level += (1.0 - known_s / OWN_AFTER_S) * (crowd * slots - level)
        self.is_known = known_s > 0.0 or crowd is not None
        self.level = level
        self.kept_s = LEAST_KEPT_S + TURNOVERS * service_ms / 1000 * (1.0 + level / slots)

    def expected(self, in_system: int, age_s: float) -> float:
        """Return how many requests are taken to be there, so long after a report that told of `in_system`."""
        level = self.level
        if age_s <= 0.0 or in_system == level or not self.is_known:
            return in_system
        return level + math.exp(-age_s / self.kept_s) * (in_system - level)
