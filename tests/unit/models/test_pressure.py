from __future__ import annotations

from meshnode.limits import MAX_PRESSURE, PRESSURE_STEADY_S
from meshnode.models.serving.pressure import Pressure, rows_allowed

SCARCE, SOME, PLENTY = 5, 10, 50  # percent free


def test_each_reading_without_memory_is_a_step_up_to_a_limit() -> None:
    pressure = Pressure()
    levels = [pressure.see(SCARCE, 100, float(second)) for second in range(MAX_PRESSURE + 3)]
    assert levels == [1, 2, 3, 4, 5, 6, 6, 6, 6]
    assert repr(pressure) == "<Pressure 6 of 6>"


def test_it_falls_step_by_step_after_steady_relief() -> None:
    pressure = Pressure()
    pressure.see(SCARCE, 100, 0.0)
    pressure.see(SCARCE, 100, 1.0)
    assert pressure.see(PLENTY, 100, 10.0) == 2
    assert pressure.see(PLENTY, 100, 9.9 + PRESSURE_STEADY_S) == 2
    assert pressure.see(PLENTY, 100, 10.0 + PRESSURE_STEADY_S) == 1
    assert pressure.see(PLENTY, 100, 9.9 + 2 * PRESSURE_STEADY_S) == 1
    assert pressure.see(PLENTY, 100, 10.0 + 2 * PRESSURE_STEADY_S) == 0


def test_a_value_between_the_limits_changes_nothing_and_ends_the_relief() -> None:
    pressure = Pressure()
    assert pressure.see(SOME, 100, 0.0) == 0
    pressure.see(SCARCE, 100, 1.0)
    pressure.see(PLENTY, 100, 2.0)
    assert pressure.see(SOME, 100, 3.0) == 1
    assert pressure.see(PLENTY, 100, 4.0) == 1
    assert pressure.see(PLENTY, 100, 2.0 + PRESSURE_STEADY_S) == 1
    assert pressure.see(PLENTY, 100, 4.0 + PRESSURE_STEADY_S) == 0


def test_the_owners_limit_counts_and_an_unknown_size_says_nothing() -> None:
    pressure = Pressure()
    assert pressure.see(0, 0, 0.0) == 0
    assert pressure.see(PLENTY, 100, 1.0, is_over=True) == 1


def test_each_level_halves_the_rows_down_to_one() -> None:
    assert [rows_allowed(20, level) for level in range(7)] == [20, 10, 5, 2, 1, 1, 1]
