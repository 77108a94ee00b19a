"""Keeps the log of virtual daemons to itself: twenty would fill it. Defects in it are told to their loop.

A daemon that meets an exception which nobody foresaw answers with a 500, or goes on without the part that
raised it, and writes the exception to its log. In a rehearsal that is a finding.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from pathlib import Path
from typing import Final

from meshnode.sim.virtual.host import running_process
from meshnode.sim.virtual.loop_base import LoopBase

_LOG: Final = logging.getLogger("meshnode")


class LogWatch(logging.Handler):
    """Takes the place of whatever writes the daemons' log, from `begin` to `end`; several may overlap."""

    _watching = 0
    _before: tuple[int, list[logging.Handler], bool] = (logging.NOTSET, [], True)

    def __repr__(self) -> str:
        return f"<LogWatch, {LogWatch._watching} watching>"

    def begin(self) -> None:
        """Let nothing be written any more."""
        if LogWatch._watching == 0:
            LogWatch._before = (_LOG.level, _LOG.handlers, _LOG.propagate)
            _LOG.handlers = [self]
            _LOG.propagate = False
            _LOG.setLevel(logging.ERROR)
        LogWatch._watching += 1

    def end(self) -> None:
        """Let the log be written again, once no other mesh of daemons is there."""
        LogWatch._watching -= 1
        if LogWatch._watching == 0:
            level, _LOG.handlers, _LOG.propagate = LogWatch._before
            _LOG.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell the running loop of an exception that was written."""
        error = record.exc_info[1] if record.exc_info else None
        loop = asyncio._get_running_loop()
        process = running_process()
        if (
            error is not None
            and isinstance(loop, LoopBase)
            and process is not None
            and not process.dead
        ):
            loop.not_caught(process, record.getMessage(), error)


def told(error: BaseException) -> str:
    """Return an exception in a line: what it is, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return f"{type(error).__name__}: {error}"
    last = frames[-1]
    where = f"{last.name} ({Path(last.filename).name}:{last.lineno})"
    return f"{type(error).__name__}: {error}, in {where}"
