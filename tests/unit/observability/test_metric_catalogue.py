"""The declarations of metrics follow Prometheus' conventions, and nothing is made beside them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshnode import reference
from meshnode.gateway.metrics import GatewayMetrics, exposition
from meshnode.metric_catalogue import MetricSpec, all_metrics
from meshnode.metrics import Counter, Gauge, Histogram, single

ROOT = Path(__file__).parents[3]
METRICS = all_metrics()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions(metric: MetricSpec) -> None:
    assert re.fullmatch(r"(meshnode|process)(_[a-z]+)+", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent|count|sum|bucket)(_|$)", metric.name)
    assert metric.help_text[0].isupper() or metric.help_text[0].isdigit()
    assert metric.help_text.endswith(".")
    assert all(re.fullmatch(r"[a-z_]+", label) for label in metric.labels)
    assert "le" not in metric.labels
    if metric.example:
        named = re.findall(r"(?:meshnode|process)_[a-z_]+", metric.example)
        assert {name.removesuffix("_bucket") for name in named} <= {each.name for each in METRICS}


def test_every_metric_is_declared_once_and_in_a_section() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert [metric for _, group in reference.metrics() for metric in group] == list(METRICS)


def test_units_are_read_off_the_names() -> None:
    units = {metric.name: metric.unit for metric in METRICS}
    assert units["process_cpu_seconds_total"] == "seconds"
    assert units["meshnode_http_request_body_bytes_total"] == "bytes"
    assert units["meshnode_members"] == ""
    assert units["meshnode_build_info"] == ""


def test_metrics_are_made_from_their_declarations_only() -> None:
    made = re.compile(r"\b(Counter|Gauge|Histogram)\(\s*[\"'f]")
    for folder in ("meshnode", "gateway", "routing", "models", "sim"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not made.search(path.read_text(encoding="utf-8")), path


def test_all_kinds_survive_the_scrape_of_an_idle_gateway() -> None:
    body, content_type = exposition(GatewayMetrics())
    assert content_type.startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in text_string_to_metric_families(body.decode())}
    assert families["meshnode_requests"].samples == []  # documented, and nothing counted yet
    assert families["meshnode_request_duration_seconds"].type == "histogram"
    assert families["meshnode_http_connections"].samples[0].value == 0


def test_openmetrics_is_spoken_where_it_is_asked_for() -> None:
    body, content_type = exposition(GatewayMetrics(), "application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_declaration_makes_its_kind() -> None:
    by_kind = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
    for metric in METRICS:
        made = by_kind[metric.kind].of(metric)  # type: ignore[attr-defined]
        assert (made.name, made.labels) == (metric.family, tuple(metric.labels))
    plain = next(metric for metric in METRICS if metric.name == "meshnode_links")
    assert single(plain, 3).values == {(): 3.0}


def test_the_log_s_format_is_read_without_the_daemon() -> None:
    code = (
        "import sys, meshnode.daemon.log_format; "
        "print(*({'aiohttp', 'asyncio', 'msgspec', 'nacl', 'zeroconf'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert found.stdout.split() == []
