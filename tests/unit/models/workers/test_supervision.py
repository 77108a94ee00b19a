from __future__ import annotations

import random
from dataclasses import replace

import pytest

from meshnode.models.workers.supervision import Bounds, Pace, Reading, Restarts, grace_s, verdict

MIB = 2**20
BOUNDS = Bounds(memory_bytes=100 * MIB, silence_s=60.0, cancel_grace_s=10.0, processes=8)
FINE = Reading(memory_bytes=100 * MIB, processes=8, silent_s=60.0, overdue_s=10.0, stopped_looks=1)


def test_a_process_at_its_bounds_may_stay() -> None:
    assert verdict(FINE, BOUNDS, 0.0) == ""


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (replace(FINE, memory_bytes=101 * MIB), "took 101 MiB of memory, above its limit of 100 MiB"),
        (replace(FINE, processes=9), "started 9 processes, above the limit of 8"),
        (replace(FINE, silent_s=61.0), "no sign of life for 61 s"),
        (replace(FINE, stopped_looks=2), "was stopped by a signal, did not go on"),
        (replace(FINE, overdue_s=10.5), "ran on for 10.5 s after nobody waited"),
    ],
)  # fmt: skip
def test_a_process_beyond_a_bound_must_go_and_the_reason_names_it(
    reading: Reading, said: str
) -> None:
    assert said in verdict(reading, BOUNDS, 0.0)


def test_a_model_that_usually_takes_long_may_come_to_its_end_by_itself() -> None:
    assert grace_s(10.0, 1.0) == 10.0
    assert grace_s(10.0, 20.0) == 80.0
    assert verdict(replace(FINE, overdue_s=79.0), BOUNDS, 20.0) == ""


def test_pauses_double_up_to_a_most_and_are_spread() -> None:
    pauses = Restarts(1.0, 30.0, random.Random(7))
    taken = [pauses.next_pause_s(0.0) for _ in range(10)]
    for count, pause_s in enumerate(taken):
        nominal_s = min(30.0, 2.0**count)
        assert 0.5 * nominal_s <= pause_s <= min(30.0, 1.5 * nominal_s)
    assert len(set(taken)) == 10 or taken.count(30.0) > 1


def test_after_one_that_lasted_the_next_pause_is_short_again() -> None:
    pauses = Restarts(1.0, 30.0, random.Random(7))
    for _ in range(5):
        pauses.next_pause_s(1.0)
    assert pauses.next_pause_s(3600.0) <= 1.5
    assert repr(pauses) == "<Restarts 1>"


def test_who_talks_too_much_is_listened_to_later_and_bursts_are_not_too_much() -> None:
    pace = Pace(1000.0, now=0.0)
    assert pace.pause_s(1000, 0.0) == 0.0
    assert pace.pause_s(500, 0.5) == 0.0
    assert pace.pause_s(2000, 0.5) == 2.0
    assert pace.pause_s(1, 3.0) == 0.0
    assert pace.pause_s(1000, 1000.0) == 0.0  # silence saves up no more than a second's
    assert pace.pause_s(1000, 1000.0) == 1.0
    assert repr(pace) == "<Pace -1000 of 1000>"
