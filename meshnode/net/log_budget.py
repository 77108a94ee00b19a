"""Logging what strangers cause: a few lines, then a count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.limits import LOG_WINDOW_S, MAX_LOG_KINDS, MAX_LOG_LINES

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping

    from meshnode.clock import Clock


class LogBudget:
    """Lets a few lines of each kind through per `LOG_WINDOW_S`, and says how many it left out."""

    def __init__(self, log: logging.Logger, clock: Clock, lines: int = MAX_LOG_LINES) -> None:
        """Write to `log`, so many lines of each kind."""
        self._log = log
        self._clock = clock
        self._lines = lines
        self._windows: dict[str, tuple[float, int]] = {}

    def __repr__(self) -> str:
        return f"<LogBudget of {self._log.name}: {len(self._windows)} kinds>"

    def write(
        self, level: int, kind: str, text: str, fields: Mapping[str, object] | None = None
    ) -> None:
        """Log a line that belongs to a kind, with these fields of its own, or count it."""
        now = self._clock.now()
        began, count = self._windows.get(kind, (now, 0))
        if now - began >= LOG_WINDOW_S:
            if count > self._lines:
                self._log.log(level, "%s: %d more were not logged", kind, count - self._lines)
            began, count = now, 0
        if len(self._windows) < MAX_LOG_KINDS or kind in self._windows:
            self._windows[kind] = (began, count + 1)
        if count < self._lines:
            self._log.log(level, "%s", text, extra=fields)
        elif count == self._lines:
            self._log.log(level, "%s: more of these are counted, not logged", kind)
