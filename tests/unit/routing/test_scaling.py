"""How many replicas there are to be: windows, bursts, tolerance, delays and sleep."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.demand import ReplicaSight, Sight
from meshnode.routing.scaling import Autoscaler, Decision, count_for, held, target_count
from meshnode.state.scaling import Scaling

ALIKE = (1.0,) * 40
"""Forty nodes of one unit each."""

RULES = Scaling(min_replicas=1, max_replicas=40, qps=10, stable_window_s=20, down_delay_s=5)


class Trial:
    """An autoscaler, looked at once a second, on nodes that are ready as soon as they are wanted."""

    def __init__(
        self,
        scaling: Scaling = RULES,
        replicas: int = 4,
        units: tuple[float, ...] = ALIKE,
        start_s: float = 0.0,
    ) -> None:
        self.scaling = scaling
        self.units = units
        self.start_s = start_s
        self.now = 100.0
        self.autoscaler = Autoscaler(replicas, self.now)
        self.decisions: list[Decision] = []

    def ask(self, per_s: float, seconds: int = 1, *, waiting: int = 0) -> Trial:
        """Let so many requests come each second."""
        for _ in range(seconds):
            self.now += 1
            ready = self.units[: self.autoscaler.replicas]
            sight = Sight(
                self.units,
                replicas=tuple(ReplicaSight(each, 4, 0) for each in ready),
                asked=per_s,
                waiting=waiting,
                start_s=self.start_s,
            )
            self.decisions.append(self.autoscaler.look(self.scaling, sight, self.now))
        return self

    @property
    def replicas(self) -> int:
        return self.autoscaler.replicas

    @property
    def changes(self) -> list[int]:
        """What was changed to, in order."""
        return [each.replicas for each in self.decisions if each.reason]

    @property
    def turns(self) -> int:
        """How often the direction of changes was another one than before."""
        numbers = [self.decisions[0].replicas, *self.changes]
        steps = [b - a for a, b in itertools.pairwise(numbers)]
        return sum(a * b < 0 for a, b in itertools.pairwise(steps))


def test_as_many_nodes_are_taken_as_hold_what_is_needed() -> None:
    assert count_for(3.0, (1.0, 0.5, 2.0, 4.0)) == 3
    assert count_for(3.6, (1.0, 0.5, 2.0, 4.0)) == 4
    assert count_for(0.0, (1.0, 0.5)) == 0
    assert count_for(99.0, (1.0, 0.5)) == 2


def test_one_fast_node_holds_what_ten_slow_ones_do() -> None:
    fast_first = Trial(units=(10.0, *ALIKE), replicas=1).ask(95, 30)
    slow_first = Trial(units=(*ALIKE[:20], 10.0), replicas=1).ask(95, 30)
    assert fast_first.replicas == 1
    assert slow_first.replicas == 10


def test_a_load_that_stays_leads_to_one_number_and_no_more_changes() -> None:
    trial = Trial().ask(200, 120)
    assert trial.replicas == 20
    before = len(trial.changes)
    trial.ask(200, 300)
    assert len(trial.changes) == before
    assert trial.turns == 0


def test_a_square_wave_turns_once_at_each_edge() -> None:
    trial = Trial(replicas=8).ask(80, 60)
    for _ in range(3):
        begun = len(trial.changes)
        trial.ask(320, 40)  # two stable windows
        assert 0.9 <= trial.replicas / 32 <= 1.1
        assert trial.changes[begun:] == sorted(trial.changes[begun:])
        trial.ask(320, 40)
        begun = len(trial.changes)
        trial.ask(80, 40)
        assert 0.9 <= trial.replicas / 8 <= 1.1
        assert trial.changes[begun:] == sorted(trial.changes[begun:], reverse=True)
        trial.ask(80, 40)
    assert trial.turns == 5  # six edges, each in another direction than the one before


def test_a_burst_is_followed_within_the_panic_window() -> None:
    trial = Trial(replicas=4).ask(40, 60)
    trial.ask(160, 6)
    assert trial.decisions[-1].is_panic
    assert trial.replicas >= 14
    assert "a burst" in next(each.reason for each in reversed(trial.decisions) if each.reason)


def test_what_grows_slowly_is_no_burst() -> None:
    trial = Trial(replicas=4).ask(40, 60)
    for per_s in range(40, 160, 2):
        trial.ask(per_s)
    assert not any(each.is_panic for each in trial.decisions)
    assert trial.replicas >= 12


def test_nothing_is_let_go_until_no_burst_came_for_a_stable_window() -> None:
    trial = Trial(replicas=4).ask(40, 60).ask(160, 6)
    most = trial.replicas
    trial.ask(0, 12)
    assert trial.decisions[-1].is_panic
    assert trial.replicas == most
    trial.ask(0, 30)
    assert trial.replicas == 1


def test_less_has_to_be_needed_for_the_whole_delay_before_a_replica_goes() -> None:
    patient = Scaling(1, 40, qps=10, stable_window_s=4, panic_window_s=4, down_delay_s=30)
    trial = Trial(patient, replicas=8).ask(80, 60).ask(20, 25)
    assert trial.replicas == 8
    trial.ask(80, 5).ask(20, 25)  # it was needed again meanwhile
    assert trial.replicas == 8
    trial.ask(20, 20)
    assert trial.replicas == 2


def test_more_has_to_be_needed_for_the_whole_delay_before_a_replica_comes() -> None:
    patient = Scaling(1, 40, qps=10, stable_window_s=4, panic_window_s=2, up_delay_s=20)
    trial = Trial(patient, replicas=4).ask(40, 60).ask(70, 15).ask(40, 30)
    assert trial.changes == []
    trial.ask(70, 26)
    assert trial.replicas == 7


def test_what_is_dear_to_start_is_kept_longer() -> None:
    cheap = Trial(replicas=8).ask(80, 60).ask(20, 60)
    dear = Trial(replicas=8, start_s=60.0).ask(80, 130).ask(20, 60)
    assert cheap.replicas == 2
    assert dear.replicas == 8
    assert dear.ask(20, 90).replicas == 2


def test_a_new_steward_lets_nothing_go_before_it_has_seen_a_whole_window() -> None:
    trial = Trial(replicas=12).ask(10, 19)
    assert trial.replicas == 12
    assert trial.ask(10, 5).replicas == 1


def test_a_new_steward_adds_what_is_needed_once_it_has_seen_more_than_a_moment() -> None:
    assert Trial(replicas=2).ask(100, 5).replicas == 2
    assert Trial(replicas=2).ask(100, 6).replicas == 10


SLEEPY = Scaling(0, 40, qps=10, stable_window_s=20, down_delay_s=5, idle_s=50)


def test_the_last_replica_goes_when_nobody_has_asked_for_long_enough() -> None:
    trial = Trial(SLEEPY, replicas=3).ask(30, 30).ask(0, 49)
    assert trial.replicas == 1
    assert trial.ask(0).replicas == 0
    assert trial.decisions[-1].reason == "no request came for 50 s"


def test_a_request_a_minute_keeps_it_awake_if_it_may_idle_for_longer() -> None:
    trial = Trial(Scaling(0, 4, qps=10, idle_s=70), replicas=1)
    for _ in range(5):
        trial.ask(0, 59).ask(1)
    assert trial.changes == []


def test_a_request_that_waits_wakes_it_at_once() -> None:
    trial = Trial(SLEEPY, replicas=1).ask(0, 51)
    assert trial.replicas == 0
    trial.ask(0, 1, waiting=3)
    assert trial.replicas == 1
    assert trial.decisions[-1].reason == "3 request(s) wait for it"


def test_a_minimum_of_one_never_sleeps() -> None:
    assert Trial(replicas=3).ask(0, 1000).replicas == 1


def test_other_bounds_count_at_once() -> None:
    trial = Trial(replicas=10).ask(100, 30)
    trial.scaling = Scaling(1, 4, qps=10)
    assert trial.ask(100).replicas == 4
    trial.scaling = Scaling(6, 9, qps=10)
    assert trial.ask(10).replicas == 6


def test_a_need_that_no_node_is_left_for_says_so() -> None:
    trial = Trial(units=(1.0, 1.0, 1.0), replicas=1).ask(100, 10)
    assert trial.replicas == 3
    said = "".join(each.reason for each in trial.decisions)
    assert "all 3 nodes that may serve it hold less" in said


# What holds whatever comes.

_rates = st.lists(st.floats(0, 400), min_size=1, max_size=120)
_units = st.lists(st.floats(0.05, 20), min_size=1, max_size=20).map(tuple)


@settings(deadline=None, max_examples=60)
@given(_rates, _units, st.integers(0, 5), st.integers(0, 20), st.integers(0, 25))
def test_the_number_stays_within_its_bounds(
    rates: list[float], units: tuple[float, ...], least: int, more: int, begin: int
) -> None:
    scaling = Scaling(least, max(1, least + more), qps=10, stable_window_s=8, idle_s=5)
    trial = Trial(scaling, replicas=begin, units=units)
    for rate in rates:
        trial.ask(rate)
        assert scaling.min_replicas <= trial.replicas <= scaling.max_replicas


@settings(deadline=None, max_examples=60)
@given(_rates, _units)
def test_nothing_goes_in_a_panic(rates: list[float], units: tuple[float, ...]) -> None:
    scaling = Scaling(1, 20, qps=10, stable_window_s=8, panic_window_s=3, down_delay_s=0)
    trial = Trial(scaling, replicas=1, units=units)
    for rate in rates:
        before = trial.replicas
        trial.ask(rate)
        if trial.decisions[-1].is_panic:
            assert trial.replicas >= before


@given(st.integers(0, 20), st.floats(0, 500), st.floats(0, 500), _units, st.floats(0.0, 0.5))
def test_who_needs_more_never_gets_fewer(
    current: int, need: float, more: float, units: tuple[float, ...], tolerance: float
) -> None:
    few = target_count(current, need, units, tolerance)
    many = target_count(current, need + more, units, tolerance)
    assert few <= many


@given(st.integers(0, 20), st.floats(0.01, 500), _units, st.floats(0.0, 0.5))
def test_what_is_changed_to_holds_what_is_needed(
    current: int, need: float, units: tuple[float, ...], tolerance: float
) -> None:
    count = target_count(current, need, units, tolerance)
    if count >= len(units):
        return  # all there are
    if count != current:
        assert held(units, count) >= need * (1 - 1e-6)
        assert count == 0 or held(units, count - 1) < need
    else:
        assert held(units, count) * (1 + tolerance) >= need * (1 - 1e-6)


@settings(deadline=None, max_examples=40)
@given(
    st.floats(20, 300),
    st.lists(st.floats(-1, 1), min_size=100, max_size=160),
    st.integers(1, 30),
)
def test_noise_within_half_the_tolerance_turns_the_direction_once_at_most(
    rate: float, noise: list[float], begin: int
) -> None:
    scaling = Scaling(1, 40, qps=10, stable_window_s=4, panic_window_s=2, down_delay_s=0)
    amplitude = 0.95 * scaling.tolerance / (2 + scaling.tolerance)
    trial = Trial(scaling, replicas=begin)
    for each in noise:
        trial.ask(rate * (1 + amplitude * each))
    assert trial.turns <= 1


@pytest.mark.parametrize("window_s", [10.0, 60.0])
def test_a_daily_curve_is_followed_up_once_and_down_once(window_s: float) -> None:
    scaling = Scaling(1, 40, qps=10, stable_window_s=window_s, down_delay_s=5)
    trial = Trial(scaling, replicas=5)
    for second in range(2400):
        trial.ask(200 - 150 * math.cos(2 * math.pi * second / 1200))
    # Two days: up, down, up, down.
    assert trial.turns == 3


class Queues(Trial):
    """Replicas with queues: two slots each, runs of 50 ms, and three seconds until a new one is ready."""

    SLOTS = 2
    SERVICE_S = 0.05

    def __init__(self, scaling: Scaling, replicas: int) -> None:
        super().__init__(scaling, replicas)
        self.rng = random.Random(1)
        self.waiting = 0.0  # in all queues, beyond what a steady load keeps there
        self.ready_at = [0.0] * replicas

    def ask(self, per_s: float, seconds: int = 1, *, waiting: int = 0) -> Queues:
        del waiting
        for _ in range(seconds):
            self.now += 1
            while len(self.ready_at) < self.replicas:
                self.ready_at.append(self.now + 3)
            del self.ready_at[self.replicas :]
            ready = sum(at <= self.now for at in self.ready_at)
            capacity = ready * self.SLOTS / self.SERVICE_S
            self.waiting = min(256.0 * ready, max(0.0, self.waiting + per_s - capacity))
            share = min(0.99, per_s / capacity) if capacity else 0.0
            replicas = [
                ReplicaSight(1.0, self.SLOTS, self.in_system(share, ready), self.SERVICE_S)
                for _ in range(ready)
            ]
            sight = Sight(self.units, self.SLOTS, tuple(replicas), per_s, start_s=3.0)
            self.decisions.append(self.autoscaler.look(self.scaling, sight, self.now))
        return self

    def in_system(self, share: float, ready: int) -> int:
        """Draw how many requests are at a replica: those that run, and behind full slots a queue."""
        running = sum(self.rng.random() < share for _ in range(self.SLOTS))
        queued = int(self.waiting / ready)
        while running == self.SLOTS and self.rng.random() < share:
            queued += 1
        return running + min(256, queued)


@pytest.mark.parametrize(
    "target", [{"concurrency": 1}, {"latency_ms": 100}, {"queue": 0.5}, {"qps": 20}], ids=str
)
def test_a_square_wave_turns_once_at_each_edge_whatever_the_target_though_queues_pile_up(
    target: dict[str, float],
) -> None:
    trial = Queues(Scaling(1, 40, **target), replicas=6).ask(100, 240)
    for _ in range(2):
        for per_s in (400, 100):
            begun = len(trial.changes)
            before = trial.replicas
            trial.ask(per_s, 120)  # two stable windows
            settled = len(trial.changes)
            steps = [before, *trial.changes[begun:]]
            pairs = itertools.pairwise([b - a for a, b in itertools.pairwise(steps)])
            assert sum(a * b < 0 for a, b in pairs) <= 1, steps
            assert trial.replicas * 2 / 0.05 >= per_s / 0.95, "it can do the work"
            assert trial.waiting == 0
            trial.ask(per_s, 120)
            assert len(trial.changes) <= settled + 1, "and stays so"
