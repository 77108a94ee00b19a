"""What a model prints: lines for the log, limited in number and length."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Final

from meshnode.limits import (
    MAX_WORKER_LOG_LINE_LENGTH,
    WORKER_LOG_BURST_LINES,
    WORKER_LOG_LINES_PER_S,
)

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_READ_BYTES: Final = 65536
_BREATHER_S: Final = 0.01
"""Pause after each read of a model that prints more than the log takes: it then waits in `print`, and the
node has its processor for others."""


class Lines:
    """Cuts output into lines and decides which ones are logged; pure."""

    def __init__(self, now: float) -> None:
        """Begin with room for a burst; `now` is in monotonic seconds."""
        self._rest = b""
        self._skips = False
        self._room = float(WORKER_LOG_BURST_LINES)
        self._then = now
        self._left_out = 0

    def __repr__(self) -> str:
        return f"<Lines, {self._left_out} left out>"

    @property
    def is_flooded(self) -> bool:
        """Whether lines are being left out."""
        return self._left_out > 0

    def feed(self, data: bytes, now: float) -> list[str]:
        """Return the lines to log; an empty `data` is the end of the output."""
        elapsed_s = max(0.0, now - self._then)
        self._room = min(WORKER_LOG_BURST_LINES, self._room + elapsed_s * WORKER_LOG_LINES_PER_S)
        self._then = now
        *whole, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > MAX_WORKER_LOG_LINE_LENGTH:
            if self._rest:
                whole.append(self._rest)
            was_skipping, self._skips = self._skips, bool(data)
            self._rest = b""
            return self._kept(whole, skip_first=was_skipping)
        was_skipping = self._skips and bool(whole)
        self._skips = self._skips and not whole
        return self._kept(whole, skip_first=was_skipping)

    def _kept(self, lines: list[bytes], *, skip_first: bool) -> list[str]:
        kept = []
        for line in lines[1 if skip_first else 0 :]:  # the first is the rest of one that was cut
            if self._room < 1:
                self._left_out += 1
                continue
            if self._left_out:
                kept.append(f"({self._left_out} lines were left out here: it prints too fast)")
                self._left_out = 0
            self._room -= 1
            text = line[:MAX_WORKER_LOG_LINE_LENGTH].decode(errors="backslashreplace").rstrip()
            if text:
                kept.append(_printable(text))
        return kept


def _printable(text: str) -> str:
    return "".join(
        char if char.isprintable() or char == "\t" else f"\\x{ord(char):02x}" for char in text
    )


def follow(
    descriptor: int, model: str, version: int, tail: Callable[[str], None]
) -> threading.Thread:
    """Log what arrives on a pipe until its end, in a thread that then closes it.

    Args:
        descriptor: Reading end; owned by the thread.
        model: Whose output it is.
        version: Likewise.
        tail: Told of each line that is logged, in the thread.
    """

    def read() -> None:
        lines = Lines(time.monotonic())
        try:
            while True:
                data = os.read(descriptor, _READ_BYTES)
                for line in lines.feed(data, time.monotonic()):
                    tail(line)
                    log.info("%s", line, extra={"model": model, "version": version})
                if not data:
                    return
                if lines.is_flooded:
                    time.sleep(_BREATHER_S)
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=read, name=f"output of {model}", daemon=True)
    thread.start()
    return thread
