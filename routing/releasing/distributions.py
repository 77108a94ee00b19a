"""The tails of the distributions that decisions about releases rest on, from the incomplete beta function.

The relations between a distribution's tail and that function are those of Abramowitz and Stegun, "Handbook of Mathematical
Functions" (1964), sections 26.5.24 (binomial), 26.5.26 (negative binomial) and 26.7.1 (Student).
"""

from __future__ import annotations

import math
from typing import Final

_TINY: Final = 1e-300
_PRECISION: Final = 1e-12
_TERMS: Final = 20_000
_MUCH: Final = 1e5  # variance of a count from which the normal distribution is as good at the tails that matter
_UTMOST_SHAPE: Final = 1e7
_HALVINGS: Final = 50


def normal_tail(deviations: float) -> float:
    """Return how probable it is that a normal variable lies so many standard deviations above its mean, or more."""
    return 0.5 * math.erfc(deviations / math.sqrt(2))


def binomial_tail(successes: float, trials: float, probability: float) -> float:
    """Return how probable so many successes or more are; between whole numbers it goes on smoothly.

    Args:
        successes: 0 or more.
        trials: 0 or more.
        probability: Of each, 0 to 1.
    """
    if successes <= 0 or probability >= 1:
        return 1.0
    if successes > trials or probability <= 0:
        return 0.0
    mean = trials * probability
    variance = mean * (1 - probability)
    if variance > _MUCH:
        return normal_tail((successes - 0.5 - mean) / math.sqrt(variance))
    return incomplete_beta(probability, successes, trials - successes + 1)


def negative_binomial_tail(count: float, mean: float, variance: float) -> float:
    """Return how probable such a count or a greater one is, where its own rate is uncertain.

    Args:
        count: 0 or more.
        mean: Above 0.
        variance: More than the mean; where it hardly is, the distribution is Poisson's.
    """
    if count <= 0:
        return 1.0
    if variance > _MUCH and mean * mean > _MUCH * (variance - mean):
        return normal_tail((count - 0.5 - mean) / math.sqrt(variance))
    shape = min(_UTMOST_SHAPE, mean * mean / max(variance - mean, _TINY))
    return incomplete_beta(mean / (shape + mean), count, shape)


def student_tail(value: float, freedom: float) -> float:
    """Return how probable such a value or a greater one is in Student's distribution with so many degrees of freedom."""
    if math.isinf(value):
        return 0.0 if value > 0 else 1.0
    outside = 0.5 * incomplete_beta(freedom / (freedom + value * value), freedom / 2, 0.5)
    return outside if value > 0 else 1 - outside


def student_quantile(tail: float, freedom: float) -> float:
    """Return the value above 0 beyond which lies so much of Student's distribution, below 0.5."""
    lower, upper = 0.0, 1.0
    while student_tail(upper, freedom) > tail and upper < 1e12:
        upper *= 2
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        if student_tail(middle, freedom) > tail:
            lower = middle
        else:
            upper = middle
    return upper


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for `a` and `b` above 0.

    The continued fraction of the NIST Digital Library of Mathematical Functions, 8.17.22, evaluated as Lentz did
    (Press et al., "Numerical Recipes", 3rd edition, sections 5.2 and 6.4).
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    logarithm = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return min(1.0, math.exp(logarithm) * _fraction(x, a, b) / a)


def _fraction(x: float, a: float, b: float) -> float:
    above = 1.0
    below = 1 / _away(1 - (a + b) * x / (a + 1))
    result = below
    for term in range(1, _TERMS):
        even = term * (b - term) * x / ((a + 2 * term - 1) * (a + 2 * term))
        odd = -(a + term) * (a + b + term) * x / ((a + 2 * term) * (a + 2 * term + 1))
        change = 1.0
        for coefficient in (even, odd):
            below = 1 / _away(1 + coefficient * below)
            above = _away(1 + coefficient / above)
            change = below * above
            result *= change
        if abs(change - 1) < _PRECISION:
            break
    return result


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
