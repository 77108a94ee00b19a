"""What the faults that are on mean together: for one node, and for who is kept down by what.

Faults overlap: a node that two of them keep down comes back when both are undone, and one that two of
them slow down is slower than by either. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.sim.faults import (
    ClockSkew,
    Crash,
    DiskFull,
    Drain,
    FailRequests,
    Fault,
    Freeze,
    Leave,
    LyingLoad,
    PowerOff,
    RegionDown,
    Sleep,
    SlowDown,
    StaleLoad,
)
from meshnode.sim.processes.orders import Behave

if TYPE_CHECKING:
    from collections.abc import Iterable

KEEPS_DOWN: Final = (Crash, PowerOff, Leave, RegionDown)
"""Faults that end a process; while one is on, nothing but a restart boots it."""

STOPS: Final = (Freeze, Sleep)
"""Faults that let a process stand still."""

CUTS: Final = (PowerOff, RegionDown, Sleep)
"""Faults that take a machine off the network, so that not even its kernel answers."""

BEHAVIOURS: Final = (SlowDown, FailRequests, LyingLoad, StaleLoad, Drain, DiskFull, ClockSkew)
"""Faults that change how a process behaves."""


def behaviour(faults: Iterable[Fault]) -> Behave:
    """Return how a node is to be while these faults are on.

    Slowness multiplies, failures combine as independent ones, clocks' rates multiply; of loads the oldest
    and the last share count, of charges the lowest.
    """
    slowness, passing, share, age_s, rate = 1.0, 1.0, 1.0, 0.0, 1.0
    percent: float | None = None
    is_full = False
    for fault in faults:
        match fault:
            case SlowDown(factor=factor):
                slowness *= factor
            case FailRequests(share=failing):
                passing *= 1 - failing
            case LyingLoad(share=told):
                share = told
            case StaleLoad(age_s=told_age_s):
                age_s = max(age_s, told_age_s)
            case Drain(percent=charge):
                percent = charge if percent is None else min(percent, charge)
            case DiskFull():
                is_full = True
            case ClockSkew(rate=fast):
                rate *= 1 + fast
            case _:
                pass
    return Behave(
        slowness=slowness,
        fail_share=1 - passing,
        load_share=share,
        load_age_s=age_s,
        battery_percent=percent,
        is_disk_full=is_full,
        clock_rate=rate,
    )
