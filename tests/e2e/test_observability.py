"""One request, recognised in the logs of every node that it passed; and what a scrape shows."""

from __future__ import annotations

import http.client
import json
import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from onnx import TensorProto, helper
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from meshnode.metric_catalogue import all_metrics
from tests.e2e.conftest import DIGIT_REQUEST, DIGITS, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from prometheus_client.core import Metric as PrometheusMetric

    from tests.e2e.conftest import Daemon, Mesh

pytestmark = pytest.mark.e2e

INFER = "/v2/models/digits/infer"
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{CALLER}-01"


def grow(mesh: Mesh, *names: str) -> list[Daemon]:
    """Start a mesh of nodes that log everything."""
    first = mesh.start(names[0], "--new", "--log-level", "debug").wait_ready()
    nodes = [first]
    nodes += [mesh.start(name, first.invite(), "--log-level", "debug") for name in names[1:]]
    for node in nodes:
        node.wait_ready()
    for node in nodes:
        wait_until(partial(node.sees, len(names)), 15, f"{node.name} sees all")
    return nodes


def lines_about(node: Daemon, request_id: str) -> list[dict[str, Any]]:
    """Return what a node logged about a request, once there is something."""

    def found() -> list[dict[str, Any]]:
        text = (node.data_dir / "logs" / "meshnode.log").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line.get("request_id") == request_id]

    lines: list[dict[str, Any]] = wait_until(found, 10, f"{node.name} logs {request_id}")
    return lines


def slow_model(path: Path) -> Path:
    """Write a model that adds for so many rounds as its input says: 10 million take seconds."""
    number = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=[1])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["still"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            number("sum"),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), number("next")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["rounds"], ["count"]),
            helper.make_node("Loop", ["count", "", "one"], ["total"], body=body),
        ],
        "slow",
        [helper.make_tensor_value_info("rounds", TensorProto.INT64, [1])],
        [number("total")],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def test_a_request_has_the_same_ids_in_the_logs_of_both_nodes(mesh: Mesh) -> None:
    gateway, serving = grow(mesh, "alpha", "beta")
    gateway.deploy(DIGITS, name="digits", replicas=1, on=["beta"])
    wait_until(lambda: gateway.ready_nodes("digits") == {"beta"}, 30, "beta serves")
    headers = {"traceparent": TRACEPARENT, "X-Request-Id": "ticket-7"}
    body = {**DIGIT_REQUEST, "id": "the client's own"}
    status, answered, answer = gateway.request("POST", INFER, body, headers)
    assert status == 200
    assert answered["x-request-id"] == "ticket-7"
    assert answer["id"] == "the client's own"
    (asked,) = lines_about(gateway, "ticket-7")
    (ran,) = lines_about(serving, "ticket-7")
    assert (asked["node"], asked["peer"]) == ("alpha", "beta")
    assert (ran["node"], ran["peer"]) == ("beta", "alpha")
    assert asked["trace_id"] == ran["trace_id"] == TRACE_ID
    assert asked["parent_id"] == CALLER
    assert ran["parent_id"] == asked["span_id"]
    assert ran["span_id"] not in (asked["span_id"], CALLER)
    assert asked["mesh"] == ran["mesh"]
    assert asked["outcome"] == ran["outcome"] == "ok"
    assert asked["message"].startswith("infer digits ok in ")
    assert asked["message"].endswith(" ms on node beta")
    assert 0 < ran["duration_ms"] <= asked["duration_ms"]
    if sys.platform != "win32":
        mode = (gateway.data_dir / "logs" / "meshnode.log").stat().st_mode
        assert mode & 0o777 == 0o600


def test_a_request_without_ids_gets_them_also_where_it_runs_inline(mesh: Mesh) -> None:
    (alone,) = grow(mesh, "alpha")
    alone.deploy(DIGITS, name="digits", replicas=1)
    wait_until(partial(alone.has_replicas, 1), 30, "digits is served")
    _, answered, _ = alone.request("POST", INFER, DIGIT_REQUEST)
    (line,) = lines_about(alone, answered["x-request-id"])
    assert len(line["trace_id"]) == 32
    assert len(line["span_id"]) == 16
    assert "parent_id" not in line
    _, answered, _ = alone.request("POST", "/v2/models/nothing/infer", DIGIT_REQUEST)
    (line,) = lines_about(alone, answered["x-request-id"])
    assert (line["level"], line["code"]) == ("debug", "not_found")


