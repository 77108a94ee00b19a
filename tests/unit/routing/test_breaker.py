from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    LinkLost,
    MeshError,
    ModelNotFound,
    NotServing,
    PeerError,
    ProtocolError,
    Saturated,
    UsageError,
)
from meshnode.routing.breaker import Breaker, BreakerState, Verdict, verdict_of
from meshnode.routing.config import RoutingConfig

CONFIG = RoutingConfig(breaker_jitter=0.0)


def make_breaker(config: RoutingConfig = CONFIG) -> Breaker:
    return Breaker(config, random.Random(1))


def opened(now: float = 0.0, cause: str = LinkLost.code) -> Breaker:
    breaker = make_breaker()
    breaker.record(breaker.take(now), Verdict.FATAL, now, cause)
    return breaker


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (UsageError, "neutral"), (InvalidRequest, "neutral"), (ModelNotFound, "neutral"),
        (Saturated, "neutral"), (Cancelled, "neutral"), (DeadlineExceeded, "neutral"),
        (LinkLost, "fatal"), (NotServing, "fatal"),
        (InferenceFailed, "failure"), (ProtocolError, "failure"), (PeerError, "failure"),
        (MeshError, "failure"),
    ],
)  # fmt: skip
def test_each_error_says_what_it_means_for_the_replica(
    error: type[MeshError], verdict: str
) -> None:
    assert verdict_of(error("x")) == verdict


def test_three_failures_in_a_row_open_it_and_a_success_starts_the_count_again() -> None:
    breaker = make_breaker()
    for verdict in ("failure", "failure", "success", "failure", "failure"):
        assert breaker.record(breaker.take(1.0), Verdict(verdict), 1.0)
        assert breaker.state is BreakerState.CLOSED
    breaker.record(breaker.take(1.0), Verdict.FAILURE, 1.0, "peer")
    assert (breaker.state, breaker.retry_at, breaker.cause) == ("open", 2.0, "peer")


def test_callers_mistakes_and_full_queues_neither_count_nor_forgive() -> None:
    breaker = make_breaker()
    for verdict in [Verdict.FAILURE] * 2 + [Verdict.NEUTRAL] * 50 + [Verdict.FAILURE]:
        assert breaker.state is BreakerState.CLOSED
        breaker.record(breaker.take(1.0), verdict, 1.0)
    assert breaker.state is BreakerState.OPEN


def test_a_lost_link_opens_it_at_once_and_its_other_requests_say_nothing_new() -> None:
    breaker = make_breaker()
    permits = [breaker.take(1.0) for _ in range(50)]
    counted = [breaker.record(permit, Verdict.FATAL, 1.0, "link_lost") for permit in permits]
    assert counted == [True] + [False] * 49
    assert not breaker.allows(1.999)
    assert breaker.allows(2.0)
    assert breaker.retry_at == 2.0


