"""The tails of distributions, against sums of their terms and values of published tables."""

from __future__ import annotations

import math

import pytest

from meshnode.routing.releasing.distributions import (
    binomial_tail,
    incomplete_beta,
    negative_binomial_tail,
    normal_tail,
    student_quantile,
    student_tail,
)


@pytest.mark.parametrize("trials", [1, 5, 40, 400])
@pytest.mark.parametrize("probability", [0.001, 0.02, 0.5, 0.97])
def test_the_binomial_tail_is_the_sum_of_its_terms(trials: int, probability: float) -> None:
    for successes in {1, trials // 10 + 1, trials // 2 + 1, trials}:
        terms = (
            math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k)
            for k in range(successes, trials + 1)
        )
        assert binomial_tail(successes, trials, probability) == pytest.approx(
            math.fsum(terms), rel=1e-9
        )


@pytest.mark.parametrize(("mean", "shape"), [(0.3, 2.0), (12.0, 3.5), (40.0, 200.0)])
def test_the_negative_binomial_tail_is_what_its_terms_leave(mean: float, shape: float) -> None:
    chance = shape / (shape + mean)
    for count in (1, 5, 60):
        below = math.fsum(
            math.exp(
                math.lgamma(k + shape)
                - math.lgamma(shape)
                - math.lgamma(k + 1)
                + shape * math.log(chance)
                + k * math.log1p(-chance)
            )
            for k in range(count)
        )
        found = negative_binomial_tail(count, mean, mean + mean * mean / shape)
        assert found == pytest.approx(1 - below, rel=1e-6, abs=1e-12)


def test_a_rate_that_is_certain_makes_it_poissons() -> None:
    terms = math.fsum(math.exp(-3) * 3**k / math.factorial(k) for k in range(9))
    assert negative_binomial_tail(9, 3.0, 3.0) == pytest.approx(1 - terms, rel=1e-4)


def test_ends_of_the_distributions() -> None:
    assert binomial_tail(0, 5, 0.5) == 1
    assert binomial_tail(6, 5, 0.5) == 0
    assert binomial_tail(3, 5, 0.0) == 0
    assert binomial_tail(3, 5, 1.0) == 1
    assert negative_binomial_tail(0, 1.0, 2.0) == 1
    assert incomplete_beta(0, 2, 3) == 0
    assert incomplete_beta(1, 2, 3) == 1
    assert student_tail(math.inf, 5) == 0
    assert student_tail(-math.inf, 5) == 1


def test_great_numbers_go_over_into_the_normal_distribution() -> None:
    for deviations in (-1.0, 0.5, 3.0, 5.0):
        exact = binomial_tail(round(195_000 + deviations * 311.6), 390_000, 0.5)
        normal = binomial_tail(round(205_000 + deviations * 320.2), 410_000, 0.5)
        assert exact == pytest.approx(normal, rel=0.1)
        rate = negative_binomial_tail(round(99_000 + deviations * 314.6), 99_000, 99_000)
        more = negative_binomial_tail(round(101_000 + deviations * 317.8), 101_000, 101_000)
        assert rate == pytest.approx(more, rel=0.25)
    assert negative_binomial_tail(10**6, 10.0, 1e9) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("freedom", "value", "tail"),
    [
        (1, 12.706, 0.025),
        (5, 2.571, 0.025),
        (10, 2.764, 0.01),
        (30, 3.385, 0.001),
        (1e9, 1.96, 0.025),
    ],
)
def test_students_distribution_is_that_of_the_tables(
    freedom: float, value: float, tail: float
) -> None:
    assert student_tail(value, freedom) == pytest.approx(tail, rel=2e-3)
    assert student_tail(-value, freedom) == pytest.approx(1 - tail, rel=2e-3)
    assert student_quantile(tail, freedom) == pytest.approx(value, rel=1e-3)


def test_the_normal_tail() -> None:
    assert normal_tail(0) == 0.5
    assert normal_tail(1.96) == pytest.approx(0.025, rel=1e-3)
