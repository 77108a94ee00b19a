from __future__ import annotations

import pytest

from meshnode.routing.trials import (
    SLOW_S,
    TRIAL_AFTER_MOST_S,
    TRIAL_AFTER_S,
    TRIED_FACTOR,
    USUAL_S,
    Trials,
)


def held(trials: Trials, service_ms: float, since_s: float, until_s: float) -> None:
    """Let a run time be said from one second to another."""
    steps = round((until_s - since_s) / 0.5)
    for step in range(1, steps + 1):
        trials.held(service_ms, since_s + step * 0.5)


def usual(service_ms: float = 10.0, for_s: float = 8.0) -> Trials:
    trials = Trials()
    trials.begins(0.0)
    held(trials, service_ms, 0.0, for_s)
    return trials


def test_nothing_is_slow_before_something_is_usual() -> None:
    trials = Trials()
    trials.begins(0.0)
    held(trials, 10.0, 0.0, 4.0)
    assert trials.slow_above_ms == trials.usual_ms == float("inf")
    held(trials, 10.0, 4.0, 6.0)
    assert trials.usual_ms == pytest.approx(10.0)
    assert trials.slow_above_ms == pytest.approx(10.0 * TRIED_FACTOR)


def test_what_is_usual_stays_while_a_replica_is_slow_even_if_it_was_known_for_seconds_only() -> (
    None
):
    """Or a trial would be made as of a slow one, which is not chosen: so nobody would find out that it recovered."""
    trials = usual(for_s=8.0)
    held(trials, 100.0, 8.0, 8.0 + SLOW_S - 1.0)
    assert trials.usual_ms == pytest.approx(10.0)


def test_who_is_slow_for_minutes_is_a_slow_replica() -> None:
    trials = usual()
    held(trials, 100.0, 8.0, 8.0 + SLOW_S + USUAL_S / 2)
    assert 14.0 < trials.usual_ms < 50.0
    held(trials, 100.0, 8.0 + SLOW_S + USUAL_S / 2, 400.0)
    assert trials.slow_above_ms > 100.0


def test_a_replica_that_was_well_in_between_is_slow_anew() -> None:
    trials = usual()
    held(trials, 100.0, 8.0, 30.0)
    held(trials, 10.0, 30.0, 31.0)
    held(trials, 100.0, 31.0, 31.0 + SLOW_S - 1.0)
    assert trials.usual_ms == pytest.approx(10.0)


def test_slow_trials_become_rarer_and_quick_ones_allow_one_more_at_a_time() -> None:
    trials = usual()
    waits = []
    for _ in range(4):
        waits.append(trials.after_s)
        trials.ended(quick=False)
    assert waits == [TRIAL_AFTER_S, 2 * TRIAL_AFTER_S, 4 * TRIAL_AFTER_S, TRIAL_AFTER_MOST_S]
    trials.ended(quick=True)
    trials.ended(quick=True)
    assert (trials.quick, trials.after_s) == (2, 0.0)
    trials.ended(quick=False)
    assert (trials.quick, trials.after_s) == (0, TRIAL_AFTER_S)


def test_a_replica_that_says_that_it_is_well_is_no_longer_tried() -> None:
    trials = usual()
    held(trials, 100.0, 8.0, 10.0)
    trials.ended(quick=True)
    held(trials, 12.0, 10.0, 11.0)
    assert (trials.quick, trials.after_s) == (0, TRIAL_AFTER_S)


def test_the_repr_tells_what_is_slow() -> None:
    assert repr(usual()) == "<Trials: slow above 16 ms, the last 0 quick>"
