"""The tests behind a release's gates: how far a new version is from the old one, and how probably by chance.

Each takes both versions on some classes of devices, and a slack: which part of its limit a good version may use up.

| gate | how improbable figures as bad are, of a good version |
|---|---|
| `errors` | negative binomial, as the old version's share of errors is known roughly itself (Fay and Feuer, "Confidence intervals for directly standardized rates", Statistics in Medicine 16, 1997: their gamma distribution of it, and Poisson's of the new one's errors) |
| `latency_*` | of the slowest run times of both versions, with the old one's made longer by the slack, the new one has no more than its part: a median test (Mood 1954) at any quantile; normal for the median itself, else the binomial distribution, which is wider than the hypergeometric one, lets classes add up (Hoeffding, "Probability inequalities for sums of bounded random variables", 1963) |
| `agreement` | binomial |
| people's metrics | Student's t as Welch has it, with no less spread than both versions have together: thirty equal marks of a new version are no proof that it gets no others |

Where several classes are tested together, the old version's figures are weighed as the new one's answers are spread over
the classes, for errors and run times. What people say goes into one heap: there is little of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import structs

from meshnode.rollout import BUCKETS_PER_OCTAVE
from meshnode.routing.releasing.distributions import (
    binomial_tail,
    negative_binomial_tail,
    normal_tail,
    student_tail,
)
from meshnode.routing.releasing.evidence import Cell, Moments, milliseconds_at
from meshnode.routing.releasing.run_times import RunTimes, quantile, slowest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.state.release import Gate, Release

LEAST_TIMED: Final = 10
"""Run times of the old version on a class of devices from which these are compared."""

LEAST_ANSWERS: Final = 30
"""Run times of the new version from which they say anything beyond chance: its first answers are slower than others."""

LEAST_FEEDBACK: Final = 30
"""Amounts of each version from which a metric of people's feedback says anything beyond chance."""

UNKNOWN_ERRORS: Final = 0.25
"""Share of errors that an old version is taken to have of which nothing was seen."""

_QUANTILES: Final = {"latency_p50": 0.5, "latency_p90": 0.9, "latency_p99": 0.99}
_ROUNDING: Final = 1e-9  # relative difference of two means that are equal but for it


class Pair(NamedTuple):
    """Both versions on one class of devices."""

    device: str
    baseline: Cell
    candidate: Cell


class Finding(NamedTuple):
    """What was found on some classes of devices.

    Attributes:
        baseline: The old version's figure; None where none is compared.
        candidate: The new one's.
        is_beyond: Whether these are beyond the limit.
        chance: How probable that is of a good version, at most; 1 where they are not beyond it.
        figures: Of the new version.
        baseline_figures: Of the old one.
    """

    baseline: float | None
    candidate: float
    is_beyond: bool
    chance: float
    figures: int
    baseline_figures: int


def finder_of(
    gate: Gate, release: Release
) -> Callable[[Gate, Sequence[Pair], float], Finding | None]:
    """Return the test of a gate; it returns None where there is nothing to compare."""
    if gate.metric == "errors":
        return errors
    if gate.metric == "agreement":
        return agreement_apart if release.against else agreement
    return latency if gate.metric in _QUANTILES else feedback


def errors(gate: Gate, pairs: Sequence[Pair], slack: float) -> Finding | None:
    """Test the share of requests that failed."""
    asked = [pair for pair in pairs if pair.candidate.requests]
    total = sum(pair.candidate.requests for pair in asked)
    if not total:
        return None
    failed = sum(pair.candidate.errors for pair in asked)
    everything = sum((pair.baseline for pair in pairs), Cell())
    share = spread = step = 0.0
    for pair in asked:
        # Whether a model errs depends little on the device: the others stand in for one that is not known.
        known = pair.baseline if pair.baseline.requests else everything
        weight = pair.candidate.requests / total
        if not known.requests:
            share += weight * UNKNOWN_ERRORS
            continue
        share += weight * known.errors / known.requests
        spread += (weight / known.requests) ** 2 * known.errors
        step = max(step, weight / known.requests)
    mean = total * (share + step + slack * gate.limit)
    variance = mean + total * total * (spread + step * step)
    is_beyond = failed / total - share > gate.limit
    return Finding(
        share,
        failed / total,
        is_beyond,
        negative_binomial_tail(failed, mean, variance) if is_beyond else 1.0,
        total,
        everything.requests,
    )


