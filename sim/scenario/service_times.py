"""How long one run of a model takes: draws from the distributions that a scenario may name.

Each has the mean that the scenario states, whatever its shape, so that changing the shape changes no
utilisation.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Final, assert_never

if TYPE_CHECKING:
    import random

    from meshnode.sim.scenario.model import ServiceTime

LONGEST_MEANS: Final = 1000.0
"""No Pareto draw is above so many means: with an `alpha` below 2 a single one would decide a run."""

_HALVINGS: Final = 80  # of an interval, until it is as short as a float allows


def draw(service: ServiceTime, rng: random.Random) -> float:
    """Return the seconds of one run on a device of speed 1."""
    mean_s = service.mean_ms / 1000
    match service.distribution:
        case "constant":
            return mean_s
        case "exponential":
            return rng.expovariate(1 / mean_s)
        case "lognormal":
            sigma = service.sigma
            return mean_s * rng.lognormvariate(-sigma * sigma / 2, sigma)
        case "pareto":
            shortest = _shortest_of_pareto(service.alpha)
            return mean_s * min(shortest * rng.paretovariate(service.alpha), LONGEST_MEANS)
        case "bimodal":
            short_s = mean_s / (1 - service.share + service.share * service.factor)
            return short_s * service.factor if rng.random() < service.share else short_s
        case _:
            assert_never(service.distribution)


@cache
def _shortest_of_pareto(alpha: float) -> float:
    """Return the least value of a Pareto variable that is cut at `LONGEST_MEANS` and has mean 1.

    Cut at c, a Pareto variable X with least value x has the mean
    E[min(X, c)] = (alpha x - x^alpha c^(1 - alpha)) / (alpha - 1), which grows with x.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        tail = math.exp(alpha * math.log(middle) + (1 - alpha) * math.log(LONGEST_MEANS))
        if (alpha * middle - tail) / (alpha - 1) < 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2
