"""How long requests wait at a replica: what it tells of its queue, set right by what this gateway's own requests met.

A queue that is told of is as good as it is young. A fast replica's queue turns over in a tenth of a second, so news
that is five seconds old says nothing of it; and where all gateways believe it, all of them run to whoever was idle
five seconds ago. How old news really is no gateway can know: clocks differ, and who is late says so late. But it can
see whether news comes true. Each answer tells how long the request waited (its time less the way and the run); so for
each replica the waits met are held against the waits told, as a line through their averages: its slope is what one
more told is worth. Fresh reports come true, and the slope is near 1; old ones say nothing, the slope is near 0, and
the average of the own waits is what is expected, whatever is told. Reports are trusted beforehand, by a slope of 1.

What the own answers said fades within seconds, so that a replica whose queue was long is asked again.
"""

from __future__ import annotations

import math
from typing import Final

GAIN: Final = 0.02
"""Share of the newest answer in all averages: about the last hundred count. With fewer the slope is noise, and with it
the choice between two fast replicas."""

TRUSTED: Final = 1.0
"""Weight of the trust in reports, as a sum of squares of told waits, in service times: until what was told has varied
by more than a run or so nothing speaks against it."""

LEAST_ANSWERS: Final = 3
"""Answers before their average says anything."""

FADES_S: Final = 6.0
"""Time constant with which the own answers lose their weight once none comes."""


class Waits:
    """The waits at one replica, in multiples of its service time.

    Attributes:
        level: Average wait of this gateway's last requests there.
        answers: How many it has seen.
        slope: By how much more is waited where one more is told, 0 to 1. It is asked for each candidate of each request,
            and changes with an answer.
    """

    __slots__ = ("_at", "_together", "_told", "_told_spread", "answers", "level", "slope")

    def __init__(self) -> None:
        self.level = 0.0
        self.answers = 0
        self.slope = 1.0
        self._at = -math.inf
        self._told = 0.0  # average of what was told
        self._told_spread = 0.0  # sum of its squared distances from that, the older the less
        self._together = 0.0  # the same of its distances times those of the waits

    def __repr__(self) -> str:
        return (
            f"<Waits {self.level:.2g} after {self.answers} answers, told is worth {self.slope:.0%}>"
        )

    def expected(self, told: float, now: float) -> float:
        """Return the wait to expect, given the one that the replica's report makes expect."""
        if self.answers < LEAST_ANSWERS:
            return told
        known = math.exp((self._at - now) / FADES_S)
        met = self.level + self.slope * (told - self._told)
        return known * met + (1.0 - known) * told if met > 0.0 else (1.0 - known) * told

    def observe(self, told: float, waited: float, now: float) -> None:
        """Take how long a request waited.

        Args:
            told: The wait that the report made expect when it was sent, in service times.
            waited: The wait it had.
            now: Monotonic seconds.
        """
        self.answers += 1
        gain = max(GAIN, 1.0 / self.answers)
        more_told, more_waited = told - self._told, waited - self.level
        self._told += gain * more_told
        self.level += gain * more_waited
        rest = 1.0 - gain
        self._told_spread = (1.0 - GAIN) * self._told_spread + rest * more_told * more_told
        self._together = (1.0 - GAIN) * self._together + rest * more_told * more_waited
        slope = (self._together + TRUSTED) / (self._told_spread + TRUSTED)
        self.slope = min(1.0, max(0.0, slope))
        self._at = now
