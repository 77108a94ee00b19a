"""Logging what strangers cause: a few lines, then a count."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

    from meshnode.clock import Clock

BURST = 5
"""Lines of one kind in a window: enough to see what it is about."""

WINDOW_S = 60.0
"""A flood costs `BURST` lines a minute."""

_MAX_KINDS = 256  # kinds come from code, not from the network; more would be a mistake


class LogBudget:
    """Lets `BURST` lines of each kind through per `WINDOW_S`, and says how many it left out."""

    def __init__(self, log: logging.Logger, clock: Clock) -> None:
        """Write to `log`."""
        self._log = log
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<LogBudget of {self._log.name}: {len(self._windows)} kinds>"

    def write(self, level: int, kind: str, text: str) -> None:
        """Log a line that belongs to a kind, or count it."""
        now = self._clock.now()
        began, count = self._windows.get(kind, (now, 0))
        if now - began >= WINDOW_S:
            if count > BURST:
                self._log.log(level, "%s: %d more were not logged", kind, count - BURST)
            began, count = now, 0
        if len(self._windows) < _MAX_KINDS or kind in self._windows:
            self._windows[kind] = (began, count + 1)
        if count < BURST:
            self._log.log(level, "%s", text)
        elif count == BURST:
            self._log.log(level, "%s: more of these are counted, not logged", kind)
