"""How many rows are worth joining where nobody configured it: learned from the batches that ran.

The time per row of batches of 1, 2, 3-4, 5-8, … rows is followed (an EWMA each). A request never waits for
others: what is joined is what was queued while all instances were busy. How much of that, this decides:

- the rows of a batch are doubled while each doubling was measured to bring more rows per second, by at
  least `WORTHWHILE`, or was not tried yet. One doubling that does not may be a kernel's whim, so that the
  next is tried too; two in a row end the search;
- a batch may take at most `SLOWEST` times as long as one row, or `ALWAYS_FINE_S` if that is longer;
- after `TRY_AGAIN` batches, what was measured beyond the present choice is forgotten and tried again:
  machines heat up, and other models come and go.
"""

from __future__ import annotations

from typing import Final

WORTHWHILE: Final = 1.05
"""Rows per second after a doubling, over those before: less is noise."""

SLOWEST: Final = 10.0
"""A batch's time over that of one row: the first request of a batch waits for all of it."""

ALWAYS_FINE_S: Final = 0.05
"""A batch that takes no longer than this is felt by nobody, however much shorter one row is."""

TRY_AGAIN: Final = 256
"""Batches after which larger ones are tried again: one in so many may be slower than it had to be."""

_WEIGHT: Final = 0.2
"""Of a new measurement: about the last ten batches of a size count."""


class AdaptiveRows:
    """Learns how many rows a batch should have.

    Attributes:
        most: Rows that are never exceeded.
    """

    __slots__ = ("_choice", "_row_s", "_runs", "most")

    def __init__(self, most: int) -> None:
        """Know nothing yet; allow up to so many rows, at least 1."""
        self.most = most
        self._row_s: list[float] = [0.0] * ((most - 1).bit_length() + 1)
        self._runs = 0
        self._choice = self._choose()

    def __repr__(self) -> str:
        times = ", ".join(
            f"{1 << power}: {row_s * 1e3:.3f} ms"
            for power, row_s in enumerate(self._row_s)
            if row_s
        )
        return f"<AdaptiveRows {self.rows} of {self.most}; per row {times or 'unknown'}>"

    @property
    def rows(self) -> int:
        """Rows that the next batch may have."""
        return min(self._choice, self.most)

    def observe(self, rows: int, elapsed_s: float) -> None:
        """Learn from a batch (or a single request) of so many rows."""
        if rows < 1:
            return
        power = min((rows - 1).bit_length(), len(self._row_s) - 1)
        row_s = elapsed_s / rows
        known = self._row_s[power]
        self._row_s[power] = known + _WEIGHT * (row_s - known) if known else row_s
        self._runs += 1
        if self._runs >= TRY_AGAIN:
            self._runs = 0
            beyond = self._choice.bit_length()
            self._row_s[beyond:] = [0.0] * (len(self._row_s) - beyond)
        self._choice = self._choose()

    def _choose(self) -> int:
        """Return the power of two that the search has come to."""
        one_s = self._row_s[0]
        limit_s = max(SLOWEST * one_s, ALWAYS_FINE_S)
        best = 0
        misses = 0
        for power in range(1, len(self._row_s)):
            row_s = self._row_s[power]
            if not row_s:  # not tried; where one row's time is unknown, any size may teach it
                return 1 << power
            too_slow = row_s * (1 << power) > limit_s
            known = self._row_s[best]
            if not too_slow and (not known or row_s * WORTHWHILE <= known):
                best = power
                misses = 0
                continue
            misses += 1
            if too_slow or misses == 2:
                break
        return 1 << best
