"""What is logged about requests, at the gateway and at the node that serves them."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.daemon.serving_log import ServingLog
from meshnode.errors import (
    Cancelled,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NoReplica,
)
from meshnode.gateway.request_log import RequestLog
from meshnode.limits import MAX_REQUEST_LOG_LINES, SLOW_REQUEST_S
from meshnode.log_fields import FIELDS, request_fields
from meshnode.tracing import Trace, TraceIds
from meshnode.types import InferRequest

if TYPE_CHECKING:
    from collections.abc import Callable

TRACE = Trace("a" * 32, "b" * 16, "c" * 16, "01")
REQUEST = InferRequest("digits", (), 1, request_id="r1", trace=TRACE)
UNTRACED = InferRequest("digits", (), 1, request_id="r2")
IDS = {"request_id": "r1", "trace_id": "a" * 32, "span_id": "b" * 16, "parent_id": "c" * 16}


class Clock:
    def now(self) -> float:
        return 100.0

    def wall_s(self) -> float:
        return 100.0


@pytest.fixture
def gateway(caplog: pytest.LogCaptureFixture) -> RequestLog:
    caplog.set_level(logging.DEBUG, "meshnode")
    return RequestLog(Clock(), TraceIds(random.Random(7)))


@pytest.fixture
def serving(caplog: pytest.LogCaptureFixture) -> ServingLog:
    caplog.set_level(logging.DEBUG, "meshnode")
    return ServingLog(Clock(), TraceIds(random.Random(8)))


@pytest.fixture
def last(caplog: pytest.LogCaptureFixture) -> Callable[[], tuple[str, str, dict[str, Any]]]:
    def read() -> tuple[str, str, dict[str, Any]]:
        record = caplog.records[-1]
        fields = {name: value for name, value in vars(record).items() if name in FIELDS}
        return record.levelname, record.getMessage(), fields

    return read


def test_every_request_is_a_line_at_debug(gateway: RequestLog, last: Any) -> None:
    assert gateway.wants(0.001)
    gateway.answered(REQUEST, 1, "beta", 0.0032)
    assert last() == (
        "DEBUG",
        "infer digits ok in 3.2 ms on node beta",
        {
            **IDS,
            "model": "digits",
            "version": 1,
            "peer": "beta",
            "outcome": "ok",
            "duration_ms": 3.2,
            "attempts": 1,
            "tried": "",
        },
    )


def test_a_slow_request_is_told_at_info_and_a_fast_one_costs_nothing(
    gateway: RequestLog, last: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "meshnode")
    assert not gateway.wants(SLOW_REQUEST_S)
    assert gateway.wants(SLOW_REQUEST_S + 0.001)
    gateway.answered(REQUEST, 1, "beta", 1.5, (("gamma", "link_lost"),))
    level, text, fields = last()
    assert (level, text) == ("INFO", "infer digits ok in 1500.0 ms on node beta")
    assert (fields["attempts"], fields["tried"]) == (2, "gamma: link_lost")


def test_a_failed_attempt_and_a_failed_request_have_the_same_ids(
    gateway: RequestLog, last: Any
) -> None:
    error = LinkLost("the link broke")
    gateway.attempt_failed(REQUEST, 1, "beta", error, 0.01)
    level, text, fields = last()
    assert level == "WARNING"
    assert text == "infer digits on node beta failed after 10.0 ms: link_lost: the link broke"
    assert fields.items() >= {**IDS, "peer": "beta", "code": "link_lost"}.items()
    tried = (("beta", "link_lost"),)
    gateway.failed("digits", "r1", TRACE, NoReplica("nobody is left"), 0.02, tried)
    level, text, fields = last()
    assert level == "WARNING"
    assert text == "infer digits failed after 20.0 ms: no_replica: nobody is left"
    assert fields.items() >= {**IDS, "code": "no_replica", "tried": "beta: link_lost"}.items()


def test_what_a_model_of_this_node_raised_is_a_warning_once(
    gateway: RequestLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "meshnode")
    error = InferenceFailed("the model failed: x")
    gateway.attempt_failed(REQUEST, 1, "alpha", error, 0.01, local=True)
    gateway.failed("digits", "r1", TRACE, error, 0.01, (("alpha", error.code),))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert vars(caplog.records[0])["tried"] == "alpha: inference_failed"
    gateway.attempt_failed(REQUEST, 1, "beta", error, 0.01)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    "error", [InvalidRequest("x"), ModelNotFound("x"), Cancelled("x")], ids=lambda e: e.code
)
def test_what_the_client_is_to_blame_for_is_told_at_debug_only(
    gateway: RequestLog, last: Any, caplog: pytest.LogCaptureFixture, error: MeshError
) -> None:
    gateway.failed("digits", "r1", TRACE, error)
    gateway.attempt_failed(REQUEST, 1, "beta", error, 0.0)
    assert caplog.records[0].levelname == "DEBUG"
    caplog.clear()
    caplog.set_level(logging.INFO, "meshnode")
    gateway.failed("digits", "r1", TRACE, error)
    assert caplog.records == []


def test_a_request_without_a_trace_gets_one_for_its_line(gateway: RequestLog, last: Any) -> None:
    gateway.failed("digits", "r2", None, NoReplica("x"))
    first = last()[2]
    gateway.answered(UNTRACED, 1, "alpha", 0.0)
    second = last()[2]
    assert len(first["trace_id"]) == len(second["trace_id"]) == 32
    assert first["trace_id"] != second["trace_id"]
    assert first["parent_id"] == ""


def test_an_overrun_gateway_writes_a_bounded_number_of_lines(
    gateway: RequestLog, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10 * MAX_REQUEST_LOG_LINES):
        gateway.failed("digits", "r1", TRACE, NoReplica("busy"))
    assert len(caplog.records) == MAX_REQUEST_LOG_LINES + 1


PARENT = f"00-{'a' * 32}-{'c' * 16}-01"
SERVING_IDS = {"request_id": "r2", "trace_id": "a" * 32, "parent_id": "c" * 16}


def test_the_serving_node_s_line_names_who_asked(serving: ServingLog, last: Any) -> None:
    serving.ended(UNTRACED, PARENT, "alpha", None, 0.0031)
    level, text, fields = last()
    assert (level, text) == ("DEBUG", "infer digits for node alpha ok in 3.1 ms")
    expected = {**SERVING_IDS, "peer": "alpha", "outcome": "ok", "version": 1}
    assert fields.items() >= expected.items()
    assert len(fields["span_id"]) == 16
    serving.ended(UNTRACED, PARENT, "alpha", NoReplica("x"), 0.001)
    level, text, fields = last()
    assert (level, fields["code"]) == ("WARNING", "no_replica")
    assert text == "infer digits for node alpha failed after 1.0 ms: no_replica: x"
    serving.ended(UNTRACED, PARENT, "alpha", InvalidRequest("x"), 0.001)
    assert last()[0] == "DEBUG"
    serving.ended(UNTRACED, PARENT, "alpha", None, 2.0)
    assert last()[0] == "INFO"


def test_an_older_node_names_no_span_and_the_line_has_a_trace_of_its_own(
    serving: ServingLog, last: Any
) -> None:
    for parent in ("", "nonsense", "0" * 100_000):
        serving.ended(UNTRACED, parent, "alpha", None, 0.001)
        fields = last()[2]
        assert len(fields["trace_id"]) == 32
        assert fields["parent_id"] == ""


def test_a_serving_node_at_info_writes_only_what_went_wrong_or_slowly(
    serving: ServingLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "meshnode")
    assert not serving.wants(None, 0.001)
    assert not serving.wants(Cancelled("x"), 0.001)
    assert serving.wants(NoReplica("x"), 0.001)
    assert serving.wants(None, SLOW_REQUEST_S + 0.1)


def test_a_defect_is_told_with_its_traceback_and_the_ids(
    serving: ServingLog, last: Any, caplog: pytest.LogCaptureFixture
) -> None:
    error = InferenceFailed("this node failed while it answered")
    serving.ended(UNTRACED, PARENT, "alpha", error, 0.001, ZeroDivisionError("x"))
    level, _, fields = last()
    assert level == "ERROR"
    assert fields.items() >= {**SERVING_IDS, "code": "inference_failed"}.items()
    assert caplog.records[-1].exc_info is not None


def test_fields_are_those_that_are_documented() -> None:
    fields = request_fields("r1", TRACE, model="digits", code="x")
    assert set(fields) <= set(FIELDS)
    assert fields == {**IDS, "model": "digits", "code": "x"}
