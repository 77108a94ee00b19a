"""The run times of replicas that are alike: what each says of itself is noisy, and noise makes herds.

A replica tells the average of its last runs. Where run times differ by chance, twenty equal servers tell averages
that lie a third apart, and all gateways hear the same ones; so all of them run to the server that was lucky lately.
That costs far more than any queue: with 200 gateways the slowest hundredth took seven times as long as with a random
choice. Servers of one class of devices are taken to be equally fast therefore, unless they say clearly that they are
not: each counts as the geometric mean of those whose averages are within `ALIKE` of its own. Who throttles, or shares
its device, soon says more than that, and stands alone at once; what lies below corrects itself, as answers later than
expected raise rho (`meshnode.routing.load`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

ALIKE: Final = 2.0
"""Averages of alike devices that differ by less differ by chance: of ten exponential run times, one in thirty does."""

SORTED_EVERY_S: Final = 0.25
"""Between looks at all of them: of 1,000 it takes a third of a millisecond."""

CROWD_GAIN: Final = 0.05
"""Share of the newest report in the average queue of all of them."""

_REACH: Final = math.log(ALIKE)


class Alike:
    """What the replicas of one model version on one class of devices say of their run times and their queues.

    Attributes:
        crowd: Requests in their systems per slot, on average of their reports; None without one.
    """

    def __init__(self) -> None:
        self.crowd: float | None = None
        self._told: dict[Hashable, float] = {}  # logarithms of milliseconds
        self._ordered: list[float] = []
        self._sums: list[float] = [0.0]
        self._ordered_at = -math.inf

    def __repr__(self) -> str:
        return f"<Alike: {len(self._told)} replicas>"

    def evened(self, replica: Hashable, told_ms: float, now: float) -> float:
        """Take what a replica says, above 0, and return the run time to expect of it, both in milliseconds."""
        own = self._told[replica] = math.log(told_ms)
        if len(self._told) < 2:
            return told_ms
        if now - self._ordered_at >= SORTED_EVERY_S:
            self._order(now)
        ordered = self._ordered
        first, last = bisect_left(ordered, own - _REACH), bisect_right(ordered, own + _REACH)
        if last <= first:
            return told_ms  # it has just become another
        return math.exp((self._sums[last] - self._sums[first]) / (last - first))

    def heard(self, per_slot: float) -> None:
        """One of them told how many requests it has per slot."""
        crowd = self.crowd
        self.crowd = per_slot if crowd is None else crowd + CROWD_GAIN * (per_slot - crowd)

    def forget(self, replica: Hashable) -> None:
        """A replica is gone."""
        self._told.pop(replica, None)

    def _order(self, now: float) -> None:
        self._ordered = sorted(self._told.values())
        self._sums = [0.0, *accumulate(self._ordered)]
        self._ordered_at = now
