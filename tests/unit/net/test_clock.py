"""The real clock."""

from __future__ import annotations

import time

import pytest

from meshnode.net.clock import RealClock


def test_now_never_goes_back_and_wall_time_is_the_systems() -> None:
    clock = RealClock()
    assert clock.now() <= clock.now()
    assert abs(clock.wall_s() - time.time()) < 5


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="Linux")
def test_now_counts_the_time_in_which_the_machine_slept() -> None:
    assert RealClock("linux").now() == pytest.approx(time.clock_gettime(time.CLOCK_BOOTTIME), abs=5)


@pytest.mark.parametrize("platform", ["win32", "sunos5"])
def test_where_no_other_clock_is_known_the_systems_monotonic_one_is_taken(platform: str) -> None:
    assert RealClock(platform).now() == pytest.approx(time.monotonic(), abs=5)
    assert repr(RealClock(platform)) == "<RealClock None>"


def test_a_kernel_without_the_clock_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_number: int) -> float:
        raise OSError("invalid argument")

    monkeypatch.setattr(time, "clock_gettime", fail)
    assert RealClock("linux").now() == pytest.approx(time.monotonic(), abs=5)
