"""System shared memory: tensors that a program on this machine hands over by name instead of sending them.

A client makes a POSIX shared memory object, registers it (a region: a name, the object's key, an offset, a
size), and names the region in its requests. Data is copied out of the object when a request is read, and into it
when the answer is written: no model ever works on memory that somebody else can change, and a client that
shrinks its object meanwhile gets an error, where mapped memory would end the daemon.

What keeps others out:

- It is off unless the owner turns it on (`meshnode join --shared-memory`): whoever may ask this gateway could
  otherwise read and overwrite the shared memory of every program that runs as the daemon's user.
- Only callers on this machine may use it; who they are, the entrance says.
- A key is a plain name, below the system's folder for such objects; links are not followed, and only regular
  files that the daemon's user may open count.

Only Linux shows such objects as files that can be read and written; elsewhere it is refused.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from meshnode.errors import Forbidden, InvalidRequest, NotFound, Saturated
from meshnode.gateway.protocols.status import HttpRefusal
from meshnode.limits import (
    MAX_BODY_BYTES,
    MAX_SHARED_MEMORY_NAME_LENGTH,
    MAX_SHARED_MEMORY_OFFSET,
    MAX_SHARED_MEMORY_REGIONS,
)

if TYPE_CHECKING:
    from meshnode.types import Buffer

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where Linux has shared memory objects
_KEY: Final = re.compile(rf"/?[A-Za-z0-9_.\-+@:=,~]{{1,{MAX_SHARED_MEMORY_NAME_LENGTH}}}")
NOT_HERE: Final = (
    "shared memory is for programs on the gateway's own machine; send the tensors with the request"
)
"""Why a caller from elsewhere may not use it."""

OFF: Final = (
    "this node does not use its clients' shared memory; its owner can let programs on this machine use it: "
    "meshnode join --shared-memory"
)
"""Why nobody may where the owner has not turned it on."""


class Region(NamedTuple):
    """A registered region.

    Attributes:
        name: What requests call it.
        key: The object's name, as it was given.
        offset: Where in the object it begins, in bytes.
        size_bytes: Its length.
        file: The object's file descriptor, which the registry owns.
    """

    name: str
    key: str
    offset: int
    size_bytes: int
    file: int


class SharedMemory:
    """The regions that clients on this machine have registered. `close` ends it."""

    def __init__(
        self, *, is_on: bool, folder: Path = _FOLDER, platform: str = sys.platform
    ) -> None:
        """Begin with none.

        Args:
            is_on: Whether the owner allows it.
            folder: Where the system shows shared memory objects as files.
            platform: The system's name, as `sys.platform` has it.
        """
        self._is_on = is_on
        self._folder = folder
        self._is_possible = platform == "linux"
        self._regions: dict[str, Region] = {}

    def __repr__(self) -> str:
        return f"<SharedMemory {'on' if self._is_on else 'off'}: {len(self._regions)} regions>"

    @property
    def is_on(self) -> bool:
        """Whether clients on this machine may use it."""
        return self._is_on and self._is_possible

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Let requests name a part of a shared memory object.

        Args:
            name: What they will call it.
            key: The object's name, with or without a slash before it.
            offset: Where the part begins, in bytes.
            size_bytes: Its length.

        Raises:
            Forbidden: if the owner does not allow it.
            HttpRefusal: 501 if this system cannot do it.
            InvalidRequest: if the name is taken, or there is no such object, or it is smaller.
            Saturated: if too many are registered.
        """
        self._require_on()
        if not 0 < len(name) <= MAX_SHARED_MEMORY_NAME_LENGTH:
            raise InvalidRequest(
                f"a region's name has 1 to {MAX_SHARED_MEMORY_NAME_LENGTH} characters, not {len(name)}"
            )
        if name in self._regions:
            raise InvalidRequest(
                f"shared memory region {name!r} is registered already; unregister it first, or use another name"
            )
        if (
            not 0 <= offset <= MAX_SHARED_MEMORY_OFFSET
            or not 0 < size_bytes <= MAX_SHARED_MEMORY_OFFSET
        ):
            raise InvalidRequest(
                f"region {name!r}: the offset must be 0 or more bytes, and the size at least 1"
            )
        if len(self._regions) >= MAX_SHARED_MEMORY_REGIONS:
            raise Saturated(
                f"{MAX_SHARED_MEMORY_REGIONS} shared memory regions are registered already; unregister what is "
                "not used any more"
            )
        file = self._open(name, key)
        try:
            found_bytes = _size_of(file, key)
            if offset + size_bytes > found_bytes:
                raise InvalidRequest(
                    f"region {name!r} would end at byte {offset + size_bytes} of shared memory {key!r}, which has "
                    f"{found_bytes} bytes"
                )
        except BaseException:
            os.close(file)
            raise
        self._regions[name] = Region(name, key, offset, size_bytes, file)

    def unregister(self, name: str) -> None:
        """Forget a region, or all of them if the name is empty; an unknown one is forgotten already."""
        if not name:
            self.close()
            return
        region = self._regions.pop(name, None)
        if region is not None:
            os.close(region.file)

    def status(self, name: str = "") -> list[Region]:
        """Return a region, or all of them if the name is empty.

        Raises:
            NotFound: if there is no such region.
        """
        if not name:
            return list(self._regions.values())
        return [self._find(name)]

    def close(self) -> None:
        """Forget all regions."""
        while self._regions:
            _, region = self._regions.popitem()
            os.close(region.file)

    def read(self, name: str, offset: int, size_bytes: int) -> bytes:
        """Return a copy of a part of a region.

        Args:
            name: The region.
            offset: Where in it the part begins, in bytes.
            size_bytes: Its length.

        Raises:
            InvalidRequest: if the region is not registered, or the part not within it.
        """
        region = self._part(name, offset, size_bytes)
        try:
            found = os.pread(region.file, size_bytes, region.offset + offset)
        except OSError as error:
            raise InvalidRequest(
                f"shared memory region {name!r} cannot be read: {error.strerror}"
            ) from error
        if len(found) != size_bytes:
            raise InvalidRequest(
                f"the shared memory behind region {name!r} has become smaller than it was registered"
            )
        return found

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Copy bytes into a part of a region.

        Args:
            name: The region.
            offset: Where in it the part begins, in bytes.
            data: What to put there.

        Raises:
            InvalidRequest: as `read`.
        """
        size_bytes = memoryview(data).nbytes
        region = self._part(name, offset, size_bytes)
        # Writing beyond the end of an object that has shrunk would make it grow again.
        if region.offset + offset + size_bytes > os.fstat(region.file).st_size:
            raise InvalidRequest(
                f"the shared memory behind region {name!r} has become smaller than it was registered"
            )
        try:
            written = os.pwrite(region.file, data, region.offset + offset)
        except OSError as error:
            raise InvalidRequest(
                f"shared memory region {name!r} cannot be written: {error.strerror}"
            ) from error
        if written != size_bytes:
            raise InvalidRequest(f"shared memory region {name!r} took only {written} bytes")

    def _part(self, name: str, offset: int, size_bytes: int) -> Region:
        self._require_on()
        try:
            region = self._find(name)
        except NotFound as error:
            raise InvalidRequest(str(error)) from None
        if size_bytes > MAX_BODY_BYTES:
            raise InvalidRequest(
                f"a tensor has at most {MAX_BODY_BYTES} bytes, also in shared memory, not {size_bytes}"
            )
        if offset + size_bytes > region.size_bytes:
            raise InvalidRequest(
                f"bytes {offset} to {offset + size_bytes} are not within shared memory region {name!r}, which has "
                f"{region.size_bytes}"
            )
        return region

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            raise NotFound(f"no shared memory region {name[:100]!r} is registered at this gateway")
        return region

    def _require_on(self) -> None:
        if not self._is_on:
            raise Forbidden(OFF)
        if not self._is_possible:
            raise HttpRefusal(
                501,
                "shared memory of clients works on Linux only; send the tensors with the request",
            )

    def _open(self, name: str, key: str) -> int:
        if not _KEY.fullmatch(key) or key.strip("/").strip(".") == "":
            raise InvalidRequest(
                f"region {name!r}: {key[:100]!r} is not the key of a shared memory object: a name, "
                "perhaps with one slash before it"
            )
        flags = (
            os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
        try:
            return os.open(self._folder / key.lstrip("/"), flags)
        except OSError as error:
            _refuse_key(name, key, error)


def _refuse_key(name: str, key: str, error: OSError) -> NoReturn:
    raise InvalidRequest(
        f"region {name!r}: the shared memory object {key!r} cannot be opened by this node "
        f"({error.strerror}); create it before, as the same user, on the same machine"
    ) from error


def _size_of(file: int, key: str) -> int:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise InvalidRequest(f"{key!r} is not a shared memory object")
    return found.st_size
