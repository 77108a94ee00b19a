"""When a model that keeps the memory of its runs for the next ones should give it back.

A run cannot take memory without taking time: filling it alone takes 0.2 s per GB. So a run that took many
times longer than runs usually do here has left memory that they do not need.
"""

from __future__ import annotations

import math
from typing import Final

from meshnode.limits import SHRINK_EVERY_S, SHRINK_FROM_S

_UNUSUAL: Final = 16.0
"""Times the usual: a batch of a dozen rows is nothing unusual."""

_WEIGHT: Final = 0.1
"""Of a run in the usual time: about the last twenty count."""

_SURPRISE: Final = 4.0
"""A run counts for at most this multiple of the usual, so that one large run does not seem usual."""


class RunMemory:
    """Watches the longer runs of one model; may be told by several threads at once, roughly."""

    __slots__ = ("_longest_s", "_next_at", "_usual_s")

    def __init__(self) -> None:
        """Expect short runs."""
        self._usual_s = SHRINK_FROM_S / _UNUSUAL
        self._longest_s = 0.0
        self._next_at = -math.inf

    def __repr__(self) -> str:
        return (
            f"<RunMemory usual={self._usual_s * 1e3:.1f} ms longest={self._longest_s * 1e3:.1f} ms>"
        )

    def is_to_shrink(self, took_s: float, now: float) -> bool:
        """Take the time of a run of `SHRINK_FROM_S` or more; return whether memory is to be given back now.

        Args:
            took_s: Seconds.
            now: Monotonic seconds.
        """
        self._longest_s = max(self._longest_s, took_s)
        unusual = self._longest_s >= SHRINK_FROM_S and self._longest_s > _UNUSUAL * self._usual_s
        self._usual_s += _WEIGHT * (min(took_s, _SURPRISE * self._usual_s) - self._usual_s)
        if not unusual or now < self._next_at:
            return False
        self._longest_s = 0.0
        self._next_at = now + SHRINK_EVERY_S
        return True
