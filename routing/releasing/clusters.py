"""Where the answers of two versions differ more often than elsewhere: on which devices, inputs and answers.

Each comparison has some attributes, each of these a short text (`device`, `rows`, ...). A value of an attribute is a
cluster where disagreements are more frequent among those that have it than among all others, beyond chance: a
one-sided test of two shares with the smallest frequencies smoothed, for as many values as there are (Bonferroni).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_CLUSTER_VALUES, MAX_CLUSTERS
from meshnode.routing.releasing.distributions import negative_binomial_tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHANCE: Final = 0.01
"""A finding that is more probable than this by chance is none, over all values together."""

LEAST_DIFFERENT: Final = 3
"""Disagreements in a cluster."""

LEAST_LIFT: Final = 1.5
"""How many times as frequent they are in it."""

OTHERS: Final = "others"
"""Stands for all values of an attribute beyond `MAX_CLUSTER_VALUES`."""


class Cluster(msgspec.Struct, frozen=True):
    """Where disagreements are found.

    Attributes:
        attribute: Of the comparisons, such as `device`.
        value: That these have.
        compared: How many have it.
        disagreed: Of these.
        share: Of the two, 0 to 1.
        elsewhere: The same share among all that do not have it.
        lift: How many times as frequent disagreements are here; smoothed, so that it is finite.
        chance: How probable it is by chance, for all values that were looked at together; 0 to 1.
    """

    attribute: str
    value: str
    compared: int
    disagreed: int
    share: float
    elsewhere: float
    lift: float
    chance: float

    def __str__(self) -> str:
        """Return it as a sentence."""
        return (
            f"{self.attribute} {self.value}: {self.disagreed} of {self.compared} differ "
            f"({100 * self.share:.3g} %, elsewhere {100 * self.elsewhere:.3g} %)"
        )


def clusters(seen: Iterable[tuple[Mapping[str, str], bool]]) -> tuple[Cluster, ...]:
    """Return where comparisons disagree more than elsewhere, the clearest first, at most `MAX_CLUSTERS`.

    Args:
        seen: Of each comparison its attributes, and whether it agreed.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for attributes, agreed in seen:
        for attribute, value in attributes.items():
            values = counts.setdefault(attribute, {})
            if value not in values and len(values) >= MAX_CLUSTER_VALUES:
                value = OTHERS
            cell = values.setdefault(value, [0, 0])
            cell[0] += 1
            cell[1] += not agreed
    tested = sum(len(values) for values in counts.values())
    found = [
        cluster
        for attribute, values in counts.items()
        for value in values
        if (cluster := _cluster(attribute, value, values, tested)) is not None
    ]
    found.sort(key=lambda each: (each.chance, -each.lift, each.attribute, each.value))
    return tuple(found[:MAX_CLUSTERS])


def _cluster(
    attribute: str, value: str, values: Mapping[str, list[int]], tested: int
) -> Cluster | None:
    compared, disagreed = values[value]
    others = sum(each[0] for each in values.values()) - compared
    others_disagreed = sum(each[1] for each in values.values()) - disagreed
    if not others or disagreed < LEAST_DIFFERENT:
        return None
    share, elsewhere = disagreed / compared, others_disagreed / others
    lift = share / max(elsewhere, 0.5 / others)
    rate = (others_disagreed + 1) / others  # as that of a gate on errors, of the old version
    mean = compared * rate
    variance = mean + mean * mean / (others_disagreed + 1)
    chance = min(1.0, tested * negative_binomial_tail(disagreed, mean, variance))
    if lift < LEAST_LIFT or chance > CHANCE or not math.isfinite(lift):
        return None
    return Cluster(attribute, value, compared, disagreed, share, elsewhere, lift, chance)
