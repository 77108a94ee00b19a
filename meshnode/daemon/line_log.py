"""A file of lines that is written beside the work: nobody waits for the disk.

Lines are gathered for a moment and written in a thread, in order. Where the disk does not keep up, lines are lost
rather than memory; how many says a line where they are missing.

The file is put aside when it is full, as the node's own log is. Whoever rotates it otherwise just renames or removes it:
before each write is looked whether the name still leads to the open file, and if not, the name is opened anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import TYPE_CHECKING

import msgspec

from meshnode.daemon.log_format import timestamp
from meshnode.daemon.logs import LogFile
from meshnode.errors import ConfigError
from meshnode.limits import ACCESS_LOG_FLUSH_S, MAX_ACCESS_LOG_BUFFER_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from typing import TextIO

    from meshnode.clock import Clock

log = logging.getLogger(__name__)


class LineLog:
    """Lines on their way to a file or a stream; owned by one event loop.

    Attributes:
        lost: Lines that were lost because the disk did not keep up, or failed.
    """

    def __init__(
        self,
        option: str,
        path: Path | None,
        max_bytes: int,
        clock: Clock,
        stream: TextIO | None = None,
    ) -> None:
        """Write to a file, which is opened at once, or to stdout.

        Args:
            option: What names the file on the command line, for errors.
            path: The file; None for `stream`.
            max_bytes: Size at which the file is put aside.
            clock: Dates the lines that tell of lost ones.
            stream: Instead of stdout.

        Raises:
            ConfigError: if the file cannot be opened.
        """
        self._clock = clock
        self._file: LogFile | None = None
        self._stream = stream or sys.stdout
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._lost_now = 0
        self._flushing: asyncio.Task[None] | None = None
        self.lost = 0
        if path is not None:
            self._file = LogFile(path, _complain, max_bytes)
            try:
                self._file.open()
            except OSError as error:
                raise ConfigError(
                    f"{option}: {path} cannot be written ({error.strerror or error}); name a file in a "
                    "folder that this user may write to, or - for stdout"
                ) from error

    def __repr__(self) -> str:
        return f"<LineLog to {self._file or 'a stream'}: {len(self._waiting)} lines wait>"

    def add(self, line: bytes) -> None:
        """Write a line, which has no end of its own, within a moment."""
        if self._waiting_bytes + len(line) > MAX_ACCESS_LOG_BUFFER_BYTES:
            self.lose()
            return
        self._waiting.append(line)
        self._waiting_bytes += len(line)
        if self._flushing is None:
            self._flushing = asyncio.ensure_future(self._flush_soon())

    def lose(self) -> None:
        """Count a line that could not be made."""
        self.lost += 1
        self._lost_now += 1

    def reopen(self) -> bool:
        """Open the file anew with the next line: somebody has put it aside; False if there is no file."""
        if self._file is None:
            return False
        self._file.close()
        return True

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._flushing is not None:
            self._flushing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._flushing
        if self._waiting:
            self._write(*self._taken())
        if self._file is not None:
            self._file.close()

    async def _flush_soon(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await asyncio.sleep(ACCESS_LOG_FLUSH_S)
            while self._waiting:
                # Cancelling does not stop the thread: what it was given, it writes.
                await loop.run_in_executor(None, self._write, *self._taken())
        finally:
            self._flushing = None

    def _taken(self) -> tuple[list[bytes], int]:
        lines, lost = self._waiting, self._lost_now
        self._waiting, self._waiting_bytes, self._lost_now = [], 0, 0
        return lines, lost

    def _write(self, lines: list[bytes], lost: int) -> None:
        """Write lines; runs in a thread, one call at a time."""
        now = self._clock.wall_s()
        if lost:
            told = {"time": timestamp(now), "lost": lost, "message": "lines are missing here"}
            lines.append(msgspec.json.encode(told))
        text = b"\n".join(lines).decode()
        if self._file is None:
            with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it any more
                self._stream.write(text + "\n")
                self._stream.flush()
            return
        self._file.follow()
        before = self._file.lost
        self._file.write(text, now, lines=len(lines))
        self.lost += self._file.lost - before


def _complain(sentence: str, _seconds: float) -> None:
    log.error("%s", sentence)
