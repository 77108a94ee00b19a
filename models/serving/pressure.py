"""When memory runs short, batches shrink: the decision, from readings of the machine.

Each reading that finds less than `PRESSURE_SHARE` of the memory free (or the owner's own limit exceeded)
raises the level by one, up to `MAX_PRESSURE`. Each level halves the rows that a batch may have, and any
level empties the response cache. The level falls by one once more than `PRESSURE_RELIEF_SHARE` was free
for `PRESSURE_STEADY_S`, and again after as long: up at once, down slowly.
"""

from __future__ import annotations

from meshnode.limits import (
    MAX_PRESSURE,
    PRESSURE_RELIEF_SHARE,
    PRESSURE_SHARE,
    PRESSURE_STEADY_S,
)


class Pressure:
    """Follows readings; `see` is its only door.

    Attributes:
        level: 0 for none, to `MAX_PRESSURE`.
    """

    __slots__ = ("_easy_since", "level")

    def __init__(self) -> None:
        self.level = 0
        self._easy_since: float | None = None

    def __repr__(self) -> str:
        return f"<Pressure {self.level} of {MAX_PRESSURE}>"

    def see(self, free_bytes: int, total_bytes: int, now: float, *, is_over: bool = False) -> int:
        """Take a reading and return the level that follows.

        Args:
            free_bytes: Memory that programs can still have.
            total_bytes: All of the machine's; 0 if it does not tell, which says nothing.
            now: Monotonic seconds.
            is_over: Whether the owner's limit is exceeded.
        """
        share = free_bytes / total_bytes if total_bytes > 0 else 1.0
        if is_over or share < PRESSURE_SHARE:
            self.level = min(MAX_PRESSURE, self.level + 1)
            self._easy_since = None
        elif share < PRESSURE_RELIEF_SHARE or self.level == 0:
            self._easy_since = None
        elif self._easy_since is None:
            self._easy_since = now
        elif now - self._easy_since >= PRESSURE_STEADY_S:
            self.level -= 1
            self._easy_since = now
        return self.level


def rows_allowed(max_rows: int, level: int) -> int:
    """Return the rows that a batch may have under pressure, at least 1."""
    return max(1, max_rows >> level)
