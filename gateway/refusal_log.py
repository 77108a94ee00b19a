"""Who was refused for want of a valid key, in a few log lines.

What guesses at keys looks the same as a program whose key expired until one reads from where it comes
and why it was refused. Strangers cause these lines, so each address gets a few an hour, and all
together no more than a `LogBudget` lets through.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshnode.limits import (
    KEY_LOG_WINDOW_S,
    MAX_KEY_LOG_LINES,
    MAX_REQUEST_LOG_LINES,
    MAX_THROTTLED_SOURCES,
)
from meshnode.net.log_budget import LogBudget

if TYPE_CHECKING:
    from meshnode.clock import Clock

log = logging.getLogger(__name__)


class RefusalLog:
    """Writes them, at `warning`."""

    def __init__(self, clock: Clock) -> None:
        """Count by this clock."""
        self._clock = clock
        self._budget = LogBudget(log, clock, MAX_REQUEST_LOG_LINES)
        self._began = clock.now()
        self._lines: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<RefusalLog of {len(self._lines)} addresses>"

    def write(self, peer: str, reason: str) -> None:
        """Log a refusal, or leave it out.

        Args:
            peer: The address at the other end of the connection.
            reason: Why, without anything that was shown as a key.
        """
        now = self._clock.now()
        if now - self._began >= KEY_LOG_WINDOW_S:
            self._began = now
            self._lines.clear()
        count = self._lines.get(peer, 0)
        if count >= MAX_KEY_LOG_LINES:
            return
        if peer in self._lines or len(self._lines) < MAX_THROTTLED_SOURCES:
            self._lines[peer] = count + 1
        last = count + 1 == MAX_KEY_LOG_LINES
        more = "; more from there are counted only, for an hour" if last else ""
        self._budget.write(
            logging.WARNING,
            "callers without a valid key",
            f"a caller from {peer or 'an unknown address'} was refused: {reason}{more}",
        )
