"""How two arms differ, for people."""

from __future__ import annotations

import math
import random

import pytest
from msgspec import structs

from meshnode.routing.releasing.evidence import Cell, Moments, bucket_of
from meshnode.routing.releasing.significance import Arms, compare_arms
from meshnode.state.release import Release, Step

PLAN = Release("ab", 1, 2, (Step(0.5),), confidence=0.95)


def only(cells: dict[tuple[int, str], Cell], metric: str, plan: Release = PLAN) -> Arms:
    (found,) = [each for each in compare_arms(plan, cells) if each.metric == metric]
    return found


def amounts(rng: random.Random, count: int, mean: float, spread: float) -> Moments:
    moments = Moments()
    for _ in range(count):
        moments += Moments(1, rng.gauss(mean, spread))
    return moments


def timed(rng: random.Random, count: int, median_ms: float) -> Cell:
    run_times: dict[int, int] = {}
    for _ in range(count):
        bucket = bucket_of(median_ms * math.exp(rng.gauss(0, 0.4)))
        run_times[bucket] = run_times.get(bucket, 0) + 1
    return Cell(count, 0, run_times)


def test_two_shares() -> None:
    """The figures of a text-book: 60 of 1,000 and 90 of 1,000 have z = 2.546 and p = 0.011."""
    found = only({(1, "cpu"): Cell(1000, 60), (2, "cpu"): Cell(1000, 90)}, "errors")
    assert (found.baseline, found.candidate) == (0.06, 0.09)
    assert found.difference == pytest.approx(0.03)
    assert found.chance == pytest.approx(0.0109, abs=2e-4)
    assert found.is_significant
    assert str(found) == "errors: 0.03 (0.006854 to 0.05315), p = 0.011: differs"
    strict = only(
        {(1, "cpu"): Cell(1000, 60), (2, "cpu"): Cell(1000, 90)},
        "errors",
        structs.replace(PLAN, confidence=0.99),
    )
    assert not strict.is_significant
    assert strict.low is not None
    assert strict.low < 0 < (strict.high or 0)


def test_two_means() -> None:
    """Welch's own kind of example, worked out by hand: 2 apart, with unequal spreads and numbers."""
    old, new = Moments(20, 10.0, 19 * 4.0), Moments(40, 12.0, 39 * 16.0)
    cells = {
        (1, "cpu"): Cell(metrics={"stars": old}),
        (2, "cpu"): Cell(metrics={"stars": new}),
    }
    found = only(cells, "stars")
    assert found.difference == 2.0
    assert found.chance == pytest.approx(
        0.01237, abs=1e-5
    )  # t = 2.582 with 58.0 degrees of freedom
    assert found.low == pytest.approx(0.449, abs=2e-3)
    assert found.high == pytest.approx(3.551, abs=2e-3)


def test_run_times_are_compared_as_a_ratio() -> None:
    rng = random.Random(1)
    cells = {(1, "cpu"): timed(rng, 2000, 20.0), (2, "cpu"): timed(rng, 2000, 25.0)}
    found = only(cells, "latency")
    assert found.baseline == pytest.approx(20, rel=0.05)
    assert found.candidate == pytest.approx(25, rel=0.05)
    assert found.difference == pytest.approx(1.25, rel=0.05)
    assert found.low is not None
    assert 1 < found.low < 1.25 < (found.high or 0) < 1.35
    assert found.is_significant


def test_an_arm_on_quicker_devices_does_not_win_by_that() -> None:
    rng = random.Random(2)
    cells = {
        (1, "gpu"): timed(rng, 1800, 5.0),
        (1, "cpu"): timed(rng, 200, 50.0),
        (2, "gpu"): timed(rng, 200, 5.0),
        (2, "cpu"): timed(rng, 1800, 50.0),
    }
    found = only(cells, "latency")
    assert found.difference == pytest.approx(1.0, abs=0.05)
    assert not found.is_significant


def test_what_is_told_holds_as_often_as_is_said() -> None:
    """Of 200 tests of equal arms one in twenty finds a difference, and as many intervals miss the true one."""
    rng = random.Random(3)
    differs, missed = 0, 0
    for _ in range(200):
        old = Cell(200, metrics={"stars": amounts(rng, 30, 4, 1)})
        new = Cell(200, metrics={"stars": amounts(rng, 60, 4, 2)})
        found = only({(1, "cpu"): old, (2, "cpu"): new}, "stars")
        differs += found.is_significant
        missed += not (found.low or 0) <= 0 <= (found.high or 0)
    assert differs / 200 == pytest.approx(0.05, abs=0.04)
    assert missed == differs


def test_marks_of_yes_and_no_are_shares() -> None:
    yes_no = {
        (1, "cpu"): Cell(metrics={"liked": Moments(1000, 0.06, 1000 * 0.06 * 0.94)}),
        (2, "cpu"): Cell(metrics={"liked": Moments(1000, 0.09, 1000 * 0.09 * 0.91)}),
    }
    as_errors = only({(1, "cpu"): Cell(1000, 60), (2, "cpu"): Cell(1000, 90)}, "errors")
    assert only(yes_no, "liked").chance == pytest.approx(as_errors.chance)


def test_too_few_figures_tell_nothing() -> None:
    found = only({(1, "cpu"): Cell(9, 1), (2, "cpu"): Cell(500, 1)}, "errors")
    assert (found.difference, found.chance, found.is_significant) == (None, 1.0, False)
    assert str(found) == "errors: too few figures (9 and 500)"
    new_alone = compare_arms(PLAN, {(2, "cpu"): timed(random.Random(1), 50, 20.0)})
    assert [(each.metric, each.baseline) for each in new_alone] == [
        ("errors", None),
        ("latency", None),
    ]
    assert new_alone[1].candidate == pytest.approx(20, rel=0.2)
    assert compare_arms(PLAN, {}) == ()


def test_amounts_that_never_differ() -> None:
    same = {
        (1, "cpu"): Cell(100, 0, {100: 100}, 100, 100),
        (2, "cpu"): Cell(100, 0, {100: 100}, 100, 100),
    }
    for found in compare_arms(PLAN, same):
        assert (found.chance, found.is_significant) == (1.0, False)
    same[2, "cpu"] = Cell(100, 0, {116: 100}, 100, 100)
    found = only(same, "latency")
    assert (found.difference, found.chance) == (2.0, 0.0)