def test_a_node_that_dies_midway_is_a_failed_attempt_with_the_same_ids(
    mesh: Mesh, tmp_path: Path
) -> None:
    gateway, serving = grow(mesh, "alpha", "beta")
    gateway.deploy(slow_model(tmp_path / "slow.onnx"), name="slow", replicas=1, on=["beta"])
    wait_until(lambda: gateway.ready_nodes("slow") == {"beta"}, 30, "beta serves")
    statuses: list[int] = []

    def ask() -> None:
        rounds = {"name": "rounds", "shape": [1], "datatype": "INT64", "data": [100_000_000]}
        headers = {"traceparent": TRACEPARENT, "X-Request-Id": "doomed"}
        path = "/v2/models/slow/infer"
        statuses.append(gateway.request("POST", path, {"inputs": [rounds]}, headers)[0])

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: "meshnode_requests_in_flight 1.0" in scrape(gateway), 10, "it runs")
    serving.signal(signal.SIGKILL)
    thread.join(30)
    assert statuses
    assert statuses[0] >= 500
    attempt, failed = lines_about(gateway, "doomed")
    assert attempt["message"].startswith("infer slow on node beta failed after ")
    assert (attempt["level"], attempt["peer"], attempt["code"]) == ("warning", "beta", "link_lost")
    assert failed["message"].startswith("infer slow failed after ")
    assert failed["tried"] == "beta: link_lost"
    assert failed["level"] == "warning"
    for line in (attempt, failed):
        assert (line["trace_id"], line["parent_id"]) == (TRACE_ID, CALLER)
    assert attempt["span_id"] == failed["span_id"]


def scrape(node: Daemon, accept: str = "") -> str:
    connection = http.client.HTTPConnection("127.0.0.1", node.http_port, timeout=30)
    connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
    response = connection.getresponse()
    assert response.status == 200
    text = response.read().decode()
    connection.close()
    return text


def families_of(text: str) -> list[PrometheusMetric]:
    return list(text_string_to_metric_families(text))


def test_a_scrape_shows_exactly_what_is_documented(mesh: Mesh) -> None:
    gateway, serving = mesh.grow("alpha", "beta")
    gateway.deploy(DIGITS, name="digits", replicas=1, on=["beta"])
    wait_until(lambda: gateway.ready_nodes("digits") == {"beta"}, 30, "beta serves")
    assert gateway.request("POST", INFER, DIGIT_REQUEST)[0] == 200
    assert gateway.request("POST", "/v2/models/nothing/infer", DIGIT_REQUEST)[0] == 404
    assert gateway.request("GET", "/v2", headers={"Host": "elsewhere.example"})[0] == 403
    documented = {metric.family: metric for metric in all_metrics()}
    for node in (gateway, serving):
        families = {each.name: each for each in families_of(scrape(node))}
        missing = {name for name, metric in documented.items() if not metric.absent}
        assert set(families) <= set(documented)
        assert missing <= set(families)
        for name, family in families.items():
            assert family.type == documented[name].kind
            assert family.documentation == documented[name].help_text
            for sample in family.samples:
                assert set(sample.labels) - {"le"} == set(documented[name].labels)
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for node in (gateway, serving)
        for family in families_of(scrape(node))
        for sample in family.samples
    }
    assert values["meshnode_requests_total", "digits", "ok"] == 1
    assert values["meshnode_requests_total", "other", "not_found"] == 1
    assert values["meshnode_peer_requests_total", "ok"] == 1
    assert values["meshnode_model_slots", "digits", "1"] >= 1
    assert values["meshnode_model_load_time_seconds", "digits", "1"] > 0
    assert values["meshnode_members", "alive"] == 2
    assert values["process_resident_memory_bytes",] > 10_000_000
    assert values["meshnode_ready",] == 1
    assert values["meshnode_paused",] == 0
    assert values["meshnode_http_errors_total", "forbidden"] == 1


def test_a_scraper_that_asks_for_openmetrics_gets_it(mesh: Mesh) -> None:
    (alone,) = mesh.grow("alpha")
    text = scrape(alone, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert text.endswith("# EOF\n")
    families = {each.name: each.type for each in open_metrics_families(text)}  # type: ignore[no-untyped-call]
    assert families["process_cpu_seconds"] == "counter"
    assert families["meshnode_request_duration_seconds"] == "histogram"
