"""W3C Trace Context: what is taken over, and what begins a new trace."""

from __future__ import annotations

import random
import re

import pytest

from meshnode.limits import MAX_TRACEPARENT_LENGTH
from meshnode.tracing import Trace, TraceIds

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
HEADER = f"00-{TRACE_ID}-{PARENT_ID}-01"


@pytest.fixture
def ids() -> TraceIds:
    return TraceIds(random.Random(7))


def test_a_caller_s_trace_goes_on_below_its_span(ids: TraceIds) -> None:
    trace = ids.join(HEADER)
    assert (trace.trace_id, trace.parent_id, trace.flags) == (TRACE_ID, PARENT_ID, "01")
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert trace.span_id != PARENT_ID
    assert trace.traceparent == f"00-{TRACE_ID}-{trace.span_id}-01"


def test_what_one_node_hands_on_is_the_parent_of_the_next(ids: TraceIds) -> None:
    gateway = ids.begin()
    serving = TraceIds(random.Random(8)).join(gateway.traceparent)
    assert serving.trace_id == gateway.trace_id
    assert serving.parent_id == gateway.span_id
    assert serving.flags == gateway.flags == "00"


def test_a_later_version_is_read_as_far_as_it_is_known(ids: TraceIds) -> None:
    span_id = TraceIds(random.Random(7)).span_id()
    trace = ids.join(f"cc-{TRACE_ID}-{PARENT_ID}-03-what-comes-later")
    assert trace == Trace(TRACE_ID, span_id, PARENT_ID, "03")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "nonsense",
        HEADER.upper(),
        f" {HEADER}",
        f"{HEADER}\n",
        f"{HEADER}-more",  # version 00 has nothing more
        f"ff-{TRACE_ID}-{PARENT_ID}-01",
        f"00-{'0' * 32}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID[1:]}-{PARENT_ID}-01",
        f"00-{TRACE_ID}-{PARENT_ID}",
        f"00-{TRACE_ID}-{PARENT_ID}-1",
        f"00-{'g' * 32}-{PARENT_ID}-01",
        f"01-{TRACE_ID}-{PARENT_ID}-01-" + "x" * MAX_TRACEPARENT_LENGTH,
    ],
)
def test_a_missing_malformed_or_zero_header_begins_a_new_trace(
    ids: TraceIds, header: str | None
) -> None:
    trace = ids.join(header)
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert trace.trace_id != TRACE_ID
    assert trace.parent_id == ""


def test_ids_do_not_repeat_and_differ_between_processes() -> None:
    one, other = TraceIds(random.Random(1)), TraceIds(random.Random(2))
    made = [ids.begin() for ids in (one, other) for _ in range(5000)]
    assert len({trace.trace_id for trace in made}) == len(made)
    assert len({trace.span_id for trace in made}) == len(made)
    assert "0" * 16 not in {trace.span_id for trace in made}


def test_an_unlucky_start_makes_no_all_zero_id() -> None:
    class Zero(random.Random):
        def getrandbits(self, k: int, /) -> int:
            return 0

    ids = TraceIds(Zero())
    assert ids.begin().trace_id[:16] == "0" * 15 + "1"
    ids._last = 2**64 - 0x9E3779B97F4A7C15  # the next sum is 0
    assert int(ids.span_id(), 16) != 0
