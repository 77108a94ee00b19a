"""What two nodes tell each other of too much load: how urgent a request is, and when to ask again."""

from __future__ import annotations

import asyncio
import math

import msgspec
import pytest

from meshnode.errors import InvalidRequest, Saturated
from meshnode.limits import MAX_RETRY_AFTER_S
from meshnode.net.infer_call import InferCall, failure_of
from meshnode.types import InferRequest, NodeId, Priority, RoutingHints
from meshnode.wire.messages import STREAMS, Failure, Infer


@pytest.mark.parametrize(
    ("told_ms", "wait_s"),
    [
        (7200.0, 7.2),
        (0.0, 1.0),  # a version that does not say
        (-5.0, 1.0),
        (math.nan, 1.0),
        (math.inf, 1.0),
        (1e12, MAX_RETRY_AFTER_S),
    ],
)
def test_a_busy_peer_says_when_to_ask_again_and_is_believed_within_reason(
    told_ms: float, wait_s: float
) -> None:
    failure = STREAMS.decode(STREAMS.encode(Failure("saturated", "full", None, told_ms)))
    assert isinstance(failure, Failure)
    error = failure_of(failure)
    assert isinstance(error, Saturated)
    assert (str(error), error.retry_after_s) == ("full", wait_s)


def test_other_failures_say_nothing_of_a_wait() -> None:
    error = failure_of(Failure("invalid_request", "no", None, 7200.0))
    assert isinstance(error, InvalidRequest)
    assert not hasattr(error, "retry_after_s")


@pytest.mark.parametrize("priority", Priority)
async def test_a_requests_priority_travels(priority: Priority) -> None:
    request = InferRequest("m", (), version=1, hints=RoutingHints(priority=priority))
    call = InferCall(asyncio.get_running_loop(), lambda *_: None, NodeId("a" * 32), request)
    ask = STREAMS.decode(call.meta())
    assert isinstance(ask, Infer)
    assert ask.priority == priority


def test_a_priority_that_a_peer_makes_up_is_as_urgent_as_most() -> None:
    from meshnode.daemon.serving import _HINTS
    from meshnode.types import NO_HINTS

    for made_up in (-1, 3, 2**62):
        assert _HINTS.get(made_up, NO_HINTS).priority is Priority.NORMAL
    assert _HINTS[int(Priority.LOW)] == msgspec.structs.replace(NO_HINTS, priority=Priority.LOW)
