"""Outlier detection: which replicas answer so much worse than the others that they are to be left alone.

Failures in a row open a breaker by themselves. What is seen here is rarer: a replica that fails a
third of its requests, or that takes far longer than it says, while the others of the same model
version do not. As in Envoy's outlier detection a replica is judged by its answer rate against mean
and standard deviation; unlike there, against those of the *others* alone, because a single bad one
of five moves the mean and widens the deviation so much that it never lies 1.9 of them away.

Slowness is observed over predicted time. A replica that is slow and says so is none of the business
here, for the score knows it; nor is one that is a few times slower than it says, which the score
learns. Beyond that the score has no number.

Only replicas that were asked often enough are found to stand out. For answer rates the others count only if they were
asked as often. For slowness all in use count, those with few answers as about as fast as they say: else one that says
that it is far faster than it is would get all requests, and nobody would be left to compare it with.
"""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshnode.routing.config import RoutingConfig

K = TypeVar("K")

SUCCESS_RATE: Final = "success_rate"
LATENCY: Final = "latency"
"""Causes of an ejection, beside the codes of errors."""

MIN_COMPARED: Final = 3
"""With two that differ nobody knows which of them is wrong."""

ASSUMED_ANSWERS: Final = 4
"""Answers as predicted that are assumed of a replica that had fewer than it takes to judge it."""

TALLY_AGE_S: Final = 30.0
"""What was counted longer ago says little of the present: a tally begins anew."""

_LEAST_SLOWNESS: Final = 1e-3  # far below any ratio that means something; its logarithm is finite


class Tally:
    """What became of the requests to one replica, since a time.

    Attributes:
        since: When it began (monotonic seconds).
        ended: Requests that were answered or failed.
        failed: Of these, those that failed.
        timed: Those whose slowness is known.
    """

    __slots__ = ("_slowness", "ended", "failed", "since", "timed")

    def __init__(self, now: float) -> None:
        self.begin(now)

    def __repr__(self) -> str:
        return f"<Tally {self.failed} of {self.ended} failed, slowness {self.slowness:.2f}>"

    def begin(self, now: float) -> None:
        """Count from zero."""
        self.since = now
        self.ended = 0
        self.failed = 0
        self.timed = 0
        self._slowness = 0.0

    def count(self, *, ok: bool, slowness: float | None) -> None:
        """Count a request that ended; `slowness` is its observed over its predicted time."""
        self.ended += 1
        self.failed += not ok
        if slowness is not None:
            self.timed += 1
            self._slowness += math.log(max(_LEAST_SLOWNESS, slowness))

    @property
    def answered_share(self) -> float:
        """Share of the requests that were answered."""
        return 1.0 - self.failed / self.ended if self.ended else 1.0

    @property
    def slowness(self) -> float:
        """Geometric mean of observed over predicted time; 1 where nothing is known."""
        return math.exp(self.log_slowness(0))

    def log_slowness(self, assumed: int) -> float:
        """Return the logarithm of the slowness, as if there were so many more answers that took what was predicted."""
        answers = self.timed + assumed
        return self._slowness / answers if answers else 0.0


def outliers(tallies: Mapping[K, Tally], config: RoutingConfig) -> dict[K, str]:
    """Return those that stand out, with the cause: `success_rate` or `latency`.

    Args:
        tallies: Of the replicas of one model version that are in use.
        config: What is enough to compare, and what stands out.
    """
    least = config.outlier_requests
    rates = {key: each.answered_share for key, each in tallies.items() if each.ended >= least}
    slow = {
        key: each.log_slowness(0 if each.timed >= least else ASSUMED_ANSWERS)
        for key, each in tallies.items()
    }
    found = {key: LATENCY for key in _slow_ones(slow, config) if tallies[key].timed >= least}
    return found | dict.fromkeys(_failing_ones(rates, config), SUCCESS_RATE)


def _failing_ones(rates: Mapping[K, float], config: RoutingConfig) -> list[K]:
    if len(rates) < MIN_COMPARED:
        return []
    total = sum(rates.values())
    squares = sum(each * each for each in rates.values())
    others = len(rates) - 1
    found = []
    for key, rate in rates.items():
        mean = (total - rate) / others
        deviation = math.sqrt(max(0.0, (squares - rate * rate) / others - mean * mean))
        if rate < mean - max(config.outlier_deviations * deviation, config.outlier_least_gap):
            found.append(key)
    return found


def _slow_ones(logs: Mapping[K, float], config: RoutingConfig) -> list[K]:
    if len(logs) < MIN_COMPARED:
        return []
    usual = median(logs.values())
    return [key for key, each in logs.items() if each > usual + math.log(config.outlier_slowness)]
