"""The average of a replica's run times that others are told: steady, and quick when something has changed.

Run times of one model differ by chance, or by the sizes of requests: of the last twenty that take one second on
average, exponentially distributed, the average is off by a fifth, and a gateway that believes it sends its
requests to whoever was lucky lately. So some two hundred runs count. But a device that throttles, or whose
neighbour has begun a backup, is slower from one run to the next, and two hundred runs are minutes. Therefore a
second, short average is kept beside: where the two are further apart than chance explains, the long one starts
anew from the short one.
"""

from __future__ import annotations

from typing import Final

SHORT_GAIN: Final = 0.1
"""Share of the newest run in the short average: about the last twenty count."""

SHORT_RUNS: Final = 10
"""Runs before the averages are compared: fewer say too little."""

WORTH_RUNS: Final = 3
"""Runs that the short average is worth when the long one starts anew from it: it still holds old runs."""

LONG_RUNS: Final = 100
"""The newest run's share in the long average is one hundredth at least: about the last two hundred count."""

CHANGED: Final = 1.3
"""By how many usual distances of a single run one average may exceed the other. For exponential run times that is
a factor of two, which chance passes once in a thousand runs or more."""


class RunAverage:
    """A long average of run times that starts anew when the runs have changed.

    Attributes:
        mean: The average, in whatever unit the runs are; 0 before the first.
    """

    __slots__ = ("_distance", "_runs", "_short", "mean")

    def __init__(self, mean: float = 0.0) -> None:
        """Begin with nothing, or with what is believed before the first run."""
        self.mean = mean
        self._short = mean
        self._distance = (
            mean  # mean distance of a run from the average: of exponential runs three quarters
        )
        self._runs = 1 if mean > 0.0 else 0

    def __repr__(self) -> str:
        return f"<RunAverage {self.mean:.3g}>"

    def observe(self, run: float) -> None:
        """Take one run's time, above 0."""
        runs = self._runs
        if runs == 0:
            self.__init__(run)  # type: ignore[misc]  # it begins with this one
            return
        mean, distance = self.mean, self._distance
        self._short = short = self._short + SHORT_GAIN * (run - self._short)
        bound = 1.0 + CHANGED * distance / mean
        if runs >= SHORT_RUNS and (short > bound * mean or bound * short < mean):
            self.mean = short
            self._runs = WORTH_RUNS
            self._distance = distance * (short / mean)
            return
        self._runs = runs = runs + 1
        gain = 1.0 / min(runs, LONG_RUNS)
        self.mean = mean + gain * (run - mean)
        self._distance = distance + gain * (abs(run - mean) - distance)
