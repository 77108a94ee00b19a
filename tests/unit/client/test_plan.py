"""Failover decided in virtual time, without a socket."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.client.plan import (
    MIN_TRY_S,
    SHORTEST_SILENCE_S,
    CallPlan,
    Failure,
    Fault,
    Gateways,
    GiveUp,
    Try,
    Wait,
)
from meshnode.limits import (
    CLIENT_CONNECT_TIMEOUT_S,
    MAX_CLIENT_BACKOFF_S,
    MAX_CLIENT_SILENCE_S,
    MAX_TRIES_PER_GATEWAY,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SAFE = {Fault.UNREACHABLE, Fault.UNTRUSTED, Fault.REFUSED}


@dataclass
class Call:
    """A call whose tries a test decides, on a clock of its own."""

    gateways: Gateways
    timeout_s: float = 10.0
    repeatable: bool = True
    keyed: bool = False
    only: int | None = None
    now: float = 100.0
    tries: list[Try] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    plan: CallPlan = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.now
        self.plan = CallPlan(
            self.gateways,
            now=self.now,
            deadline=self.now + self.timeout_s,
            rng=random.Random(1),
            repeatable=self.repeatable,
            keyed=self.keyed,
            only=self.only,
        )

    def run(self, outcome: Callable[[Try], Failure | None]) -> GiveUp | int:
        """Follow the plan; each try takes what the outcome adds to `now`. None: it answered."""
        for _ in range(1000):
            step = self.plan.next(self.now)
            if isinstance(step, GiveUp):
                return step
            if isinstance(step, Wait):
                self.waits.append(step.seconds)
                self.now += step.seconds
                continue
            self.tries.append(step)
            failure = outcome(step)
            if failure is None:
                self.plan.answered(step.gateway, self.now)
                return step.gateway
            self.plan.failed(failure, self.now)
        raise AssertionError("the plan never ends")

    @property
    def order(self) -> list[int]:
        return [step.gateway for step in self.tries]


def failing(*gateways: int, fault: Fault = Fault.UNREACHABLE) -> Callable[[Try], Failure | None]:
    def outcome(step: Try) -> Failure | None:
        if not gateways or step.gateway in gateways:
            return Failure(step.gateway, fault, "it failed")
        return None

    return outcome


def test_the_first_gateway_is_tried_first_and_the_next_when_it_fails() -> None:
    call = Call(Gateways(3))
    assert call.run(failing(0, 1)) == 2
    assert call.order == [0, 1, 2]
    assert call.waits == []


def test_the_gateway_that_answered_last_comes_first_and_a_failed_one_behind_the_others() -> None:
    gateways = Gateways(3)
    assert Call(gateways).run(failing(0)) == 1
    later = Call(gateways)
    assert later.run(failing(1)) == 2  # 2 was not tried yet; 0 is behind it
    assert later.order == [1, 2]
    last = Call(gateways)
    last.run(failing())
    assert last.order[:3] == [2, 0, 1]


def test_a_back_off_ends_and_the_first_in_the_list_is_not_forgotten() -> None:
    gateways = Gateways(2)
    Call(gateways).run(failing(0))
    assert gateways.ranked(100.0) == [1, 0]
    later = Call(gateways, now=1000.0)
    assert later.run(failing(1)) == 0


def test_the_back_off_grows_with_each_failure_in_a_row_and_an_answer_ends_it() -> None:
    gateways, rng = Gateways(2), random.Random(3)
    for _ in range(8):
        gateways.failed(Failure(0, Fault.BROKEN, ""), 0.0, rng)
    assert gateways.ranked(14.0) == [1, 0]
    assert gateways.ranked(46.0) == [0, 1]  # at most 30 s, half as much again by chance
    gateways.failed(Failure(0, Fault.BROKEN, ""), 100.0, rng)
    gateways.answered(0, 0.1)
    assert gateways.ranked(100.0) == [0, 1]


def test_every_gateway_has_its_tries_and_then_the_call_is_given_up() -> None:
    call = Call(Gateways(2))
    end = call.run(failing())
    assert isinstance(end, GiveUp)
    assert end.cause == "exhausted"
    rounds = [set(call.order[start : start + 2]) for start in range(0, len(call.order), 2)]
    assert rounds == [{0, 1}] * MAX_TRIES_PER_GATEWAY
    assert [failure.gateway for failure in end.failures] == call.order
    assert call.waits
    assert all(0 < wait < 0.31 for wait in call.waits)


def test_a_single_gateway_is_never_asked_for_a_sign_of_life_since_there_is_no_other() -> None:
    call = Call(Gateways(1), timeout_s=30)
    call.run(failing(fault=Fault.BROKEN))
    assert call.tries[0].silence_s is None
    assert call.tries[0].timeout_s == 30
    assert call.tries[0].connect_s == CLIENT_CONNECT_TIMEOUT_S


@pytest.mark.parametrize("count", [2, 3, 8])
def test_frozen_gateways_leave_time_for_the_others(count: int) -> None:
    """Each is silent until it was asked for a sign of life in vain; the last one answers."""
    call = Call(Gateways(count), timeout_s=4.0)

    def frozen(step: Try) -> Failure | None:
        if step.gateway == count - 1:
            return None
        assert step.silence_s is not None
        call.now += step.silence_s + step.probe_s
        return Failure(step.gateway, Fault.SILENT, "silent")

    assert call.run(frozen) == count - 1
    assert call.now < call.began + 4.0 * count / (count + 1)


def test_silence_is_measured_by_how_long_answers_take() -> None:
    gateways = Gateways(2)
    assert gateways.silence_s == SHORTEST_SILENCE_S
    for _ in range(50):
        gateways.answered(0, 0.5)
    assert gateways.silence_s == pytest.approx(2.0, rel=0.01)
    for _ in range(50):
        gateways.answered(0, 60.0)
    assert gateways.silence_s == MAX_CLIENT_SILENCE_S


@pytest.mark.parametrize("fault", [Fault.BROKEN, Fault.UNWELL])
def test_what_has_an_idempotency_key_is_asked_again_where_it_broke_off_and_nowhere_else(
    fault: Fault,
) -> None:
    call = Call(Gateways(3), repeatable=False, keyed=True)
    end = call.run(failing(fault=fault))
    assert isinstance(end, GiveUp)
    assert (end.cause, call.order) == ("unrepeatable", [0, 0, 0])
    begun = Call(Gateways(2), repeatable=False, keyed=True)
    first = [Failure(0, fault, "it broke off")]
    assert begun.run(lambda _: first.pop() if first else None) == 0
    assert begun.order == [0, 0]


def test_a_silent_gateway_is_not_asked_again_under_the_same_key() -> None:
    call = Call(Gateways(2), repeatable=False, keyed=True)
    end = call.run(failing(fault=Fault.SILENT))
    assert isinstance(end, GiveUp)
    assert (end.cause, call.order) == ("unrepeatable", [0])


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in SAFE])
def test_what_may_have_been_carried_out_is_not_repeated(fault: Fault) -> None:
    call = Call(Gateways(3), repeatable=False)
    end = call.run(failing(fault=fault))
    assert isinstance(end, GiveUp)
    assert (end.cause, call.order) == ("unrepeatable", [0])


@pytest.mark.parametrize("fault", sorted(SAFE))
def test_what_was_certainly_not_carried_out_goes_elsewhere_even_if_it_must_not_be_repeated(
    fault: Fault,
) -> None:
    call = Call(Gateways(2), repeatable=False)
    assert call.run(failing(0, fault=fault)) == 1


def test_a_gateway_that_is_not_trusted_is_not_asked_again() -> None:
    call = Call(Gateways(2))
    end = call.run(failing(fault=Fault.UNTRUSTED))
    assert isinstance(end, GiveUp)
    assert (end.cause, call.order, call.waits) == ("exhausted", [0, 1], [])


def test_a_gateway_stays_behind_as_long_as_its_retry_after_says() -> None:
    gateways, rng = Gateways(2), random.Random(3)
    gateways.failed(Failure(0, Fault.REFUSED, "busy", retry_after_s=10.0), 0.0, rng)
    assert gateways.ranked(9.9) == [1, 0]
    assert gateways.ranked(10.1) == [0, 1]
    gateways.failed(Failure(0, Fault.REFUSED, "busy", retry_after_s=1e9), 20.0, rng)
    assert gateways.ranked(20.1 + MAX_CLIENT_BACKOFF_S) == [0, 1]  # but not for ever


def test_one_failure_ends_the_preference_for_the_gateway_that_answered_last() -> None:
    gateways = Gateways(2)
    gateways.answered(1, 0.1)
    assert gateways.ranked(0.0) == [1, 0]
    gateways.failed(Failure(1, Fault.BROKEN, ""), 0.0, random.Random(3))
    assert gateways.ranked(100.0) == [0, 1]


def test_clients_that_failed_together_do_not_come_back_together() -> None:
    def first_wait(seed: int) -> float:
        plan = CallPlan(Gateways(1), now=0.0, deadline=10.0, rng=random.Random(seed))
        plan.next(0.0)
        plan.failed(Failure(0, Fault.BROKEN, ""), 0.0)
        step = plan.next(0.0)
        assert isinstance(step, Wait)
        return step.seconds

    waits = {first_wait(seed) for seed in range(20)}
    assert len(waits) == 20
    assert max(waits) > 1.5 * min(waits)


def test_retry_after_is_waited_for_when_it_fits_into_the_time() -> None:
    call = Call(Gateways(1), timeout_s=10)
    busy = iter([Failure(0, Fault.REFUSED, "busy", retry_after_s=3.0), None])
    assert call.run(lambda _: next(busy)) == 0
    assert call.waits == [3.0]


def test_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    call = Call(Gateways(2), timeout_s=2)
    end = call.run(lambda step: Failure(step.gateway, Fault.UNWELL, "busy", retry_after_s=60.0))
    assert isinstance(end, GiveUp)
    assert (end.cause, call.order, call.waits) == ("exhausted", [0, 1], [])


def test_the_gateway_that_comes_back_first_is_waited_for() -> None:
    call = Call(Gateways(2), timeout_s=10)
    answers = iter(
        [
            Failure(0, Fault.REFUSED, "busy", retry_after_s=5.0),
            Failure(1, Fault.REFUSED, "busy", retry_after_s=1.0),
            None,
        ]
    )
    assert call.run(lambda _: next(answers)) == 1
    assert call.waits == [1.0]


def test_a_call_for_one_gateway_only_never_leaves_it() -> None:
    call = Call(Gateways(3), only=1)
    call.run(failing())
    assert set(call.order) == {1}
    assert call.tries[0].silence_s is not None  # its caller can begin anew elsewhere


def test_a_call_whose_time_is_over_before_it_began_is_given_up() -> None:
    end = Call(Gateways(1), timeout_s=0.0).run(failing())
    assert end == GiveUp("deadline", ())


def test_plans_and_gateways_show_their_state() -> None:
    gateways = Gateways(2)
    Call(gateways).run(failing(0))
    assert repr(gateways) == "<Gateways last good 1, strikes [1, 0]>"
    assert repr(Call(gateways).plan) == "<CallPlan tries {0: 0, 1: 0}, until 110.000>"


@st.composite
def outcomes(draw: st.DrawFn) -> tuple[Fault | None, float, float | None]:
    fault = draw(st.sampled_from([None, *Fault]))
    took = draw(st.floats(0, 2))
    retry_after = draw(st.none() | st.floats(0, 20))
    return fault, took, retry_after


@settings(max_examples=300, deadline=None)
@given(
    count=st.integers(1, 6),
    timeout_s=st.floats(0.01, 20),
    repeatable=st.booleans(),
    script=st.lists(outcomes(), max_size=30),
    seed=st.integers(0, 2**32),
)
def test_whatever_gateways_do_the_plan_keeps_its_promises(
    count: int,
    timeout_s: float,
    repeatable: bool,
    script: list[tuple[Fault | None, float, float | None]],
    seed: int,
) -> None:
    """No step leads beyond the deadline, all are tried before the end, nothing unsafe is repeated."""
    now = 50.0
    deadline = now + timeout_s
    plan = CallPlan(
        Gateways(count),
        now=now,
        deadline=deadline,
        rng=random.Random(seed),
        repeatable=repeatable,
    )
    tried: list[int] = []
    may_have_run = False
    steps = iter(script)
    for _ in range(200):
        step = plan.next(now)
        if isinstance(step, GiveUp):
            assert len(step.failures) == len(tried)
            if step.cause == "deadline":
                assert deadline - now < MIN_TRY_S
            if step.cause == "exhausted":
                assert set(tried) == set(range(count))
            if step.cause == "unrepeatable":
                assert may_have_run
                assert not repeatable
            return
        if isinstance(step, Wait):
            assert step.seconds > 0
            assert now + step.seconds <= deadline
            now += step.seconds
            continue
        assert not (may_have_run and not repeatable)
        assert now + step.timeout_s <= deadline + 1e-9
        assert 0 < step.connect_s <= step.timeout_s
        if step.silence_s is not None:
            assert 0 < step.silence_s + step.probe_s < step.timeout_s
        assert len(set(tried)) == count or step.gateway not in tried
        tried.append(step.gateway)
        assert tried.count(step.gateway) <= MAX_TRIES_PER_GATEWAY
        fault, took, retry_after = next(steps, (Fault.UNREACHABLE, 0.0, None))
        now += min(took, step.timeout_s)
        if fault is None:
            plan.answered(step.gateway, now)
            return
        may_have_run = may_have_run or fault not in SAFE
        plan.failed(Failure(step.gateway, fault, "", retry_after), now)
    raise AssertionError("the plan never ends")
