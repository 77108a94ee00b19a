"""The real clock."""

from __future__ import annotations

import time


class RealClock:
    """`meshnode.clock.Clock` over the operating system's clocks."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch."""
        return time.time()
