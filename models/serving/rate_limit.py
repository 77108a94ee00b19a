"""How many requests a version takes per second: a token bucket without a clock.

The bucket is the time at which it will be full again (the generic cell rate algorithm), so a version that
nobody asks costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.models.execution import RateLimit

_ROUNDING_S: Final = 1e-9  # sums of many small times are not exact


class TokenBucket:
    """Counts requests against a rate.

    Attributes:
        refill_s: Seconds from one request to the next in the long run.
    """

    __slots__ = ("_full_at", "_spread_s", "refill_s")

    def __init__(self, limit: RateLimit) -> None:
        """Allow `burst` requests at once, and `per_second` (above 0) in the long run."""
        self.refill_s = 1.0 / limit.per_second
        self._spread_s = (max(1, limit.burst) - 1) * self.refill_s
        self._full_at = 0.0

    def __repr__(self) -> str:
        return f"<TokenBucket {1 / self.refill_s:g}/s>"

    def take(self, now: float) -> float:
        """Count a request, if there is room for it.

        Returns:
            0 if there was, else after how many seconds there will be; nothing is counted then.
        """
        full_at = max(self._full_at, now)
        early_s = full_at - self._spread_s - now
        if early_s > _ROUNDING_S:
            return early_s
        self._full_at = full_at + self.refill_s
        return 0.0
