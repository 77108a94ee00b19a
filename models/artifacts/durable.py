"""Writing files so that they are whole or absent, whatever happens to the process or the machine.

What is to last is written under a temporary name, synced, renamed to its own name, and its folder
is synced: only then does a name stand for what was written.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final

from meshnode.errors import ConfigError, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshnode.types import Buffer

WRITE_BYTES: Final = 64 * 1024
"""Bytes of one write to a model file. Linux takes one block of memory for all of a write: in a virtual
machine whose host takes back large blocks that are free, each has to be got from the host again, and a
file written by the MiB took ten times as long as one written in pieces of 64 KiB."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Translate what the file system says while something is written below `folder`.

    Raises:
        TransferFailed: if the disk is full.
        ConfigError: if the folder cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise TransferFailed(
                f"the disk that holds {folder} is full: {error.strerror}"
            ) from None
        reason = error.strerror or str(error)
        raise ConfigError(f"the data folder {folder} cannot be written: {reason}") from None


def write_pieces(file: BinaryIO, data: Buffer) -> None:
    """Write data to a file, `WRITE_BYTES` at a time.

    Args:
        file: Its buffer, if it has one, is at most `WRITE_BYTES`: larger writes go past it.
        data: Contiguous bytes.
    """
    view = memoryview(data).cast("B")
    file.writelines(view[start : start + WRITE_BYTES] for start in range(0, len(view), WRITE_BYTES))


def sync(file: BinaryIO) -> None:
    """Bring what was written to a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename durable; Windows has no such call and needs none."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place(complete: Path, target: Path) -> None:
    """Give a synced file its name, durably; its folder is made."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(target.parent.parent)
    complete.replace(target)
    sync_folder(target.parent)


def write_whole(path: Path, data: bytes, temporary: Path) -> None:
    """Write a small file durably, by way of a temporary one in the same file system."""
    with temporary.open("wb") as file:
        file.write(data)
        sync(file)
    place(temporary, path)
