"""The access log (`--access-log`): a line of JSON per request, in a file that can be rotated, or on stdout.

How lines get there is `meshnode.daemon.line_log`'s. SIGHUP, the usual way to say that the file was put aside, is obeyed
where it does not mean that a terminal was closed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from meshnode.daemon.line_log import LineLog
from meshnode.daemon.log_format import timestamp
from meshnode.gateway.protocols.access_record import AccessRecord
from meshnode.limits import MAX_ACCESS_LOG_FILE_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from meshnode.clock import Clock

log = logging.getLogger(__name__)


class AccessLog:
    """Writes what the entrances of one node tell it; owned by one event loop."""

    def __init__(self, path: Path | None, clock: Clock, stream: TextIO | None = None) -> None:
        """Write to a file, which is opened at once, or to stdout.

        Args:
            path: The file; None for `stream`.
            clock: Times requests.
            stream: Instead of stdout.

        Raises:
            ConfigError: if the file cannot be opened.
        """
        self._clock = clock
        self._lines = LineLog("--access-log", path, MAX_ACCESS_LOG_FILE_BYTES, clock, stream)

    def __repr__(self) -> str:
        return f"<AccessLog {self._lines!r}>"

    @property
    def lost(self) -> int:
        """Lines that were lost because the disk did not keep up, or failed."""
        return self._lines.lost

    def begin(
        self, request_id: str, method: str, path: str, remote: str = "", user_agent: str = ""
    ) -> AccessRecord:
        """Return the record of a request that has just come."""
        record = AccessRecord(request_id, method, path, remote, user_agent)
        record.began = self._clock.now()
        return record

    def end(self, record: AccessRecord) -> None:
        """Write a record whose request has been answered, or given up; whatever happens, the answer is not held up."""
        took_s = self._clock.now() - record.began
        try:
            fields = record.fields(timestamp(self._clock.wall_s() - took_s), took_s)
            line = msgspec.json.encode(fields)
        except Exception:
            log.exception("a line of the access log could not be written")
            self._lines.lose()
            return
        self._lines.add(line)

    def reopen(self) -> bool:
        """Open the file anew with the next line: somebody has put it aside; False if there is no file."""
        return self._lines.reopen()

    async def close(self) -> None:
        """Write what waits, and close the file."""
        await self._lines.close()
