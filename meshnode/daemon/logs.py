"""Where the daemon's log goes: stderr, and a rotated file of JSON lines in the data folder.

`set_up_logging` takes the root logger, so what libraries log (aiohttp, zeroconf: warnings and worse)
arrives too. Of what is attached to a record (`extra=...`) the fields of
`meshnode.log_fields` are kept.

Logging never stops the daemon. A file that cannot be written (a full disk, a missing permission) is
left alone for `LOG_RETRY_S`, is complained about once on stderr, and says itself, when it works again,
how many lines it lacks. Lines are written as they come, unbuffered: the last one before a crash is the
one that matters.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Final

from meshnode.daemon.log_format import format_json, format_text, timestamp
from meshnode.limits import LOG_RETRY_S, MAX_LOG_FILE_BYTES, MAX_LOG_FILES
from meshnode.log_fields import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TextIO

    from meshnode.options import LogFormat, LogLevel

LOG_FILE: Final = ("logs", "meshnode.log")
"""Where the log lies in a data folder."""

_OWN: Final = "meshnode"
_JOURNAL_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_LOG_MODE: Final = 0o600  # messages name peers, addresses and models


def set_up_logging(
    level: LogLevel,
    log_format: LogFormat,
    log_file: Path | None = None,
    *,
    stream: TextIO | None = None,
) -> LogSetup:
    """Send what is logged from now on to stderr, and to a file; replaces an earlier set-up.

    Args:
        level: The least severe messages of meshnode that are logged; libraries' begin at warning.
        log_format: What stderr shows; the file is always JSON lines.
        log_file: The file, or None until `LogSetup.write_to` names one.
        stream: Instead of stderr.
    """
    root = logging.getLogger()
    earlier = _current()
    if earlier is not None:
        root.removeHandler(earlier)
        earlier.close()
    own_level = getattr(logging, level.upper())
    handler = _Handler(stream or sys.stderr, as_json=log_format == "json")
    handler.setLevel(own_level)  # zeroconf sets its own logger's level, so the root's is not enough
    root.addHandler(handler)
    root.setLevel(max(own_level, logging.WARNING))
    logging.getLogger(_OWN).setLevel(own_level)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a peer's bad TLS is counted, not logged
    setup = LogSetup(handler)
    if log_file is not None:
        setup.write_to(log_file)
    return setup


def identify(*, node: str | None = None, mesh: str | None = None) -> None:
    """Put the node's name, or its mesh's id, into all further lines; nothing before a set-up."""
    handler = _current()
    if handler is not None:
        names = {"node": node, "mesh": mesh}
        handler.constant.update({key: name for key, name in names.items() if name})


def logged_lines() -> Mapping[str, int]:
    """Return how many lines were logged since the set-up, by level; `lost` of them not in the file."""
    handler = _current()
    return {} if handler is None else handler.counts()


def _current() -> _Handler | None:
    handlers = logging.getLogger().handlers
    return next((each for each in handlers if isinstance(each, _Handler)), None)


class LogSetup:
    """What became of `set_up_logging`."""

    def __init__(self, handler: _Handler) -> None:
        """Own the handler."""
        self._handler = handler

    def __repr__(self) -> str:
        return f"<LogSetup {self._handler!r}>"

    def write_to(self, log_file: Path) -> None:
        """Write JSON lines to this file as well, which is made if it is missing."""
        self._handler.write_to(log_file)

    def close(self) -> None:
        """Take no more lines."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


