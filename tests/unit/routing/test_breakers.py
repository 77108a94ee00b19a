from __future__ import annotations

import random

from meshnode.errors import InferenceFailed, InvalidRequest, LinkLost, NotServing
from meshnode.routing.breaker import Breaker, BreakerState, Verdict
from meshnode.routing.breakers import LATE, Breakers, Guard
from meshnode.routing.config import RoutingConfig
from meshnode.routing.outliers import SUCCESS_RATE
from meshnode.types import NodeId

CONFIG = RoutingConfig(breaker_jitter=0.0)
ALPHA = NodeId("alpha")


def make_breakers() -> Breakers:
    return Breakers(CONFIG, random.Random(1))


def end(guard: Guard, verdict: Verdict, cause: str = "", now: float = 0.0) -> None:
    guard.record(guard.take(now), verdict, now, cause)


def fail(guard: Guard, times: int = 3, now: float = 0.0, cause: str = InferenceFailed.code) -> None:
    for _ in range(times):
        end(guard, Verdict.FAILURE, cause, now)


def test_there_is_one_guard_per_replica_until_it_is_forgotten() -> None:
    breakers = make_breakers()
    first = breakers.of(ALPHA, "digits", 1)
    assert breakers.of(ALPHA, "digits", 1) is first
    assert breakers.of(ALPHA, "digits", 2) is not first
    end(first, Verdict.FATAL, NotServing.code)
    assert repr(breakers) == "<Breakers 1 closed of 2>"
    assert (
        repr(first)
        == "<Guard <Breaker open not_serving epoch 1> of node <Breaker closed  epoch 0>>"
    )
    breakers.forget(ALPHA, "digits", 1)
    breakers.forget(ALPHA, "digits", 1)
    assert breakers.of(ALPHA, "digits", 1) is not first


def test_one_lost_request_of_one_model_spares_those_of_all_others() -> None:
    breakers = make_breakers()
    digits, words = breakers.of(ALPHA, "digits", 1), breakers.of(ALPHA, "words", 1)
    end(digits, Verdict.FATAL, LinkLost.code)
    assert (words.state, words.cause, words.retry_at) == (BreakerState.OPEN, "link_lost", 1.0)
    assert not words.allows(0.5)
    later = breakers.of(ALPHA, "pictures", 1)
    assert later.state is BreakerState.OPEN
    end(words, Verdict.SUCCESS, now=1.0)
    assert {each.state for each in (digits, words, later)} == {BreakerState.CLOSED}


def test_what_one_model_does_is_no_other_models_business() -> None:
    breakers = make_breakers()
    digits, words = breakers.of(ALPHA, "digits", 1), breakers.of(ALPHA, "words", 1)
    fail(digits)
    assert (digits.state, words.state) == (BreakerState.OPEN, BreakerState.CLOSED)


def test_when_most_models_of_a_node_fail_it_is_the_node() -> None:
    breakers = make_breakers()
    one, two, three, unasked = (
        breakers.of(ALPHA, name, 1) for name in ("one", "two", "three", "x")
    )
    end(three, Verdict.SUCCESS)
    fail(one)
    assert three.state is BreakerState.CLOSED
    fail(two)
    assert {each.state for each in (one, two, three, unasked)} == {BreakerState.OPEN}
    assert three.cause == InferenceFailed.code
    assert three.yields
    end(three, Verdict.SUCCESS, now=1.0)
    assert three.state is BreakerState.CLOSED


def test_any_answer_of_a_node_says_that_the_way_to_it_is_open() -> None:
    for verdict, cause in [
        (Verdict.NEUTRAL, InvalidRequest.code), (Verdict.FATAL, NotServing.code),
        (Verdict.FAILURE, InferenceFailed.code),
    ]:  # fmt: skip
        breakers = make_breakers()
        guard = breakers.of(ALPHA, "digits", 1)
        end(guard, Verdict.FATAL, LinkLost.code)
        end(guard, verdict, cause, now=1.0)
        assert breakers.of_node(ALPHA).state is BreakerState.CLOSED


def test_silence_says_nothing_of_the_way() -> None:
    breakers = make_breakers()
    guard = breakers.of(ALPHA, "digits", 1)
    end(guard, Verdict.FATAL, LinkLost.code)
    end(guard, Verdict.NEUTRAL, now=1.0)
    end(guard, Verdict.FAILURE, LATE, now=1.0)
    assert breakers.of_node(ALPHA).state is not BreakerState.CLOSED


def test_a_node_that_crashes_again_and_again_is_known_for_it_although_its_replicas_are_new() -> (
    None
):
    breakers = make_breakers()
    opened_s = []
    for crash in range(4):
        now = 12.0 * crash
        breakers.forget(ALPHA, "digits", 1)
        guard = breakers.of(ALPHA, "digits", 1)
        end(guard, Verdict.SUCCESS, now=now)
        end(guard, Verdict.FATAL, LinkLost.code, now)
        breakers.reachable(ALPHA, now + 1.0)
        opened_s.append(guard.retry_at - now - 1.0)
    assert opened_s == [0.0, 2.0, 4.0, 8.0]
    breakers.forget(ALPHA, "digits", 1)
    breakers.forget_node(ALPHA)
    assert breakers.of(ALPHA, "digits", 1).state is BreakerState.CLOSED


def test_failures_take_at_most_half_of_a_model_versions_replicas_out_of_use() -> None:
    breakers = make_breakers()
    guards = [breakers.of(NodeId(str(number)), "digits", 1) for number in range(5)]
    for guard in guards:
        fail(guard, times=5)
    assert [each.is_ejected for each in guards] == [True, True, True, False, False]
    for guard in guards:
        end(guard, Verdict.FATAL, LinkLost.code)
    assert breakers.states() == {BreakerState.OPEN: 5}


def test_the_only_replica_may_be_ejected_for_it_yields() -> None:
    guard = make_breakers().of(ALPHA, "digits", 1)
    fail(guard)
    assert (guard.is_ejected, guard.yields) == (True, True)


def test_who_stands_out_is_ejected_for_twice_as_long_each_time() -> None:
    """It fails every other request, never three in a row, and the others fail none."""
    breakers = make_breakers()
    guards = [breakers.of(NodeId(name), "digits", 1) for name in ("bad", "good", "fine")]
    lasted_s: list[float] = []
    now = 0.0
    while len(lasted_s) < 3:
        for number in range(30):
            now += 0.02
            for guard in guards:
                bad = guard is guards[0] and number % 2 == 0
                if guard.allows(now):
                    verdict = Verdict.FAILURE if bad else Verdict.SUCCESS
                    end(guard, verdict, InferenceFailed.code if bad else "", now)
        if guards[0].state is BreakerState.OPEN:
            assert guards[0].cause == SUCCESS_RATE
            lasted_s.append(guards[0].replica.open_s)
            now = guards[0].retry_at
            end(guards[0], Verdict.SUCCESS, now=now)
    assert lasted_s == [1.0, 2.0, 4.0]
    assert {each.state for each in guards[1:]} == {BreakerState.CLOSED}


def test_a_replica_that_nobody_asked_yet_hears_nothing() -> None:
    breakers = make_breakers()
    breakers.told(ALPHA, "digits", 1, 5, 0.0, 0.0)
    breakers.reachable(ALPHA, 0.0)
    assert repr(breakers) == "<Breakers 0 closed of 0>"
    assert isinstance(breakers.of_node(ALPHA), Breaker)
