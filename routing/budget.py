"""How many retries, and how many hedges, a gateway may make, whatever fails.

Retries multiply load exactly when a mesh has none to spare, so they are bounded by a share of the
requests that came in (as in Finagle's RetryBudget): in any window of 10 s at most
`max(ratio x requests, floor_per_s x 10)` retries.

A retry that waits before it is sent has been counted already: pauses are far shorter than the window.

Time is cut into buckets of one second. The sums err on the safe side: retries are counted over
the bucket of now and ten whole ones before it (10 s or more), requests over the bucket of now and
nine before it (10 s or less).
"""

from __future__ import annotations

import math
from typing import Final

WINDOW_S: Final = 10
"""Seconds over which requests and retries are compared."""

_BUCKETS = WINDOW_S + 1


class RetryBudget:
    """Counts requests, and grants retries while there are few enough.

    Attributes:
        granted: Retries granted so far.
        refused: Retries refused so far.
    """

    def __init__(self, ratio: float, floor_per_s: float) -> None:
        """Allow `ratio` retries per request, and `floor_per_s` retries a second in any case."""
        self._ratio = ratio
        self._floor = floor_per_s * WINDOW_S
        self._second = -(2**62)
        self._requests = [0] * _BUCKETS
        self._retries = [0] * _BUCKETS
        self.granted = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<RetryBudget {sum(self._retries)} of {self.allowed:.0f} retries used>"

    @property
    def allowed(self) -> float:
        """Retries that the last window's requests allow."""
        oldest = (self._second + 1) % _BUCKETS
        requests = sum(self._requests) - self._requests[oldest]
        return max(self._ratio * requests, self._floor)

    def request(self, now: float) -> None:
        """Count a request (not its retries)."""
        second = math.floor(now)
        if second > self._second:
            self._advance(second)
        self._requests[self._second % _BUCKETS] += 1

    def take(self, now: float) -> bool:
        """Take one retry from the budget; False if there is none left."""
        second = math.floor(now)
        if second > self._second:
            self._advance(second)
        if sum(self._retries) + 1 > self.allowed:
            self.refused += 1
            return False
        self.granted += 1
        self._retries[self._second % _BUCKETS] += 1
        return True

    def _advance(self, second: int) -> None:
        for passed in range(max(self._second + 1, second - _BUCKETS + 1), second + 1):
            self._requests[passed % _BUCKETS] = 0
            self._retries[passed % _BUCKETS] = 0
        self._second = second
