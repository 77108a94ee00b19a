"""A replica's profile: how long its model takes for batches of several sizes, measured at warm-up.

It travels in the replica's advert, so that routing knows a fast node from a slow one before the first
request. A profile is (rows, milliseconds) pairs, rows ascending, at most `MAX_PROFILE_SIZES`. Between
two sizes the time is taken to grow in a straight line, after the last as between the last two.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from typing import TYPE_CHECKING

from meshnode.limits import (
    MAX_CLAIMED_SERVICE_MS,
    MAX_PROFILE_BATCH,
    MAX_PROFILE_SIZES,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Profile = tuple[tuple[int, float], ...]
"""(rows, milliseconds) pairs, rows ascending; empty where nothing could be measured."""

GAIN_ENDS = 1.9
"""Twice the rows in this many times the time or more: still larger batches bring nothing worth a
measurement that takes twice as long."""


def batch_sizes(max_rows: int) -> Iterator[int]:
    """Yield the batch sizes to measure: 1, 2, 4, and so on, and last the largest.

    Args:
        max_rows: Largest batch that the version takes; 0 if it states no limit.
    """
    largest = min(max_rows or MAX_PROFILE_BATCH, MAX_PROFILE_BATCH)
    rows = 1
    while rows < largest:
        yield rows
        rows *= 2
    yield largest


def worth_measuring(measured: Profile, rows: int, runs: int, left_s: float) -> bool:
    """Whether one more batch size should be measured.

    Args:
        measured: What is known so far; its first pair was measured without a limit.
        rows: The next size.
        runs: How often it would be run.
        left_s: Seconds that are left for the whole profile.
    """
    if len(measured) >= MAX_PROFILE_SIZES:
        return False
    if not measured:
        return True
    last_rows, last_ms = measured[-1]
    if last_ms * (rows / last_rows) * runs > left_s * 1000:
        return False
    if len(measured) < 3:  # two doublings: one alone may be disturbed
        return True
    before_rows, before_ms = measured[-2]
    return last_ms < before_ms * (GAIN_ENDS / 2) * (last_rows / before_rows)


def smoothed(measured: Sequence[tuple[int, float]]) -> Profile:
    """Return a profile in which no batch takes longer than a larger one: its runs were disturbed then."""
    least_ms = math.inf
    pairs: list[tuple[int, float]] = []
    for rows, ms in reversed(measured):
        least_ms = min(least_ms, ms)
        pairs.append((rows, least_ms))
    return tuple(reversed(pairs))


def service_ms(profile: Profile, rows: int = 1) -> float:
    """Return the milliseconds that a batch takes; 0 if nothing is known.

    Args:
        profile: Of the replica.
        rows: Of the batch.
    """
    if not profile:
        return 0.0
    position = bisect_left(profile, (rows, 0.0))
    if position == 0:
        return profile[0][1]
    if position == len(profile):
        if len(profile) == 1:
            return profile[0][1] * rows / profile[0][0]
        position -= 1
    (low_rows, low_ms), (high_rows, high_ms) = profile[position - 1], profile[position]
    slope = (high_ms - low_ms) / (high_rows - low_rows)
    return max(low_ms, low_ms + slope * (rows - low_rows))


def best_rows(profile: Profile) -> int:
    """Return the batch size with the most rows per second; 1 if nothing is known."""
    return max(profile, key=lambda pair: pair[0] / pair[1], default=(1, 0.0))[0]


def is_sound(profile: Profile) -> bool:
    """Whether a profile that came from elsewhere is one: within limits, ascending, finite."""
    rows = [pair[0] for pair in profile]
    return (
        len(profile) <= MAX_PROFILE_SIZES
        and all(1 <= each <= MAX_PROFILE_BATCH for each in rows)
        and all(low < high for low, high in pairwise(rows))
        and all(
            math.isfinite(each_ms) and 0 < each_ms <= MAX_CLAIMED_SERVICE_MS
            for _, each_ms in profile
        )
    )
