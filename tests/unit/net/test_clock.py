"""The real clock."""

from __future__ import annotations

import time

from meshnode.net.clock import RealClock


def test_now_never_goes_back_and_wall_time_is_the_systems() -> None:
    clock = RealClock()
    assert clock.now() <= clock.now()
    assert abs(clock.wall_s() - time.time()) < 5