class _Handler(logging.Handler):
    """Makes a mapping of each record and writes it to both places."""

    def __init__(self, stream: TextIO, *, as_json: bool) -> None:
        super().__init__()
        self.constant: dict[str, str] = {}
        self._stream = stream
        self._as_json = as_json
        self._in_journal = not as_json and _is_journal(stream)
        self._file: LogFile | None = None
        self._lines: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<log to {self._file!r} and stderr>"

    def write_to(self, log_file: Path) -> None:
        with self.lock or contextlib.nullcontext():
            if self._file is not None:
                self._file.close()
            self._file = LogFile(log_file, self._complain)

    def counts(self) -> Mapping[str, int]:
        lost = self._file.lost if self._file is not None else 0
        return {**self._lines, "lost": lost}

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; called with the handler's lock held."""
        try:
            line = self._line(record)
            self._lines[str(line["level"])] += 1
            self._say(line)
            if self._file is not None:
                self._file.write(format_json(line), record.created)
        except Exception:  # noqa: BLE001 - as logging's own handlers: a bad line must not stop work
            self.handleError(record)

    def close(self) -> None:
        """Close the file; stderr is not ours to close."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _line(self, record: logging.LogRecord) -> dict[str, object]:
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **self.constant,
        }
        attached = record.__dict__
        for name in FIELDS:
            value = attached.get(name)
            if value is not None and value != "":
                line[name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line

    def _say(self, line: Mapping[str, object]) -> None:
        if self._as_json:
            text = format_json(line)
        elif self._in_journal:
            # The journal stamps lines itself, and reads their severity from this prefix (sd-daemon(3)).
            prefix = f"<{_JOURNAL_PRIORITY.get(str(line['level']), 6)}>"
            text = prefix + format_text(line, with_time=False).replace("\n", "\n" + prefix)
        else:
            text = format_text(line)
        with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it any more
            self._stream.write(text + "\n")
            self._stream.flush()

    def _complain(self, sentence: str, seconds: float) -> None:
        self._say(
            {
                "time": timestamp(seconds),
                "level": "error",
                "logger": __name__,
                "message": sentence,
                **self.constant,
            }
        )


class LogFile:
    """A file of lines that is put aside when it is full. Nothing that it does raises.

    Attributes:
        lost: Lines that could not be written.
    """

    def __init__(
        self,
        path: Path,
        complain: Callable[[str, float], None],
        max_bytes: int | None = None,
    ) -> None:
        """Append to the file, which is opened with the first line.

        Args:
            path: The file; its folder is made with it.
            complain: Told of each failure that begins, in a sentence, and when (Unix seconds).
            max_bytes: Its length before it is put aside; None for `MAX_LOG_FILE_BYTES`.
        """
        self.lost = 0
        self._max_bytes = max_bytes or MAX_LOG_FILE_BYTES
        self._path = path
        self._complain = complain
        self._descriptor: int | None = None
        self._size_bytes = 0
        self._torn = False
        self._failed_at: float | None = None
        self._lost_now = 0

    def __repr__(self) -> str:
        return f"<LogFile {self._path}>"

    def open(self) -> None:
        """Open the file before there is a line.

        Raises:
            OSError: if it cannot be opened.
        """
        if self._descriptor is None:
            self._open()

    def follow(self) -> None:
        """Begin a new file with the next line if somebody has renamed or removed this one."""
        if self._descriptor is None:
            return
        try:
            here, there = os.fstat(self._descriptor), self._path.stat()
        except OSError:
            self.close()
            return
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            self.close()

    def write(self, line: str, now: float, lines: int = 1) -> None:
        """Append a line, or several with line ends between them.

        Args:
            line: Without a line end at its end.
            now: When it was made, in Unix seconds.
            lines: How many it is.
        """
        if self._failed_at is not None and 0 <= now - self._failed_at < LOG_RETRY_S:
            self._lose(lines)
            return
        try:
            if self._lost_now:
                self._append(self._gap(now))
            self._append(line)
        except OSError as error:
            self._lose(lines)
            if self._failed_at is None:
                self._complain(
                    f"the log file {self._path} cannot be written ({error.strerror or error}); "
                    "free some space or mend its permissions; until then lines are shown here only",
                    now,
                )
            self._failed_at = now
            return
        self._failed_at = None
        self._lost_now = 0

    def close(self) -> None:
        """Close the file; another line opens it anew."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _lose(self, lines: int) -> None:
        self.lost += lines
        self._lost_now += lines

    def _gap(self, now: float) -> str:
        message = f"{self._lost_now} lines are missing here: the file could not be written"
        head = {"time": timestamp(now), "level": "warning", "logger": __name__}
        return format_json({**head, "message": message})

    def _append(self, line: str) -> None:
        data = line.encode() + b"\n"
        if self._descriptor is not None and self._size_bytes + len(data) > self._max_bytes:
            self._put_aside()
        descriptor = self._descriptor if self._descriptor is not None else self._open()
        if self._torn:  # the line before is not whole: begin a new one
            data = b"\n" + data
        left = memoryview(data)
        while left:
            self._torn = True
            written = os.write(descriptor, left)
            self._size_bytes += written
            left = left[written:]
        self._torn = False

    def _open(self) -> int:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self._path, flags, _LOG_MODE)
        self._descriptor = descriptor
        if hasattr(os, "fchmod"):
            os.fchmod(descriptor, _LOG_MODE)
        self._size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        if self._size_bytes:  # a crash or a full disk may have cut the last line
            os.lseek(descriptor, -1, os.SEEK_END)
            self._torn = os.read(descriptor, 1) != b"\n"
        return descriptor

    def _put_aside(self) -> None:
        """Rename the file and begin a new one; where it cannot be renamed, empty it."""
        self.close()
        try:
            for number in range(MAX_LOG_FILES - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    self._aside(number).replace(self._aside(number + 1))
            self._path.replace(self._aside(1))
        except FileNotFoundError:
            return  # somebody removed it
        except OSError:  # Windows: somebody reads it. Its size is bounded all the same.
            os.truncate(self._path, 0)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a library's arguments do not fit its message
        return str(record.msg)


def _is_journal(stream: TextIO) -> bool:
    """Whether systemd's journal reads this stream (systemd.exec(5), JOURNAL_STREAM)."""
    wanted = os.environ.get("JOURNAL_STREAM")
    if not wanted:
        return False
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return wanted == f"{found.st_dev}:{found.st_ino}"
