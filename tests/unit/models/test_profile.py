from __future__ import annotations

import math

import pytest

from meshnode.limits import MAX_PROFILE_BATCH, MAX_PROFILE_SIZES
from meshnode.models.serving.profile import (
    Profile,
    batch_sizes,
    best_rows,
    is_sound,
    service_ms,
    smoothed,
    worth_measuring,
)


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (2, [1, 2]),
        (8, [1, 2, 4, 8]),
        (12, [1, 2, 4, 8, 12]),
        (0, [2**n for n in range(11)]),
    ],
)
def test_batch_sizes_double_up_to_the_largest(most: int, sizes: list[int]) -> None:
    assert list(batch_sizes(most)) == sizes
    assert len(sizes) <= MAX_PROFILE_SIZES


def test_times_between_and_beyond_the_sizes_are_in_line_with_them() -> None:
    profile: Profile = ((1, 1.0), (4, 4.0), (8, 6.0))
    assert [service_ms(profile, rows) for rows in (1, 2, 4, 6, 8, 16)] == [1, 2, 4, 5, 6, 10]
    assert service_ms(((2, 3.0),), 1) == 3.0
    assert service_ms(((2, 3.0),), 4) == 6.0
    assert service_ms((), 4) == 0.0


def test_a_batch_that_took_longer_than_a_larger_one_was_disturbed() -> None:
    assert smoothed([(1, 1.2), (2, 0.02), (4, 0.01), (8, 0.015)]) == (
        (1, 0.01), (2, 0.01), (4, 0.01), (8, 0.015),
    )  # fmt: skip
    assert smoothed([]) == ()


def test_the_best_batch_has_the_most_rows_per_second() -> None:
    assert best_rows(((1, 1.0), (4, 2.0), (8, 5.0))) == 4
    assert best_rows(()) == 1


def test_measuring_ends_with_the_budget_and_when_batches_bring_nothing() -> None:
    assert worth_measuring((), 1, 2, 0.0)
    assert worth_measuring(((1, 10.0),), 2, 2, 0.040)
    assert not worth_measuring(((1, 10.0),), 2, 2, 0.039)
    gains = ((1, 10.0), (2, 11.0), (4, 13.0))
    assert worth_measuring(gains, 8, 2, 1.0)
    gains_nothing = ((1, 10.0), (2, 20.0), (4, 40.0))
    assert not worth_measuring(gains_nothing, 8, 2, 1.0)
    full = tuple((n + 1, 1.0) for n in range(MAX_PROFILE_SIZES))
    assert not worth_measuring(full, 1000, 2, 1e9)


@pytest.mark.parametrize(
    ("profile", "sound"),
    [
        ((), True),
        (((1, 0.5), (MAX_PROFILE_BATCH, 2.0)), True),
        (((2, 1.0), (1, 2.0)), False),
        (((1, 1.0), (1, 1.0)), False),
        (((0, 1.0),), False),
        (((MAX_PROFILE_BATCH + 1, 1.0),), False),
        (((1, math.nan),), False),
        (((1, math.inf),), False),
        (((1, 0.0),), False),
        (((1, 1e300),), False),
        (tuple((n + 1, 1.0) for n in range(MAX_PROFILE_SIZES + 1)), False),
    ],
)
def test_a_profile_from_elsewhere_is_checked(profile: Profile, sound: bool) -> None:
    assert is_sound(profile) is sound
