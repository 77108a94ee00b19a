"""When a second try beside a first one is worth its work.

A hedge (Dean and Barroso, "The Tail at Scale", CACM 2013) is sent when the first try has taken
longer than most answers do; whichever answers first is used, the other is cancelled. It costs a run
and wins a tail, so there are few: a share of the requests, and none while the candidates are so
busy that every second run delays a first one.

How long most answers take is learned per model version as a ratio to what was expected of the
chosen replica: expectations know of queues, sizes and devices already, so the ratio is about the
same everywhere, and a few dozen answers from anywhere teach it.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CANDIDATES_SCORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate

MIN_ANSWERS: Final = 50
"""Answers before a quantile is believed: of fewer, the 95th percentile is the largest but two."""

REMEMBERED: Final = 1000
"""Answers that are remembered: then all weights are halved, so that the last few hundred decide."""

_STEPS_PER_DOUBLING: Final = 4  # a bucket is 19 % wide: finer than such a time needs
_LEAST: Final = -4 * _STEPS_PER_DOUBLING  # a sixteenth of the expected time
_BUCKETS: Final = 11 * _STEPS_PER_DOUBLING  # up to 128 times
_RENEWED_EVERY: Final = 16  # answers


class AnswerTimes:
    """How long answers of one model version took until their first byte, relative to what was expected.

    Attributes:
        slow: The ratio that `quantile` of the answers stay below; infinite until enough came.
        slowest: The same for 99 % of them.
    """

    __slots__ = ("_counts", "_quantile", "_since", "_total", "slow", "slowest")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._counts = [0.0] * _BUCKETS
        self._total = 0.0
        self._since = 0
        self.slow = math.inf
        self.slowest = math.inf

    def __repr__(self) -> str:
        return f"<AnswerTimes of {self._total:.0f}, slow from {self.slow:.2f}>"

    def add(self, ratio: float) -> None:
        """Take an answer's observed over its expected time."""
        step = math.floor(_STEPS_PER_DOUBLING * math.log2(ratio)) - _LEAST if ratio > 0 else 0
        self._counts[min(_BUCKETS - 1, max(0, step))] += 1
        self._total += 1
        self._since += 1
        if self._total > REMEMBERED:
            self._counts = [each / 2 for each in self._counts]
            self._total /= 2
        if self._since >= _RENEWED_EVERY and self._total >= MIN_ANSWERS:
            self._since = 0
            self.slow = self._ratio_at(self._quantile)
            self.slowest = self._ratio_at(0.99)

    def _ratio_at(self, quantile: float) -> float:
        """Return the upper end of the bucket in which a quantile lies."""
        wanted = quantile * self._total
        sums = accumulate(self._counts)
        step = next((at for at, each in enumerate(sums) if each >= wanted), _BUCKETS - 1)
        return float(2.0 ** ((step + 1 + _LEAST) / _STEPS_PER_DOUBLING))


def utilisation(candidates: Sequence[Candidate]) -> float:
    """Return the share of the candidates' capacity that is in use, by what is believed of them.

    A slot of a fast replica counts as many times as it is faster. Of many candidates the first
    ones are looked at, whose order says nothing.
    """
    used = capacity = 0.0
    for each in candidates[:MAX_CANDIDATES_SCORED]:
        load = each.load
        rate = 1.0 / load.service_ms
        used += rate * min(load.slots, load.queued)
        capacity += rate * load.slots
    return used / capacity if capacity else 1.0


def is_worth_it(waited_s: float, other_ms: float) -> bool:
    """Whether another try beside one that has waited this long may be the sooner of both.

    Args:
        waited_s: Since the first was sent, in seconds.
        other_ms: Expected time of the other, in milliseconds: no more than what was waited already,
            so that whoever hedges loses at most as much again (the rule of the ski rental).
    """
    return other_ms <= 1000 * waited_s