def latency(gate: Gate, pairs: Sequence[Pair], slack: float) -> Finding | None:
    """Test a quantile of the run times."""
    level = _QUANTILES[gate.metric]
    both = [
        (RunTimes(pair.baseline.run_times), RunTimes(pair.candidate.run_times)) for pair in pairs
    ]
    both = [(old, new) for old, new in both if old.total >= LEAST_TIMED and new.total]
    if not both:
        return None
    old_place = quantile([(old, new.total / old.total) for old, new in both], level)
    new_place = quantile([(new, 1.0) for _, new in both], level)
    is_beyond = new_place - old_place > BUCKETS_PER_OCTAVE * math.log2(gate.limit)
    total = sum(new.total for _, new in both)
    longer = BUCKETS_PER_OCTAVE * math.log2(1 + (gate.limit - 1) * slack)
    return Finding(
        milliseconds_at(old_place),
        milliseconds_at(new_place),
        is_beyond,
        _chance_of_times(both, level, longer) if is_beyond and total >= LEAST_ANSWERS else 1.0,
        total,
        sum(old.total for old, _ in both),
    )


def agreement(gate: Gate, pairs: Sequence[Pair], slack: float) -> Finding | None:
    """Test the share of compared answers that agree."""
    compared = sum(pair.candidate.compared for pair in pairs)
    if not compared:
        return None
    different = compared - sum(pair.candidate.agreed for pair in pairs)
    own = 1 - different / compared
    is_beyond = own < gate.limit
    rate = min(1.0, (1 - gate.limit) * slack)
    chance = binomial_tail(different, compared, rate) if is_beyond else 1.0
    return Finding(None, own, is_beyond, chance, compared, 0)


def agreement_apart(gate: Gate, pairs: Sequence[Pair], slack: float) -> Finding | None:
    """Test by how much fewer answers agree than the old version's, where both are compared with something else.

    What is right by people's labels in nine of ten cases before may be so afterwards.
    """
    found = errors(
        structs.replace(gate, limit=1 - gate.limit),
        [
            Pair(pair.device, _differing(pair.baseline), _differing(pair.candidate))
            for pair in pairs
        ],
        slack,
    )
    if found is None:
        return None
    own = 1 - found.candidate
    if not found.baseline_figures or found.baseline is None:
        return Finding(None, own, False, 1.0, found.figures, 0)
    return found._replace(baseline=1 - found.baseline, candidate=own)


def _differing(cell: Cell) -> Cell:
    """Return the comparisons of a cell as requests, those that do not agree as failures."""
    return Cell(cell.compared, cell.compared - cell.agreed)


def feedback(gate: Gate, pairs: Sequence[Pair], slack: float) -> Finding | None:
    """Test the mean of what people say."""
    nothing = Moments()
    old, new = nothing, nothing
    for pair in pairs:
        old += pair.baseline.metrics.get(gate.metric, nothing)
        new += pair.candidate.metrics.get(gate.metric, nothing)
    if not new.number:
        return None
    if not old.number:
        return Finding(None, new.mean, False, 1.0, new.number, 0)
    worse = old.mean - new.mean if gate.higher_is_better else new.mean - old.mean
    rounding = _ROUNDING * (abs(old.mean) + abs(new.mean))
    is_beyond = worse > gate.limit + rounding
    apart = worse - slack * gate.limit
    return Finding(
        old.mean,
        new.mean,
        is_beyond,
        _chance_of_means(apart, old, new, rounding) if is_beyond else 1.0,
        new.number,
        old.number,
    )


def _chance_of_times(
    both: Sequence[tuple[RunTimes, RunTimes]], level: float, longer: float
) -> float:
    found = among = expected = variance = 0.0
    for old, new in both:
        beyond, drawn = slowest(old, new, level, longer)
        every = old.total + new.total
        part = new.total / every
        found += beyond
        among += drawn
        expected += drawn * part
        variance += drawn * part * (1 - part) * (every - drawn) / (every - 1)
    # The hypergeometric distribution is symmetric at the median, its tail no wider than the normal one.
    if level == 0.5:
        return normal_tail((found - 0.5 - expected) / math.sqrt(variance))
    total = sum(new.total for _, new in both)
    count = math.floor(found + _ROUNDING)  # a bucket that the quantile divides counts in part
    part, share = expected / among, expected / total
    if part > share:  # each of the slowest is the new one's by chance
        return binomial_tail(count, math.ceil(among - _ROUNDING), part)
    return binomial_tail(count, total, share)  # each of the new one's is among the slowest


def _chance_of_means(apart: float, old: Moments, new: Moments, rounding: float) -> float:
    if min(old.number, new.number) < LEAST_FEEDBACK:
        return 1.0
    parts = (old.variance / old.number, new.variance / new.number)
    heap = (old + Moments(new.number, old.mean, new.m2)).variance  # around each one's own mean
    squared = max(sum(parts), heap * (1 / old.number + 1 / new.number))
    if squared <= rounding * rounding:
        return 0.0 if apart > rounding else 1.0
    weight = parts[0] ** 2 / (old.number - 1) + parts[1] ** 2 / (new.number - 1)
    freedom = sum(parts) ** 2 / weight if weight > 0 else min(old.number, new.number) - 1.0
    return student_tail(apart / math.sqrt(squared), freedom)
