"""Run times in buckets: their quantiles, and which of two versions has more of the slowest ones.

A *place* is a position on the buckets' scale, which is logarithmic: at a whole number lies the lower edge of the bucket
of this number, and what a bucket holds is taken to be spread over it evenly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class RunTimes:
    """Those of one version on one class of devices.

    Attributes:
        total: How many.
        buckets: Number by bucket, ascending.
    """

    __slots__ = ("buckets", "total")

    def __init__(self, counts: Mapping[int, int]) -> None:
        self.buckets = sorted(counts.items())
        self.total = sum(counts.values())

    def __repr__(self) -> str:
        return f"<RunTimes: {self.total} in {len(self.buckets)} buckets>"

    def beyond(self, place: float) -> float:
        """Return how many lie beyond a place; a bucket that it divides counts in part."""
        return sum(count * min(1.0, max(0.0, bucket + 1 - place)) for bucket, count in self.buckets)


def quantile(weighed: Iterable[tuple[RunTimes, float]], level: float) -> float:
    """Return the place below which lies such a share of several run times together.

    Args:
        weighed: Run times, not all of them empty, and how much each one of them counts.
        level: 0 to 1.
    """
    amounts: dict[int, float] = {}
    for times, weight in weighed:
        for bucket, count in times.buckets:
            amounts[bucket] = amounts.get(bucket, 0.0) + count * weight
    left = level * sum(amounts.values())
    last = 0
    for bucket, amount in sorted(amounts.items()):
        if left <= amount:
            return bucket + left / amount
        left -= amount
        last = bucket
    return last + 1.0  # the sum is a rounding error more than its parts


def slowest(old: RunTimes, new: RunTimes, level: float, longer: float) -> tuple[float, float]:
    """Return how many of the slowest run times of two versions are the new one's, and how many these are in all.

    Args:
        old: Of the old version, at least one.
        new: Of the new one.
        level: Share of all that is not among the slowest.
        longer: By how many buckets the old version's are made longer first.
    """
    wanted = level * (old.total + new.total)
    height = area = 0.0
    edges = sorted(_edges(old, longer) + _edges(new, 0.0))
    place = edges[0][0]
    for edge, change in edges:
        more = height * (edge - place)
        if area + more >= wanted and more > 0:
            place += (wanted - area) / height
            break
        area += more
        height += change
        place = edge
    return new.beyond(place), (1 - level) * (old.total + new.total)


def _edges(times: RunTimes, longer: float) -> list[tuple[float, int]]:
    """Return where the density of some run times changes, and by how much."""
    begins = [(bucket + longer, count) for bucket, count in times.buckets]
    return begins + [(place + 1, -count) for place, count in begins]
