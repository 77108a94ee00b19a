"""How much longer than its average a model takes for a request of some size, learned from the run times of answers.

A model's run time is taken to be a sum: a part that every request costs, and one for each row, each token that may be
written and each byte of input. How much each costs differs between models and between kinds of devices (a batch of
64 rows costs a GPU hardly more than one row, and a laptop 64 times as much), so there is a `SizeModel` for each model
version and device class. It learns multiples of the replica's own average, so that all replicas of a class teach one
model although one of them is throttled or shared.

The weights are found by recursive least squares with forgetting: the newest hundred answers or so count. A run time
is predicted only from what was seen: sizes beyond the seen ones count as the largest seen. And it is predicted only
while that explains clearly more than the average alone does; until then, and where sizes do not vary, every request
is an average one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.routing.request import RoutedRequest

FORGETTING: Final = 0.99
"""Share of what was known that counts after one more answer: the newest hundred decide."""

LEAST_ANSWERS: Final = 12
"""Answers of differing sizes before a size says anything: three for each weight."""

EXPLAINS: Final = 0.7
"""A size is believed while the model's squared errors are at most this share of those of the average."""

LEAST_FACTOR: Final = 1 / 64
"""No request is predicted to take a smaller share of the average than this: every run costs something."""

MOST_FACTOR: Final = 64.0
"""No request is predicted to take a larger multiple of the average: one outlier must not close a class of devices."""

LEAST_RUN_MS: Final = 1.0
"""Shorter runs teach nothing: the network decides where they go, and learning would cost as much as they do."""

_WEIGHTS: Final = 4
_SCALES: Final = (1.0, 1 / 16, 1 / 256, 2.0**-18)  # so that usual sizes are about 1
_UNSURE: Final = 100.0  # of each weight at the beginning, as a variance
_MOST_UNSURE: Final = 1e6  # where sizes do not vary, forgetting must not make it grow for ever


class SizeModel:
    """What a request's size says of its run time, for one model version on one class of devices.

    Attributes:
        is_trusted: Whether sizes are believed now; else `factor` is 1 for all.
    """

    __slots__ = (
        "_answers",
        "_cached",
        "_cached_factor",
        "_covariance",
        "_error_by_mean",
        "_error_by_size",
        "_first",
        "_largest",
        "_mean",
        "_weights",
        "is_trusted",
    )

    def __init__(self) -> None:
        self.is_trusted = False
        self._answers = 0
        self._mean = 1.0
        self._first: tuple[float, ...] | None = None
        self._largest = [0.0] * _WEIGHTS
        self._weights = [1.0] + [0.0] * (_WEIGHTS - 1)
        self._covariance = [
            [_UNSURE if row == column else 0.0 for column in range(_WEIGHTS)]
            for row in range(_WEIGHTS)
        ]
        self._error_by_size = 0.0
        self._error_by_mean = 0.0
        # One request is scored for all replicas of a class in turn: its factor is worked out once.
        self._cached: RoutedRequest | None = None
        self._cached_factor = 1.0

    def __repr__(self) -> str:
        state = "trusted" if self.is_trusted else "not trusted"
        weights = ", ".join(f"{each:.3g}" for each in self._weights)
        return f"<SizeModel {state} after {self._answers} answers: {weights}>"

    def factor(self, request: RoutedRequest) -> float:
        """Return by how much longer than an average request this one is expected to run; 1 while nothing is known."""
        if not self.is_trusted:
            return 1.0
        if request is not self._cached:
            self._cached = request
            self._cached_factor = self._bounded(self._predicted(_sizes(request)))
        return self._cached_factor

    def observe(self, request: RoutedRequest, run_ms: float, mean_ms: float) -> None:
        """Learn from an answer.

        Args:
            request: What was asked for.
            run_ms: How long it ran, without waiting.
            mean_ms: The average of the replica that ran it, at that time.
        """
        if not LEAST_RUN_MS <= run_ms < math.inf or not mean_ms > 0.0:
            return
        sizes = _sizes(request)
        if self._first is None:
            self._first = sizes
        if self._first == sizes and not self._answers:
            return  # all alike so far
        multiple = min(2 * MOST_FACTOR, run_ms / mean_ms)
        self._judge(sizes, multiple)
        self._learn(sizes, multiple)
        self._cached = None

    def _predicted(self, sizes: tuple[float, ...]) -> float:
        """Return the multiple for these sizes, none of them taken to be larger than was seen."""
        return sum(
            weight * min(size, largest)
            for weight, size, largest in zip(self._weights, sizes, self._largest, strict=True)
        )

    @staticmethod
    def _bounded(multiple: float) -> float:
        return min(MOST_FACTOR, max(LEAST_FACTOR, multiple))

    def _judge(self, sizes: tuple[float, ...], multiple: float) -> None:
        """Compare what was predicted for an answer, before it is learned, with what happened."""
        by_size = (self._bounded(self._predicted(sizes)) - multiple) ** 2
        by_mean = (self._mean - multiple) ** 2
        if self._answers >= _WEIGHTS:  # the first guesses say nothing of later ones
            self._error_by_size = FORGETTING * self._error_by_size + by_size
            self._error_by_mean = FORGETTING * self._error_by_mean + by_mean
        self._answers += 1
        self._mean += max(1.0 / self._answers, 1.0 - FORGETTING) * (multiple - self._mean)
        self._largest = [*map(max, self._largest, sizes)]
        self.is_trusted = (
            self._answers >= LEAST_ANSWERS and self._error_by_size <= EXPLAINS * self._error_by_mean
        )

    def _learn(self, sizes: tuple[float, ...], multiple: float) -> None:
        """One step of recursive least squares."""
        covariance = self._covariance
        spread = [sum(map(_times, row, sizes)) for row in covariance]
        known = FORGETTING + sum(map(_times, sizes, spread))
        if not FORGETTING <= known < math.inf:  # rounding has won: absurd sizes, or many of them
            self.__init__()  # type: ignore[misc]  # it begins again
            return
        error = multiple - sum(map(_times, self._weights, sizes))
        self._weights = [
            weight + each / known * error
            for weight, each in zip(self._weights, spread, strict=True)
        ]
        keeps = max(covariance[each][each] for each in range(_WEIGHTS)) > _MOST_UNSURE
        forgetting = 1.0 if keeps else FORGETTING
        for row in range(_WEIGHTS):
            for column in range(row, _WEIGHTS):  # symmetric, whatever the rounding
                left = covariance[row][column] - spread[row] * spread[column] / known
                covariance[row][column] = covariance[column][row] = left / forgetting


def _times(one: float, other: float) -> float:
    return one * other


def _sizes(request: RoutedRequest) -> tuple[float, ...]:
    _, rows, tokens, size_bytes = _SCALES
    return (1.0, request.rows * rows, request.tokens * tokens, request.size_bytes * size_bytes)
