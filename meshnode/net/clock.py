"""The real clock.

Its seconds count on while the machine sleeps, so that whoever closed a lid for an hour sees an hour: deadlines have
passed, word about others is old, and a timer that was due meanwhile comes late, by which the cores tell that they
slept. The system's monotonic clock stands still meanwhile on some systems:

| system | `time.monotonic` in sleep | what is used |
|---|---|---|
| Linux | stands still (CLOCK_MONOTONIC) | CLOCK_BOOTTIME |
| macOS | stands still (mach_absolute_time) | CLOCK_MONOTONIC_RAW, which is mach_continuous_time |
| Windows | counts on | the same |

Event loops keep `time.monotonic`: their timers go on after a sleep with what they had left. So a reading of this clock
is never compared with one of a loop's, and `meshnode.daemon.waking` looks whether there was a sleep at all.
"""

from __future__ import annotations

import sys
import time


def _sleep_counting_clock(platform: str) -> int | None:
    """Return the number of the system's clock that counts sleep; None where `time.monotonic` does, or there is none."""
    name = {"linux": "CLOCK_BOOTTIME", "darwin": "CLOCK_MONOTONIC_RAW"}.get(platform)
    number = None if name is None else getattr(time, name, None)
    if number is None:
        return None
    try:
        time.clock_gettime(number)
    except OSError:  # an old kernel
        return None
    return int(number)


class RealClock:
    """`meshnode.clock.Clock` over the operating system's clocks."""

    def __init__(self, platform: str = sys.platform) -> None:
        """Choose the clock of a platform, as `sys.platform` names it."""
        self._number = _sleep_counting_clock(platform)

    def __repr__(self) -> str:
        return f"<RealClock {self._number}>"

    def now(self) -> float:
        """Return monotonic seconds, those in which the machine slept included."""
        return time.monotonic() if self._number is None else time.clock_gettime(self._number)

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()
