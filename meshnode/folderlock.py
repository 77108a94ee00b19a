"""Who runs on a data folder: the lock that a daemon holds, with its process id inside.

The operating system gives a lock back when its holder dies, so it alone tells whether a daemon
runs; the id in the file only names it, and is never believed while nobody holds the lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LOCK_NAME: Final = "lock"

LOCK_WAIT_S: Final = 0.5
"""How long a daemon tries for a lock that is held: whoever looks for its holder holds it for a moment."""

_RETRY_S = 0.02
_LOCKED_BYTE = 1 << 30  # far behind the text: on Windows nobody may read a byte that is locked
_TEXT = re.compile(rb"([0-9]{1,19})\n")
_TEXT_BYTES = 32  # more than any process id takes


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon that runs on a data folder.

    Attributes:
        pid: Its process id; None in the moment before it has written it.
    """

    pid: int | None

    def __str__(self) -> str:
        """Return it as part of a sentence."""
        return "a meshnode daemon" if self.pid is None else f"a meshnode daemon (pid {self.pid})"


class FolderLock:
    """The lock of one data folder, held until `release`, or until this process ends."""

    def __init__(self, data_dir: Path) -> None:
        """Take it, and write this process's id into it.

        Raises:
            ConfigError: if another daemon holds it; the message names that and says what to do.
            OSError: if the file cannot be made or written, or the file system knows no locks.
        """
        path = data_dir / LOCK_NAME
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _lock(self._descriptor, LOCK_WAIT_S):
                raise ConfigError(in_use(data_dir, Holder(_pid(self._descriptor))))
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, b"%d\n" % os.getpid())
        except BaseException:
            self.release()
            raise

    def __repr__(self) -> str:
        return f"<FolderLock {'free' if self._descriptor is None else 'held'}>"

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def holder(data_dir: Path) -> Holder | None:
    """Return who runs on a data folder, or None if nobody does.

    Raises:
        ConfigError: if that cannot be told, because the folder belongs to another user.
    """
    try:
        descriptor = os.open(data_dir / LOCK_NAME, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            f"{data_dir / LOCK_NAME} cannot be opened ({error.strerror}), so whether a daemon runs is "
            "not known; ask as the user who owns the folder"
        ) from None
    try:
        if _lock(descriptor, 0.0):
            return None
        return Holder(_pid(descriptor))
    finally:
        os.close(descriptor)


def in_use(data_dir: Path, running: Holder) -> str:
    """Return the sentence for whoever wants a folder on which a daemon runs."""
    return (
        f"another meshnode daemon is running on {data_dir}"
        + (f" (pid {running.pid})" if running.pid is not None else "")
        + "; see it with `meshnode status`, stop it with `meshnode stop`, or name another folder with "
        "--data-dir"
    )


def _pid(descriptor: int) -> int | None:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with contextlib.suppress(OSError):
        match = _TEXT.fullmatch(os.read(descriptor, _TEXT_BYTES))
        if match is not None:
            return int(match[1])
    return None


_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What flock and msvcrt.locking say about a lock that somebody holds."""


def _lock(descriptor: int, wait_s: float) -> bool:
    """Take the platform's advisory lock, which the kernel releases when the process dies."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            _try_lock(descriptor)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(_RETRY_S)
        else:
            return True


def _try_lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
