"""How many requests of one model a gateway has in flight at most: no more than are answered in good time.

While answers come in good time there is no limit. Each answer is compared with its target, a share of the time
that its caller gave it (`TARGET_SHARE`, and never less than twice what a free replica takes). When they take
longer on average, more is in flight than is good: by Little's law (L = throughput x time) answers take the target
if `in flight x target / time` are. That is the gradient of Netflix's concurrency limits (their `Gradient2Limit`),
with the callers' patience in the place of the long-term average, which drifts as the overload lasts.

    open      no limit: as many as come
      │ the answers of a period took longer than their targets on average
    limited   limit = in flight x gradient + sqrt(limit), gradient = target / time, 0.5 to 1, once per period;
      │       no less than `MIN_CONCURRENCY`. While they take less and the limit is in use it grows by the root.
      └─ it was not needed for `FORGET_S` ──> open

A period is as long as an answer takes, 0.1 s at least: what the last change did shows no sooner. A request that was
refused by every replica, or was not answered in time, counts as one that took twice its target.
"""

from __future__ import annotations

import math
from typing import Final

from meshnode.limits import MAX_REQUESTS_IN_FLIGHT, MIN_CONCURRENCY

TARGET_SHARE: Final = 0.4
"""Share of a caller's time that its answer should take under overload: what is left is for another try."""

LEAST_GRADIENT: Final = 0.5
"""A period halves the limit at most, so that a single bad one does not refuse everybody."""

LEAST_PERIOD_S: Final = 0.1
"""Seconds between two changes at least: of fewer answers the mean would be noise."""

LEAST_SAMPLES: Final = 8
"""Answers of a period at least, for the same reason."""

FORGET_S: Final = 10.0
"""Seconds without need after which there is no limit again."""

IN_USE: Final = 0.5
"""Share of the limit that has to be in flight for it to grow: unused room says nothing about more."""


class ConcurrencyLimit:
    """The limit of one model at one gateway.

    Attributes:
        limit: Requests that may be in flight; infinite while there is no limit.
        answer_s: What answers took of late, in seconds; 0 before the first.
        per_s: Answers per second of late.
    """

    __slots__ = (
        "_answers",
        "_began_at",
        "_needed_at",
        "_peak",
        "_ratios",
        "_samples",
        "_took_s",
        "answer_s",
        "limit",
        "per_s",
    )

    def __init__(self) -> None:
        """Begin without a limit."""
        self.limit = math.inf
        self.answer_s = 0.0
        self.per_s = 0.0
        self._began_at = -math.inf
        self._needed_at = -math.inf
        self._samples = 0
        self._answers = 0
        self._took_s = 0.0
        self._ratios = 0.0
        self._peak = 0

    def __repr__(self) -> str:
        return f"<ConcurrencyLimit {self.limit:.1f}, answers take {self.answer_s * 1000:.3g} ms>"

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at present."""
        return self.limit < math.inf

    def answered(
        self, took_s: float, timeout_s: float, alone_s: float, in_flight: int, now: float
    ) -> None:
        """Learn from an answer.

        Args:
            took_s: Seconds from its coming to the answer, or to its first part.
            timeout_s: Seconds that its caller gave it.
            alone_s: Seconds that it would take at a free replica.
            in_flight: Requests of the model that were in flight, this one included.
            now: Monotonic seconds.
        """
        target_s = max(TARGET_SHARE * timeout_s, 2 * alone_s)
        self._answers += 1
        self._learn(took_s, took_s / target_s if target_s > 0 else 2.0, in_flight, now)

    def failed(self, took_s: float, in_flight: int, now: float) -> None:
        """Learn that a request found every queue full, or that there was no answer in time."""
        self._learn(took_s, 2.0, in_flight, now)

    def retry_after_s(self, in_flight: int) -> float:
        """Return after how many seconds what is in flight should be worked off."""
        if self.per_s <= 0:
            return self.answer_s
        return in_flight / self.per_s

    def _learn(self, took_s: float, ratio: float, in_flight: int, now: float) -> None:
        if self._samples == 0 and now - self._began_at > FORGET_S:
            self._restart(now)  # the first in a long time: what was before is no part of its period
        self._samples += 1
        self._took_s += took_s
        self._ratios += ratio
        self._peak = max(self._peak, in_flight)
        period_s = max(LEAST_PERIOD_S, self.answer_s)
        if now - self._began_at >= period_s and self._samples >= LEAST_SAMPLES:
            self._change(now)

    def _change(self, now: float) -> None:
        """Set the limit by what a period has shown."""
        self.answer_s = self._took_s / self._samples
        passed_s = now - self._began_at
        self.per_s = self._answers / passed_s if passed_s > 0 else 0.0
        gradient = min(1.0, max(LEAST_GRADIENT, self._samples / self._ratios))
        in_flight = min(float(self._peak), self.limit)
        if gradient < 1.0:
            self.limit = max(MIN_CONCURRENCY, in_flight * gradient + math.sqrt(in_flight))
            self._needed_at = now
        elif self.is_limited:
            if self._peak >= IN_USE * self.limit:
                self.limit += math.sqrt(self.limit)
            if now - self._needed_at > FORGET_S or self.limit > MAX_REQUESTS_IN_FLIGHT:
                self.limit = math.inf
        self._restart(now)

    def _restart(self, now: float) -> None:
        self._began_at = now
        self._samples = 0
        self._answers = 0
        self._took_s = 0.0
        self._ratios = 0.0
        self._peak = 0
