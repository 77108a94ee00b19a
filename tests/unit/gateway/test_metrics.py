"""What the gateway counts, read back by Prometheus' own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshnode.gateway import metrics as gateway_metrics
from meshnode.gateway.metrics import GatewayMetrics, exposition
from meshnode.metrics import Counter, Gauge


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_prometheus_reads_counters_gauges_and_histograms() -> None:
    metrics = GatewayMetrics()
    metrics.answered("digits", 0.0004)
    metrics.answered("digits", 0.02)
    metrics.answered("digits", 99.0)
    metrics.failed("digits", "no_replica")
    counter = Counter("meshnode_x", "With odd labels.", ("peer",))
    counter.add(('a"b\\c\nd',), 2)
    gauge = Gauge("meshnode_y", "A gauge.")
    gauge.set((), 1.5)
    found = samples(exposition([*metrics, counter, gauge])[0])
    assert found["meshnode_requests_total", "digits", "ok"] == 3
    assert found["meshnode_requests_total", "digits", "no_replica"] == 1
    assert found["meshnode_request_duration_seconds_count", "digits"] == 3
    assert found["meshnode_request_duration_seconds_sum", "digits"] == pytest.approx(99.0204)
    assert found["meshnode_request_duration_seconds_bucket", "0.0005", "digits"] == 1
    assert found["meshnode_request_duration_seconds_bucket", "0.025", "digits"] == 2
    assert found["meshnode_request_duration_seconds_bucket", "30.0", "digits"] == 2
    assert found["meshnode_request_duration_seconds_bucket", "+Inf", "digits"] == 3
    assert found["meshnode_x_total", 'a"b\\c\nd'] == 2
    assert found["meshnode_y",] == 1.5


def test_models_beyond_the_limit_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_metrics, "MAX_MODELS", 2)
    metrics = GatewayMetrics()
    for name in ("a", "b", "c", "d", "a"):
        metrics.answered(name, 0.1)
    metrics.failed("e", "invalid")
    assert metrics.requests.values == {
        ("a", "ok"): 2,
        ("b", "ok"): 1,
        ("other", "ok"): 2,
        ("other", "invalid"): 1,
    }
    assert repr(metrics) == "<GatewayMetrics of 2 models>"