def test_half_open_lets_one_probe_through() -> None:
    breaker = opened()
    probe = breaker.take(1.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.allows(1.5)
    assert breaker.record(probe, Verdict.SUCCESS, 1.5)
    assert (breaker.state, breaker.allows(1.5)) == ("closed", True)


def test_a_probe_without_a_verdict_frees_its_place() -> None:
    breaker = opened()
    breaker.record(breaker.take(1.0), Verdict.NEUTRAL, 1.2)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.allows(1.2)


def test_a_long_probe_blocks_the_next_one_no_longer_than_the_opening_lasted() -> None:
    breaker = opened()
    first = breaker.take(1.0)
    assert not breaker.allows(1.9)
    assert breaker.allows(2.0)
    second = breaker.take(2.0)
    assert breaker.record(second, Verdict.SUCCESS, 2.1)
    assert not breaker.record(first, Verdict.FATAL, 2.2)
    assert breaker.state is BreakerState.CLOSED


def test_what_ended_after_it_opened_cannot_pass_for_the_probe() -> None:
    breaker = make_breaker()
    early, other = breaker.take(0.0), breaker.take(0.0)
    breaker.record(other, Verdict.FATAL, 0.5)
    probe = breaker.take(1.5)
    assert not breaker.record(early, Verdict.SUCCESS, 1.6)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.record(probe, Verdict.FAILURE, 1.7)
    assert breaker.state.value == "open"


def test_each_failed_probe_doubles_the_time_up_to_thirty_seconds() -> None:
    breaker = opened()
    delays_s = []
    for _ in range(7):
        now = breaker.retry_at
        breaker.record(breaker.take(now), Verdict.FAILURE, now)
        delays_s.append(breaker.retry_at - now)
    assert delays_s == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_flapping_replica_is_left_alone_longer_and_a_stable_one_is_forgiven() -> None:
    breaker = opened(now=0.0)
    breaker.record(breaker.take(1.0), Verdict.SUCCESS, 1.0)
    breaker.record(breaker.take(20.0), Verdict.FATAL, 20.0)
    assert breaker.retry_at == 22.0
    breaker.record(breaker.take(22.0), Verdict.SUCCESS, 22.0)
    breaker.record(breaker.take(52.0), Verdict.FATAL, 52.0)
    assert breaker.retry_at == 53.0


def test_the_time_has_jitter() -> None:
    retry_at = set()
    for seed in range(20):
        breaker = Breaker(RoutingConfig(breaker_jitter=0.2), random.Random(seed))
        breaker.record(breaker.take(0.0), Verdict.FATAL, 0.0)
        retry_at.add(breaker.retry_at)
    assert len(retry_at) == 20
    assert all(0.8 <= each <= 1.2 for each in retry_at)


def test_a_breaker_opened_by_the_model_yields_and_one_success_closes_it() -> None:
    breaker = make_breaker()
    for _ in range(3):
        breaker.record(breaker.take(0.0), Verdict.FAILURE, 0.0, InferenceFailed.code)
    assert breaker.yields
    permit = breaker.take(0.1)
    breaker.record(permit, Verdict.FAILURE, 0.2, InferenceFailed.code)
    assert (breaker.state, breaker.retry_at) == ("open", 1.0)
    breaker.record(permit, Verdict.SUCCESS, 0.3)
    assert breaker.state is BreakerState.CLOSED


def test_a_lost_link_while_a_last_resort_is_out_ends_that() -> None:
    breaker = opened(cause=InferenceFailed.code)
    breaker.record(breaker.take(0.1), Verdict.FATAL, 0.1, LinkLost.code)
    assert (breaker.state, breaker.cause, breaker.retry_at) == ("open", "link_lost", 2.1)


def test_a_replica_that_announces_itself_anew_takes_back_its_own_word_only() -> None:
    breaker = opened(cause=NotServing.code)
    breaker.renewed(0.1)
    assert breaker.state is BreakerState.CLOSED
    breaker.renewed(0.2)
    lost = opened(cause=LinkLost.code)
    lost.renewed(0.1)
    assert lost.state is BreakerState.OPEN


def test_only_a_replicas_own_word_does_not_yield_before_its_time() -> None:
    assert make_breaker().yields
    assert opened(cause=LinkLost.code).yields
    gone = opened(cause=NotServing.code)
    assert not gone.yields
    gone.take(1.0)
    assert gone.yields  # half-open: a probe is out, and it may be well again


def test_when_the_way_is_back_a_first_loss_is_forgiven_at_once() -> None:
    breaker = opened(now=0.0)
    breaker.reachable(0.3)
    assert breaker.allows(0.3)


def test_of_a_node_that_is_lost_again_and_again_the_time_begins_when_it_is_back() -> None:
    """Eight seconds up and four down, again and again: each time it is left alone for twice as long."""
    breaker, left_alone_s, now = make_breaker(), [], 0.0
    for _ in range(6):
        breaker.record(breaker.take(now), Verdict.FATAL, now, LinkLost.code)
        now += 4.0
        breaker.reachable(now)
        left_alone_s.append(breaker.retry_at - now)
        now = max(now + 8.0, breaker.retry_at)
        breaker.record(breaker.take(now), Verdict.SUCCESS, now)
        now += 0.1
    assert left_alone_s == [0.0, 2.0, 4.0, 8.0, 16.0, 30.0]


def test_a_pardoned_failure_does_not_count() -> None:
    breaker = make_breaker()
    for _ in range(20):
        permit = breaker.take(0.0)
        breaker.record(permit, Verdict.FAILURE, 0.0, InferenceFailed.code)
        breaker.pardon(permit, 0.0)
    assert breaker.state is BreakerState.CLOSED


def test_a_pardoned_failure_that_had_opened_it_lets_a_probe_through_at_once() -> None:
    breaker = make_breaker()
    permit = breaker.take(0.0)
    for _ in range(3):
        breaker.record(permit, Verdict.FAILURE, 0.0, InferenceFailed.code)
    assert not breaker.allows(0.1)
    breaker.pardon(permit, 0.1)
    assert breaker.allows(0.1)


def test_what_others_tried_in_vain_need_not_be_tried_from_here() -> None:
    breaker = opened(cause=InferenceFailed.code)
    breaker.told(12, 0.8, 0.9)  # four times as many in a row as open it
    assert breaker.open_s == 3.0
    assert 3.9 <= breaker.retry_at <= 6.9
    until = breaker.retry_at
    breaker.told(12, 1.8, 1.9)  # nobody tried meanwhile
    assert breaker.retry_at == until
    breaker.told(13, 3.8, 3.9)
    assert 6.9 <= breaker.retry_at <= 10.2


def test_a_gateway_that_fails_there_late_knows_of_the_others() -> None:
    breaker = make_breaker()
    breaker.told(24, 0.0, 0.1)
    for _ in range(3):
        breaker.record(breaker.take(0.1), Verdict.FAILURE, 0.1, InferenceFailed.code)
    assert breaker.open_s == 4.0


def test_the_word_that_a_run_succeeded_there_ends_the_waiting() -> None:
    breaker = opened(cause=InferenceFailed.code)
    breaker.told(0, 0.0, 0.2)  # not later than what opened it
    assert not breaker.allows(0.2)
    breaker.told(-1, 0.3, 0.3)  # it does not say
    assert not breaker.allows(0.3)
    breaker.told(0, 0.4, 0.5)
    assert breaker.allows(0.5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.sampled_from(list(Verdict)), st.integers(0, 5)),
        max_size=60,
    )
)
def test_while_it_is_open_or_probing_nobody_else_is_let_through(
    steps: list[tuple[float, Verdict, int]],
) -> None:
    """Whatever happens: never two probes within one opening's time, and every state can heal."""
    breaker = make_breaker(RoutingConfig())
    permits = []
    now = 0.0
    for delay_s, verdict, index in steps:
        now += delay_s
        if breaker.allows(now):
            permits.append(breaker.take(now))
            if breaker.state is not BreakerState.CLOSED:
                assert not breaker.allows(now)
        if permits and verdict is not Verdict.NEUTRAL:
            breaker.record(permits.pop(index % len(permits)), verdict, now)
        if breaker.state is BreakerState.OPEN:
            assert breaker.retry_at <= now + 30 * 1.2
    assert breaker.allows(now + 100)
