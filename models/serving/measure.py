"""How long a model's runs take: the estimate behind inline-or-thread and behind load reports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.models.serving.run_average import RunAverage
from meshnode.types import DataType

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.models.manifest import Manifest
    from meshnode.types import Tensor

_WEIGHT = 0.1
"""Of a new measurement in the EWMA: about the last twenty runs count, and one that was disturbed
(a page fault) moves it a tenth of the way."""

_SURPRISE = 4.0
"""A run counts for at most this multiple of the estimate: when the system takes the processor away
for 10 ms, that says nothing about a 5 µs model. A model that really became slower is followed by
30 % per run."""

_UNSURE_RUNS = 4
"""Runs before the time of a model whose work its inputs' sizes do not tell is believed: the warm-up
and three real ones."""

_PATIENCE = 16
"""By how much more runs are needed after each surprise."""

_LAST_DISTRUST = 4
"""Surprises that count: after the fifth a quarter of a million runs are needed, which is nearly for ever."""

_AVERAGED_FROM_S = 1e-3
"""Runs as long as this are told of as the average of some two hundred (`RunAverage`): queues form before such models,
and gateways compare their averages. Shorter ones could not afford it."""

_SHORTEST_S = 1e-6
"""Below this a clock's own steps decide; an estimate of zero would never grow again."""

_INTEGERS = frozenset(each for each in DataType if "INT" in each)


class RunTime:
    """EWMAs of a version's run time, per unit of work and per run.

    Attributes:
        unit_s: Seconds per unit; None until something was measured.
        runs_needed: Runs still to be measured before an expectation is given.
        request_s: Seconds per run of the sizes that come: one request, or those that are joined.
        joined: Requests per run.
    """

    __slots__ = ("_average", "_distrusted", "joined", "request_s", "runs_needed", "unit_s")

    def __init__(self, runs_needed: int = 1) -> None:
        self.runs_needed = runs_needed
        self.unit_s: float | None = None
        self.request_s = 0.0
        self.joined = 1.0
        self._average = RunAverage()
        self._distrusted = 0

    def __repr__(self) -> str:
        unit = "?" if self.unit_s is None else f"{self.unit_s * 1e6:.1f} µs"
        return f"<RunTime unit={unit} request={self.request_s * 1e6:.1f} µs>"

    def expected_s(self, units: int) -> float:
        """Return the seconds that a request of this many units will take; inf if unknown."""
        if self.unit_s is None or self.runs_needed:
            return math.inf
        return self.unit_s * units

    def distrust(self) -> None:
        """Give no expectation until more runs were measured: one took far longer than expected.

        Each time sixteen times as many are needed, up to a quarter of a million: a model that surprises again and again is
        not one whose runs can be foreseen.
        """
        self.runs_needed = _UNSURE_RUNS * _PATIENCE ** min(self._distrusted, _LAST_DISTRUST)
        self._distrusted += 1

    def observe(self, elapsed_s: float, units: int) -> None:
        """Learn from one run of one request."""
        if self.runs_needed:
            self.runs_needed -= 1
        unit_s = self.unit_s
        if unit_s is None:
            self.unit_s = elapsed_s / units
            self.request_s = elapsed_s
            return
        # Written out where nothing surprises: this is on the path of every request of a small model.
        measured_s = elapsed_s / units
        if measured_s > _SURPRISE * unit_s:
            self.unit_s = _ewma(unit_s, measured_s)
        else:
            self.unit_s = unit_s + _WEIGHT * (measured_s - unit_s)
        if elapsed_s >= _AVERAGED_FROM_S:
            self._average.observe(elapsed_s)
            self.request_s = self._average.mean
            return
        request_s = self.request_s
        if elapsed_s > _SURPRISE * request_s:
            self.request_s = _ewma(request_s, elapsed_s)
        else:
            self.request_s = request_s + _WEIGHT * (elapsed_s - request_s)

    def observe_run(self, elapsed_s: float, requests: int) -> None:
        """Learn from one run of joined requests, which says nothing about the time of one alone."""
        self.joined += _WEIGHT * (requests - self.joined)
        if requests > 1:
            self._average = RunAverage()  # of runs of one request each, which is not what comes now
            self.request_s = _ewma(self.request_s, elapsed_s) if self.request_s else elapsed_s


def _ewma(estimate_s: float, measured_s: float) -> float:
    plausible_s = min(measured_s, _SURPRISE * max(estimate_s, _SHORTEST_S))
    return estimate_s + _WEIGHT * (plausible_s - estimate_s)


def has_free_sizes(manifest: Manifest) -> bool:
    """Whether an input has a dynamic dimension besides its first."""
    return any(-1 in spec.shape[1:] for spec in manifest.inputs)


def first_runs(manifest: Manifest) -> int:
    """Return how many runs of a model must be measured before one is expected to be short.

    More than one where the sizes of the inputs do not tell the work: an output is free in another
    dimension than the first, or in the first while no input is; or an input is a list of integers
    or one alone, which may be sizes or repetitions.
    """
    batched = any(spec.shape[:1] == (-1,) for spec in manifest.inputs)
    free_outputs = any(
        -1 in (spec.shape[1:] if batched else spec.shape) for spec in manifest.outputs
    )
    integers = any(len(spec.shape) <= 1 and spec.datatype in _INTEGERS for spec in manifest.inputs)
    return _UNSURE_RUNS if free_outputs or integers else 1


def unit_counter(manifest: Manifest) -> Callable[[Sequence[Tensor]], int]:
    """Return the function that says how many units of work a request's inputs are.

    Rows, where only first dimensions are dynamic; otherwise the product of an input's dynamic
    dimensions, of the input where it is largest. At least 1.
    """
    if not has_free_sizes(manifest):
        batched = frozenset(spec.name for spec in manifest.inputs if spec.shape[:1] == (-1,))
        if not batched:
            return lambda _: 1
        if len(manifest.inputs) == 1 and not manifest.execution.optional_inputs:
            return lambda inputs: inputs[0].shape[0] or 1
        return lambda inputs: max(
            [1, *[tensor.shape[0] for tensor in inputs if tensor.name in batched]]
        )
    free = {
        spec.name: [axis for axis, size in enumerate(spec.shape) if size == -1]
        for spec in manifest.inputs
    }
    return lambda inputs: max(
        [1, *[math.prod([tensor.shape[axis] for axis in free[tensor.name]]) for tensor in inputs]]
    )
