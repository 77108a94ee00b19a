"""How two arms differ, for people who look at the end of an A/B test: differences, how sure they are, and what it means.

For each metric: the difference of both versions' means, an interval that holds the true one with the release's
confidence, and how probable so great a difference is between equal versions (p-value, two-sided). Shares are compared
by the two-proportion z test, with the interval of Agresti and Caffo ("Simple and effective confidence intervals for
proportions", The American Statistician 54, 2000: a success and a failure more in each arm), other amounts by Welch's t.
Run times are compared by the mean of their logarithms, so that the difference is a ratio.

Classes of devices are compared apart, and the differences averaged by how many answers each one gave, so that an arm
on quicker devices does not win by that.

The figures are those of one look. Whoever looks every day, and stops on the first one that shows a difference, finds
one where there is none: gates (`meshnode.routing.releasing.gates`) reckon with that, these do not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import structs

from meshnode.rollout import BUCKETS_PER_OCTAVE
from meshnode.routing.releasing.distributions import student_quantile, student_tail
from meshnode.routing.releasing.evidence import Cell, Moments, milliseconds_at

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.state.release import Release

LEAST: Final = 10
"""Figures of each arm on a class of devices from which that counts."""

_MANY: Final = 1e9  # degrees of freedom of a normal distribution
_ROUNDING: Final = 1e-9


class Arms(msgspec.Struct, frozen=True):
    """How two arms differ in one metric.

    Attributes:
        metric: `errors` (shares), `latency` (milliseconds, geometric means), `agreement` (shares), or one of people's.
        baseline: The old version's mean; None where nothing is known of one.
        candidate: The new one's, likewise.
        baseline_count: Figures of the old version.
        candidate_count: Of the new one.
        difference: The new one's less the old one's; of `latency`, the new one's as a multiple of the old one's. None
            where one of both has too few.
        low: Lower end of the interval that holds the true difference.
        high: Upper end of it.
        chance: How probable such a difference is between equal versions; 1 where nothing is known.
        is_significant: Whether that is less than the release's confidence leaves to chance.
    """

    metric: str
    baseline: float | None
    candidate: float | None
    baseline_count: int
    candidate_count: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float = 1.0
    is_significant: bool = False

    def __str__(self) -> str:
        """Return it as a sentence."""
        if self.difference is None or self.low is None or self.high is None:
            return (
                f"{self.metric}: too few figures ({self.baseline_count} and {self.candidate_count})"
            )
        verdict = "differs" if self.is_significant else "no difference beyond chance"
        return (
            f"{self.metric}: {self.difference:.4g} ({self.low:.4g} to {self.high:.4g}), "
            f"p = {self.chance:.2g}: {verdict}"
        )


def compare_arms(release: Release, cells: Mapping[tuple[int, str], Cell]) -> tuple[Arms, ...]:
    """Return how the two versions of a release differ in each metric of which anything was seen.

    Args:
        release: The plan.
        cells: What all gateways have seen of a step.
    """
    devices = sorted({device for _, device in cells})
    nothing = Cell()
    pairs = [
        (
            cells.get((release.baseline, device), nothing),
            cells.get((release.candidate, device), nothing),
        )
        for device in devices
    ]
    confidence = release.confidence
    found = [
        _compared("errors", [(_failed(old), _failed(new)) for old, new in pairs], confidence),
        _as_ratio(
            _compared("latency", [(_places(old), _places(new)) for old, new in pairs], confidence)
        ),
        _compared("agreement", [(_agreed(old), _agreed(new)) for old, new in pairs], confidence),
    ]
    empty = Moments()
    for name in sorted({name for pair in pairs for cell in pair for name in cell.metrics}):
        said = [(old.metrics.get(name, empty), new.metrics.get(name, empty)) for old, new in pairs]
        found.append(_compared(name, said, confidence))
    return tuple(each for each in found if each.baseline_count or each.candidate_count)


def _compared(metric: str, parts: Sequence[tuple[Moments, Moments]], confidence: float) -> Arms:
    """Return how two arms differ, of each of which the amounts on each class of devices are given."""
    old_heap = sum((old for old, _ in parts), Moments())
    new_heap = sum((new for _, new in parts), Moments())
    usable = [(old, new) for old, new in parts if min(old.number, new.number) >= LEAST]
    if not usable:
        return Arms(
            metric,
            old_heap.mean if old_heap.number else None,
            new_heap.mean if new_heap.number else None,
            old_heap.number,
            new_heap.number,
        )
    is_share = all(_is_share(each) for part in usable for each in part)
    total = sum(old.number + new.number for old, new in usable)
    baseline = candidate = tested = around = freedom = 0.0
    for old, new in usable:
        weight = (old.number + new.number) / total
        baseline += weight * old.mean
        candidate += weight * new.mean
        if is_share:
            tested += weight**2 * _pooled(old, new)
            around += weight**2 * (_smoothed(old) + _smoothed(new))
            continue
        apart = (old.variance / old.number, new.variance / new.number)
        around += weight**2 * sum(apart)
        freedom += weight**4 * (apart[0] ** 2 / (old.number - 1) + apart[1] ** 2 / (new.number - 1))
    tested = tested if is_share else around
    degrees = _MANY if is_share or freedom <= 0 else around**2 / freedom
    difference = candidate - baseline
    reach = student_quantile((1 - confidence) / 2, degrees) * math.sqrt(around)
    chance = _chance(difference, tested, degrees, abs(baseline) + abs(candidate))
    return Arms(
        metric,
        baseline,
        candidate,
        old_heap.number,
        new_heap.number,
        difference,
        difference - reach,
        difference + reach,
        chance,
        chance < 1 - confidence,
    )


def _chance(difference: float, variance: float, degrees: float, size: float) -> float:
    if abs(difference) <= _ROUNDING * size:
        return 1.0
    if variance <= (_ROUNDING * size) ** 2:
        return 0.0
    return min(1.0, 2 * student_tail(abs(difference) / math.sqrt(variance), degrees))


def _as_ratio(arms: Arms) -> Arms:
    """Return a comparison of places on the scale of run times as one of milliseconds."""
    if arms.difference is None or arms.low is None or arms.high is None:
        return structs.replace(
            arms,
            baseline=None if arms.baseline is None else milliseconds_at(arms.baseline),
            candidate=None if arms.candidate is None else milliseconds_at(arms.candidate),
        )
    return structs.replace(
        arms,
        baseline=milliseconds_at(arms.baseline or 0.0),
        candidate=milliseconds_at(arms.candidate or 0.0),
        difference=2.0 ** (arms.difference / BUCKETS_PER_OCTAVE),
        low=2.0 ** (arms.low / BUCKETS_PER_OCTAVE),
        high=2.0 ** (arms.high / BUCKETS_PER_OCTAVE),
    )


def _is_share(amounts: Moments) -> bool:
    """Whether all amounts are 0 or 1: among those from 0 to 1, no others are so far from their mean."""
    mean = amounts.mean
    widest = amounts.number * mean * (1 - mean)
    return 0 <= mean <= 1 and abs(amounts.m2 - widest) <= _ROUNDING * amounts.number


def _pooled(old: Moments, new: Moments) -> float:
    share = (old + new).mean
    return share * (1 - share) * (1 / old.number + 1 / new.number)


def _smoothed(amounts: Moments) -> float:
    share = (amounts.number * amounts.mean + 1) / (amounts.number + 2)
    return share * (1 - share) / (amounts.number + 2)


def _failed(cell: Cell) -> Moments:
    return _of_share(cell.errors, cell.requests)


def _agreed(cell: Cell) -> Moments:
    return _of_share(cell.agreed, cell.compared)


def _of_share(those: int, of: int) -> Moments:
    if not of:
        return Moments()
    share = those / of
    return Moments(of, share, of * share * (1 - share))


def _places(cell: Cell) -> Moments:
    """Return where the run times lie on their scale, which is logarithmic."""
    total = sum(cell.run_times.values())
    if not total:
        return Moments()
    mean = sum((bucket + 0.5) * count for bucket, count in cell.run_times.items()) / total
    m2 = sum(count * (bucket + 0.5 - mean) ** 2 for bucket, count in cell.run_times.items())
    return Moments(total, mean, m2)
