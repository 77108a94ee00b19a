from __future__ import annotations

import random
from itertools import pairwise
from statistics import fmean

import pytest

from meshnode.sim.scenario.model import ServiceTime
from meshnode.sim.scenario.service_times import LONGEST_MEANS, draw


def draws(service: ServiceTime, count: int = 40_000) -> list[float]:
    rng = random.Random("draws")
    return [draw(service, rng) for _ in range(count)]


@pytest.mark.parametrize(
    ("service", "tolerance"),
    [
        (ServiceTime(distribution="constant"), 1e-9),
        (ServiceTime(distribution="exponential"), 0.02),
        (ServiceTime(distribution="lognormal", sigma=0.5), 0.02),
        (ServiceTime(distribution="lognormal", sigma=0.0), 1e-9),
        (ServiceTime(distribution="lognormal", sigma=1.5), 0.1),
        (ServiceTime(distribution="pareto", alpha=3.0), 0.02),
        (ServiceTime(distribution="pareto", alpha=2.0), 0.1),
        (ServiceTime(distribution="bimodal", share=0.1, factor=10.0), 0.02),
        (ServiceTime(distribution="bimodal", share=1.0, factor=10.0), 1e-9),
    ],
)
def test_every_distribution_has_the_stated_mean(service: ServiceTime, tolerance: float) -> None:
    assert fmean(draws(service)) == pytest.approx(0.02, rel=tolerance)


@pytest.mark.parametrize("alpha", [1.01, 1.1, 1.5, 2.0, 10.0])
def test_a_cut_pareto_keeps_its_mean_however_heavy_its_tail(alpha: float) -> None:
    """By integration of its survival function, as no number of draws would show it."""
    service = ServiceTime(distribution="pareto", mean_ms=1000.0, alpha=alpha)

    class Least(random.Random):
        def paretovariate(self, alpha: float) -> float:
            return 1.0

    shortest = draw(service, Least())
    steps = 200_000
    ratio = (LONGEST_MEANS / shortest) ** (1 / steps)
    edges = [shortest * ratio**step for step in range(steps + 1)]
    tail = sum(
        (high - low) * (shortest / ((low + high) / 2)) ** alpha for low, high in pairwise(edges)
    )
    assert shortest + tail == pytest.approx(1.0, rel=1e-3)


def test_no_pareto_draw_is_longer_than_a_thousand_means() -> None:
    class Unlucky(random.Random):
        def paretovariate(self, alpha: float) -> float:
            return 1e12

    service = ServiceTime(distribution="pareto", mean_ms=20.0, alpha=1.1)
    assert draw(service, Unlucky()) == pytest.approx(20.0)


def test_a_bimodal_time_has_two_values_that_differ_by_the_factor() -> None:
    service = ServiceTime(distribution="bimodal", share=0.25, factor=5.0)
    values = draws(service, 4000)
    short, long = sorted({*values})
    assert long / short == pytest.approx(5.0)
    assert values.count(long) / len(values) == pytest.approx(0.25, abs=0.03)
