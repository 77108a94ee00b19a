"""Time as a parameter.

Cores take `now` as an argument; drivers hold a `Clock`. The real one is `meshnode.net.clock`,
the simulator's is `meshnode.sim.core_world`.
"""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Two readings of time."""

    def now(self) -> float:
        """Return monotonic seconds; only differences mean something."""
        ...

    def wall_s(self) -> float:
        """Return seconds since the Unix epoch, for expiry dates and hybrid logical clocks."""
        ...
