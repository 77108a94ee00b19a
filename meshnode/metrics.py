"""Counters and histograms without locks, clocks or names of a library.

Code on the request path records into these; the gateway exports them in Prometheus' format when
asked. One event loop owns each, so an increment is one dictionary operation.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.metric_catalogue import MetricSpec

LATENCY_BUCKETS_S: tuple[float, ...] = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
"""Half a millisecond to half a minute: a small model inline, up to the default deadline."""


class Counter:
    """A monotone count per tuple of label values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        """Name it as Prometheus would, without the `_total` suffix."""
        self.name = name
        self.help_text = help_text
        self.labels = tuple(labels)
        self.values: dict[tuple[str, ...], float] = {}

    @classmethod
    def of(cls, spec: MetricSpec) -> Self:
        """Make one as the catalogue declares it."""
        return cls(spec.family, spec.help_text, tuple(spec.labels))

    def add(self, labels: tuple[str, ...] = (), amount: float = 1.0) -> None:
        """Add to the count of these label values."""
        self.values[labels] = self.values.get(labels, 0.0) + amount

    def get(self, labels: tuple[str, ...] = ()) -> float:
        """Return the count of these label values."""
        return self.values.get(labels, 0.0)


class Gauge:
    """A value that rises and falls, per tuple of label values."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str] = ()) -> None:
        """Name it as Prometheus would."""
        self.name = name
        self.help_text = help_text
        self.labels = tuple(labels)
        self.values: dict[tuple[str, ...], float] = {}

    @classmethod
    def of(cls, spec: MetricSpec) -> Self:
        """Make one as the catalogue declares it."""
        return cls(spec.family, spec.help_text, tuple(spec.labels))

    def set(self, labels: tuple[str, ...], value: float) -> None:
        """Set the value of these label values."""
        self.values[labels] = value

    def get(self, labels: tuple[str, ...] = ()) -> float:
        """Return the value of these label values."""
        return self.values.get(labels, 0.0)


class Histogram:
    """Counts of observations per bucket and per tuple of label values."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        buckets: Iterable[float] = LATENCY_BUCKETS_S,
    ) -> None:
        """Name it as Prometheus would, with its unit last (`_seconds`)."""
        self.name = name
        self.help_text = help_text
        self.labels = tuple(labels)
        self.bounds = tuple(buckets)
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}

    @classmethod
    def of(cls, spec: MetricSpec) -> Self:
        """Make one as the catalogue declares it."""
        return cls(spec.family, spec.help_text, tuple(spec.labels))

    def observe(self, value: float, labels: tuple[str, ...] = ()) -> None:
        """Count one observation."""
        counts = self.counts.get(labels)
        if counts is None:
            counts = self.counts[labels] = [0] * (len(self.bounds) + 1)
            self.sums[labels] = 0.0
        counts[bisect_left(self.bounds, value)] += 1
        self.sums[labels] += value


Metric = Counter | Gauge | Histogram


def single(spec: MetricSpec, value: float) -> Counter | Gauge:
    """Return a metric without labels that has this value."""
    metric = Counter.of(spec) if spec.kind == "counter" else Gauge.of(spec)
    metric.values[()] = float(value)
    return metric
