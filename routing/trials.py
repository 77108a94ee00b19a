"""Who was slow may be well again: when such a replica is given a request as if it were, and what that shows.

Who gets no requests cannot show that it has recovered, and its own average of run times does not change without runs. So
an idle replica that is slow, by its own word or by what was seen of it, is due for a trial once nothing was heard of
its runs for a while: one request for which it counts as usual. A slow trial doubles the time until the next. A quick one
is followed by others at once, as many at a time as were quick in a row, until the replica's own average has followed:
that is made of many runs, and would take long if it were for each gateway to make them one by one.

What is usual is learned from what the replica said. While it is slow that stays as it was, so that there is something to
recover to; who is slow for longer than `SLOW_S` is becoming a slow replica, and after minutes is tried no more.
"""

from __future__ import annotations

import math
from typing import Final

TRIAL_AFTER_S: Final = 2.0
"""An idle replica that was slow is given one request after so many seconds without an answer: nothing else can show
that it is well again. Each trial that is slow doubles the time, so that who stays slow costs next to nothing."""

TRIAL_AFTER_MOST_S: Final = 10.0
"""The longest time between two trials."""

TRIED_FACTOR: Final = 1.6
"""An idle replica that says that its runs take so many times what they usually took is slow for the time being: so much
more keeps it from being chosen, and then nothing it says will change."""

USUAL_S: Final = 120.0
"""Seconds over which the usual run time is averaged: who is slow for longer is a slow replica, and not tried in vain
for ever."""

USUAL_LEAST_S: Final = 5.0
"""Seconds of reports before there is a usual run time."""

SLOW_S: Final = 30.0
"""For so many seconds a slow replica's word leaves its usual run time as it was."""

STEP_S: Final = 0.5
"""Between two steps of that average."""


class Trials:
    """The trials of one replica by one gateway.

    Attributes:
        after_s: Seconds without an answer until a trial; 0 after a quick one.
        quick: Trials in a row that were quick; 0 of a replica that is not slow.
        slow_above_ms: Its own word above which it is slow; infinite until something is usual.
    """

    __slots__ = (
        "_from",
        "_log_ms",
        "_slow_from",
        "_stepped_at",
        "after_s",
        "quick",
        "slow_above_ms",
    )

    def __init__(self) -> None:
        self.after_s = TRIAL_AFTER_S
        self.quick = 0
        self.slow_above_ms = math.inf
        self._log_ms = 0.0  # the average is geometric
        self._from = self._stepped_at = self._slow_from = -math.inf

    def __repr__(self) -> str:
        return f"<Trials: slow above {self.slow_above_ms:.3g} ms, the last {self.quick} quick>"

    @property
    def usual_ms(self) -> float:
        """The run time that is usual; infinite until there is one."""
        return self.slow_above_ms / TRIED_FACTOR

    def begins(self, now: float) -> None:
        """The first report came."""
        self._from = self._stepped_at = self._slow_from = now

    def held(self, service_ms: float, now: float) -> None:
        """The run time that was said last has held until now."""
        passed_s = now - self._stepped_at
        if passed_s < STEP_S:
            return
        self._stepped_at = now
        if service_ms <= self.slow_above_ms:
            self._slow_from = now
            self.quick = 0
            share = passed_s / min(USUAL_S, now - self._from)
        elif now - self._slow_from < SLOW_S:
            return
        else:
            share = passed_s / USUAL_S
        self._log_ms += min(1.0, share) * (math.log(service_ms) - self._log_ms)
        if now - self._from >= USUAL_LEAST_S:
            self.slow_above_ms = TRIED_FACTOR * math.exp(self._log_ms)
        if service_ms <= self.slow_above_ms:
            self.after_s = TRIAL_AFTER_S

    def ended(self, *, quick: bool) -> None:
        """A trial was answered, quickly or not, or failed."""
        if quick:
            self.quick += 1
            self.after_s = 0.0
        else:
            self.quick = 0
            self.after_s = min(TRIAL_AFTER_MOST_S, max(TRIAL_AFTER_S, 2 * self.after_s))
