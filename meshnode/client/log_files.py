"""Reading a daemon's log: JSON lines in a file that is put aside when it is full.

`NAME` is the newest, `NAME.1` the one before it, and so on. A file that was put aside keeps its
identity on disk (device and inode), by which a reader that follows finds where it was.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import IO, TYPE_CHECKING, Any

from meshnode.limits import MAX_LOG_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Record = dict[str, Any]

_PIECE_BYTES = 1 << 20
_Identity = tuple[int, int]


class LogReader:
    """The log of one node, from its end on. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Read this file and those that were put aside; none needs to exist yet."""
        self._path = path
        self._file: IO[bytes] | None = None
        self._partial = b""

    def __repr__(self) -> str:
        return f"<LogReader {self._path}>"

    def __enter__(self) -> LogReader:  # noqa: PYI034 - not meant to be subclassed
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def exists(self) -> bool:
        """Whether there is a log at all."""
        return self._path.exists() or self._aside(1).exists()

    def last(self, count: int, wanted: Callable[[Record], bool]) -> list[Record]:
        """Return the last records that are wanted, oldest first; `new` goes on behind them.

        Args:
            count: At most so many.
            wanted: Which.
        """
        found: list[Record] = []
        seen: set[_Identity] = set()
        for number in itertools.count():
            # From the newest: what is put aside meanwhile is met a second time, and passed over.
            try:
                file = self._aside(number).open("rb")
            except FileNotFoundError:
                if number:
                    break
                continue
            identity = _identity(file)
            if identity in seen:
                file.close()
                continue
            seen.add(identity)
            lines = file.read(2 * MAX_LOG_FILE_BYTES).split(b"\n")
            if self._file is None and number == 0:
                self._file, self._partial = file, lines[-1]
            else:
                file.close()
            for line in reversed(lines[:-1]):
                if len(found) >= count:
                    break
                record = _record(line)
                if wanted(record):
                    found.append(record)
            if len(found) >= count:
                break
        return found[::-1]

    def new(self) -> Iterator[Record]:
        """Yield the records that were written since the last call, across files put aside."""
        if self._file is None and not self._open(self._path):
            return
        yield from self._rest()
        for path in self._newer():
            yield from self._rest()  # what was written between the look and the renaming
            if self._open(path):
                yield from self._rest()

    def _newer(self) -> list[Path]:
        """Return the files that follow the one that is read, oldest first."""
        assert self._file is not None
        mine, newer = _identity(self._file), []
        for number in itertools.count():
            path = self._aside(number)
            try:
                found = path.stat()
            except FileNotFoundError:
                if number:
                    break
                return []  # it is being put aside just now
            if (found.st_dev, found.st_ino) == mine:
                break
            newer.append(path)
        return newer[::-1]

    def _open(self, path: Path) -> bool:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        self.close()
        self._file, self._partial = file, b""
        return True

    def _rest(self) -> Iterator[Record]:
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # it was emptied instead of put aside
            self._partial = b""
        while piece := self._file.read(_PIECE_BYTES):
            *lines, self._partial = (self._partial + piece).split(b"\n")
            for line in lines:
                yield _record(line)

    def _aside(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


def _identity(file: IO[bytes]) -> _Identity:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def _record(line: bytes) -> Record:
    """Return a line as a record; one that a crash cut off, as its text."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"message": line.decode(errors="replace")}
