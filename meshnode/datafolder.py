"""What a node keeps on disk: its identity, the mesh it belongs to, and the cores' state.

Layout of a data folder (mode 0700)::

    identity.key    32-byte Ed25519 seed, mode 0600
    mesh            which mesh this is, our admission chain, the root seed on the founder, mode 0600
    options         what its owner chose for this node, as JSON
    epoch           the last boot epoch that was used, as decimal text
    state/<key>     what cores asked to persist
    blobs/, models/ model files (meshnode.models.store)
    lock            held by the running daemon
    control, control.sock   where the running daemon listens for its owner

Every write is atomic: a temporary file, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import sys
from typing import IO, TYPE_CHECKING

import msgspec

from meshnode.errors import ConfigError
from meshnode.options import Chosen
from meshnode.trust.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_EPOCH = re.compile(rb"[0-9]{1,18}")
_MAX_STATE_BYTES = 64 * 1024 * 1024  # far more than MAX_MEMBERS records; a larger file is not ours


class MeshFile(msgspec.Struct, array_like=True, frozen=True):
    """Which mesh this data folder belongs to.

    Attributes:
        mesh_id: Fingerprint of the mesh's root key.
        chain: Our encoded admission chain.
        root_seed: Seed of the root key; only on the founder, else empty.
        seeds: Addresses of the invite that it joined with, as (host, port): where to look for
            the mesh when no known member answers.
    """

    mesh_id: str
    chain: bytes
    root_seed: bytes = b""
    seeds: tuple[tuple[str, int], ...] = ()


class DataFolder:
    """A node's data folder. Opening it takes its lock; `close` gives it back.

    Raises:
        ConfigError: if the folder cannot be made, read or written, is in use by another daemon,
            or holds a file that is damaged. Nothing was changed then.
    """

    def __init__(self, path: Path) -> None:
        """Create the folder where it is missing, and lock it."""
        self.path = path
        with _explained(f"cannot use the data folder {path}"):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (path / "state").mkdir(exist_ok=True, mode=0o700)
            self._lock: IO[bytes] | None = (path / "lock").open("ab")
        try:
            _lock_file(self._lock)
        except OSError as error:
            self._lock.close()
            if error.errno in _HELD_BY_ANOTHER:
                raise ConfigError(
                    f"another meshnode daemon is running on {path}; stop it, or name another "
                    "folder with --data-dir"
                ) from None
            raise ConfigError(
                f"the data folder {path} cannot be locked: {error.strerror or error}; name one on "
                "a local disk with --data-dir"
            ) from None

    def __repr__(self) -> str:
        return f"<DataFolder {self.path}>"

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def identity(self) -> Identity:
        """Load this node's key, or make it on first start."""
        path = self.path / "identity.key"
        seed = _read(path)
        if seed is None:
            seed = secrets.token_bytes(32)
            self._write(path, seed)
        if len(seed) != 32:
            raise ConfigError(
                f"{path} is damaged (32 bytes expected, {len(seed)} found); restore it from a "
                "backup, or remove the folder and join again with a new invite"
            )
        return Identity(seed)

    def mesh(self) -> MeshFile | None:
        """Load the mesh this folder belongs to, or None if it belongs to none yet."""
        path = self.path / "mesh"
        data = _read(path)
        if data is None:
            return None
        try:
            return msgspec.msgpack.decode(data, type=MeshFile)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{path} is damaged ({error}); remove it and join again with a new invite"
            ) from error

    def save_mesh(self, mesh: MeshFile) -> None:
        """Remember the mesh, before anything else happens in it."""
        self._write(self.path / "mesh", msgspec.msgpack.encode(mesh))

    def save_options(self, chosen: Chosen) -> None:
        """Remember what the owner chose, for the next start; see `kept_options`."""
        self._write(self.path / "options", chosen.to_json())

    def next_epoch(self, wall_s: float) -> int:
        """Return a boot epoch greater than all before, durable before it is used.

        It follows the wall clock, so that a folder restored from a backup does not fall behind
        what peers remember, and rises by one where the clock went backwards.
        """
        epoch = max(self._epoch() + 1, int(wall_s))
        self._write(self.path / "epoch", str(epoch).encode())
        return epoch

    def keep_epoch(self, epoch: int) -> None:
        """Remember an epoch that this node had to take while it ran, so that the next is greater."""
        if epoch > self._epoch():
            self._write(self.path / "epoch", str(epoch).encode())

    def _epoch(self) -> int:
        path = self.path / "epoch"
        data = _read(path)
        if data is None:
            return 0
        if not _EPOCH.fullmatch(data):
            raise ConfigError(
                f"{path} is damaged (a number expected); check that the clock is right, remove "
                "the file and start again"
            )
        return int(data)

    def state(self, key: str) -> bytes | None:
        """Return what was persisted under a key, or None."""
        return _read(self.path / "state" / key)

    def save_state(self, key: str, value: bytes) -> None:
        """Persist a core's state durably."""
        self._write(self.path / "state" / key, value)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        with _explained(f"cannot write {path}"):
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()  # gives a full disk its room back
                raise
            sync_folder(path.parent)


def kept_options(data_dir: Path) -> Chosen:
    """Return what a node's owner chose at earlier starts; the folder need not exist or be locked.

    Raises:
        ConfigError: if the file is damaged or not readable.
    """
    path = data_dir / "options"
    data = _read(path)
    if data is None:
        return Chosen()
    try:
        return Chosen.from_json(data)
    except ConfigError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); remove it and give the options of `meshnode join` again"
        ) from error


def _read(path: Path) -> bytes | None:
    with _explained(f"cannot read {path}"):
        try:
            if path.stat().st_size > _MAX_STATE_BYTES:
                raise ConfigError(f"{path} is not a file of meshnode's: it is too large")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
"""What flock and msvcrt.locking say about a lock that somebody holds."""


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; Windows has no such call and needs none."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn an OSError into a ConfigError that says what was tried."""
    try:
        yield
    except OSError as error:
        hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise ConfigError(f"{doing}: {error.strerror or error}{hint}") from error


def _lock_file(file: IO[bytes]) -> None:
    """Take the platform's advisory lock, which the kernel releases when the process dies."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
