"""The decision log (`--decision-log`): a line of JSON per recorded decision, from which it can be made again.

What is in a line, and which decisions are recorded, is `meshnode.routing.decisions`'s; how lines get to the disk is
`meshnode.daemon.line_log`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from meshnode.daemon.line_log import LineLog
from meshnode.daemon.log_format import timestamp
from meshnode.limits import MAX_DECISION_LOG_FILE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from meshnode.clock import Clock
    from meshnode.routing.decisions import Decision, Recorder


class DecisionLog:
    """Writes what a gateway's recorder keeps; owned by one event loop."""

    def __init__(self, path: Path, recorder: Recorder, clock: Clock) -> None:
        """Write every decision that is recorded from now on.

        Args:
            path: The file; it is opened at once.
            recorder: Of the gateway.
            clock: The node's.

        Raises:
            ConfigError: if the file cannot be opened.
        """
        self._clock = clock
        self._lines = LineLog("--decision-log", path, MAX_DECISION_LOG_FILE_BYTES, clock)
        recorder.on_decision = self._write

    def __repr__(self) -> str:
        return f"<DecisionLog {self._lines!r}>"

    async def close(self) -> None:
        """Write what waits, and close the file."""
        await self._lines.close()

    def _write(self, decision: Decision) -> None:
        dated = msgspec.structs.replace(decision, time=timestamp(self._clock.wall_s()))
        self._lines.add(msgspec.json.encode(dated))
