"""What the gateway counts, and Prometheus' text format for everything that is counted.

Label values are bounded: only models that the mesh knows get their own, at most `MAX_MODELS` of
them in a process' life; all others share the label `other`. Outcomes are `ok`, the codes of
`meshnode.errors`, `cancelled` and `internal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode import metric_catalogue as catalogue
from meshnode.gateway.key_limits import KeyLimits
from meshnode.limits import MAX_MODELS
from meshnode.metrics import Counter, Gauge, Histogram, Metric, single

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.core import Metric as PrometheusMetric

OTHER = "other"
"""Label of requests for unknown models, and of models beyond the limit."""


class GatewayMetrics:
    """The gateway's own counters.

    Attributes:
        connections: HTTP connections that stand.
        request_body_bytes: Bytes of request bodies so far.
        response_body_bytes: Bytes of response bodies so far.
    """

    def __init__(self) -> None:
        self.requests = Counter.of(catalogue.REQUESTS)
        self.duration = Histogram.of(catalogue.REQUEST_DURATION)
        self.attempts = Counter.of(catalogue.ATTEMPTS)
        self.responses = Counter.of(catalogue.HTTP_RESPONSES)
        self.grpc_calls = Counter.of(catalogue.GRPC_CALLS)
        self.errors = Counter.of(catalogue.HTTP_ERRORS)
        self.key_limits = KeyLimits()
        """What callers with API keys ask of this node's entrances."""
        self.cache_answers = Counter.of(catalogue.HTTP_CACHE_ANSWERS)
        self.replays = Counter.of(catalogue.HTTP_IDEMPOTENT)
        self.mirrored = Counter.of(catalogue.MIRRORED_REQUESTS)
        self.connections = 0
        self.request_body_bytes = 0
        self.response_body_bytes = 0
        self._labels: dict[str, tuple[tuple[str, str], tuple[str]]] = {}

    def __repr__(self) -> str:
        return f"<GatewayMetrics of {len(self._labels)} models>"

    def __iter__(self) -> Iterator[Metric]:
        """All of them, for an exposition."""
        yield from (self.requests, self.duration, self.attempts, self.responses, self.errors)
        yield from (self.cache_answers, self.replays, self.key_limits.refused, self.mirrored)
        yield single(catalogue.HTTP_CONNECTIONS, self.connections)
        yield single(catalogue.HTTP_REQUEST_BODY_BYTES, self.request_body_bytes)
        yield single(catalogue.HTTP_RESPONSE_BODY_BYTES, self.response_body_bytes)

    def answered(self, model: str, seconds: float) -> None:
        """Count a request that was answered. The model is one that the mesh knows."""
        ok, of_model = self._labels.get(model) or self._learn(model)
        self.requests.add(ok)
        self.duration.observe(seconds, of_model)

    def failed(self, model: str, outcome: str) -> None:
        """Count a request that was not answered. The model is one that the mesh knows."""
        self.requests.add(((self._labels.get(model) or self._learn(model))[1][0], outcome))

    def _learn(self, model: str) -> tuple[tuple[str, str], tuple[str]]:
        label = model if len(self._labels) < MAX_MODELS else OTHER
        labels = ((label, "ok"), (label,))
        if label is model:
            self._labels[model] = labels
        return labels


def exposition(metrics: Iterable[Metric], accept: str = "") -> tuple[bytes, str]:
    """Return metrics as text, and its Content-Type.

    The library is imported here and not above: a node that nobody scrapes never loads it.

    Args:
        metrics: All of them.
        accept: The scraper's Accept header: OpenMetrics where it asks for it, else Prometheus' own
            text format.
    """
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector:
    """Presents our metrics as families of the library's."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = tuple(metrics)

    def collect(self) -> Iterable[PrometheusMetric]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        for metric in self._metrics:
            if isinstance(metric, Counter | Gauge):
                kind = CounterMetricFamily if isinstance(metric, Counter) else GaugeMetricFamily
                family = kind(metric.name, metric.help_text, labels=metric.labels)
                for labels, value in metric.values.items():
                    family.add_metric(labels, value)
                yield family
            else:
                histogram = HistogramMetricFamily(
                    metric.name, metric.help_text, labels=metric.labels
                )
                for labels, counts in metric.counts.items():
                    histogram.add_metric(
                        labels, _buckets(metric, counts), sum_value=metric.sums[labels]
                    )
                yield histogram


def _buckets(metric: Histogram, counts: list[int]) -> list[tuple[str, float]]:
    """Return Prometheus' cumulative buckets: each counts the observations up to its bound."""
    bounds = [*(repr(bound) for bound in metric.bounds), "+Inf"]
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets
