"""What a node keeps on disk: its identity, the mesh it belongs to, and the cores' state.

Layout of a data folder (mode 0700)::

    identity.key    32-byte Ed25519 seed, mode 0600
    mesh            which mesh this is, our admission chain, the root seed on the founder, mode 0600
    mesh.forgotten  the same of a mesh that is being forgotten; see `DataFolder.forget`
    successor       the key and the mesh file that are to replace the present ones; see `succeed`
    successor.due   the same, from when they are the present ones until they are in their places
    evicted         why this device is no member any more, as JSON; see `DataFolder.evict`
    mesh.evicted    what `mesh` was until then
    options         what its owner chose for this node, as JSON
    epoch           the last boot epoch that was used, as decimal text
    hardware.json   what was measured of this machine
    state/<key>     what cores asked to persist
    blobs/, models/ model files (meshnode.models.artifacts.store)
    uploads/        model files that are on their way in
    sources/        copies of models from buckets and web servers (meshnode.models.repository.source_copy)
    lock            held by the running daemon, with its process id inside
    control, control.sock   where the running daemon listens for its owner

Every write is atomic: a temporary file, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ConfigError, ProtocolError
from meshnode.folderlock import LOCK_NAME, FolderLock
from meshnode.limits import MAX_STATE_FILE_BYTES
from meshnode.membership import read_members
from meshnode.options import Chosen
from meshnode.trust.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

_EPOCH = re.compile(rb"[0-9]{1,18}")
_FORGOTTEN: Final = "mesh.forgotten"
_SUCCESSOR: Final = "successor"
_SUCCESSOR_DUE: Final = "successor.due"
_EVICTED: Final = "evicted"
_MESH_EVICTED: Final = "mesh.evicted"
_SECRETS: Final = ("identity.key", "mesh", _FORGOTTEN, _SUCCESSOR, _SUCCESSOR_DUE, _MESH_EVICTED)
"""Files with keys in them."""
_OF_THE_MESH: Final = ("state", "blobs", "models", "uploads")
"""Folders that belong to a membership; all else belongs to the device and outlives it."""


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


class Successor(msgspec.Struct, array_like=True, frozen=True):
    """What a device is after it has changed its key.

    Attributes:
        seed: Seed of the new identity.
        mesh: The mesh file with its admission.
    """

    seed: bytes
    mesh: MeshFile


class Evicted(msgspec.Struct, frozen=True):
    """Why a device belongs to no mesh any more.

    Attributes:
        mesh_id: The mesh that it was evicted from.
        why: Who decided it and why, as a sentence or clause; safe to print.
        at: When it learnt that, in RFC 3339.
    """

    mesh_id: str
    why: str
    at: str

    @property
    def sentence(self) -> str:
        """What its owner is told."""
        return (
            f"this device is no member of mesh {self.mesh_id} any more, as it learnt at {self.at}: "
            f"{self.why.rstrip('.')}. With a new invite it joins as a new node: meshnode join INVITE"
        )


class DataFolder:
    """A node's data folder. Opening it takes its lock; `close` gives it back.

    Raises:
        ConfigError: if the folder cannot be made, read or written, is in use by another daemon,
            or holds a file that is damaged. Nothing was changed then.
    """

    def __init__(
        self, path: Path, random_bytes: Callable[[int], bytes] = secrets.token_bytes
    ) -> None:
        """Create the folder where it is missing, and lock it.

        Args:
            path: Where it is.
            random_bytes: Draws so many bytes that nobody can guess, for the node's key.
        """
        self.path = path
        self._random_bytes = random_bytes
        with _explained(f"cannot use the data folder {path}", path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            (path / "state").mkdir(exist_ok=True, mode=0o700)
        try:
            self._lock: FolderLock | None = FolderLock(path)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise ConfigError(
                    f"the data folder {path} cannot be locked: {error.strerror or error}; name one on "
                    "a local disk with --data-dir"
                ) from None
            raise _config_error(f"cannot use the data folder {path}", path, error) from None
        try:
            for name in _SECRETS:
                _close_to_others(path / name)
            self._finish_succession()
            self._finish_forgetting()
            self._finish_eviction()
        except ConfigError:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<DataFolder {self.path}>"

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def identity(self) -> Identity:
        """Load this node's key, or make it on first start."""
        path = self.path / "identity.key"
        seed = _read(path)
        if seed is None:
            seed = self._random_bytes(32)
            self._write(path, seed)
        if len(seed) != 32:
            raise ConfigError(
                f"{path} is damaged (32 bytes expected, {len(seed)} found); restore it from a "
                "backup, or remove the folder and join again with a new invite"
            )
        return Identity(seed)

    def mesh(self) -> MeshFile | None:
        """Load the mesh this folder belongs to, or None if it belongs to none yet."""
        return read_mesh(self.path)

    def save_mesh(self, mesh: MeshFile) -> None:
        """Remember the mesh, before anything else happens in it."""
        self._write(self.path / "mesh", msgspec.msgpack.encode(mesh))

    def save_successor(self, successor: Successor) -> None:
        """Write down what this device is to become, beside what it is."""
        self._write(self.path / _SUCCESSOR, msgspec.msgpack.encode(successor))

    def successor(self) -> Successor | None:
        """Return what this device is to become, or None."""
        return _read_successor(self.path / _SUCCESSOR)

    def succeed(self) -> None:
        """Become what `save_successor` wrote down.

        One rename decides: before it this device is what it was, after it the other one. What is not in
        its place then, because the process died, the next opening puts there.

        Raises:
            ConfigError: if it could not be written.
        """
        with _explained(f"cannot replace the identity of {self.path}", self.path):
            (self.path / _SUCCESSOR).replace(self.path / _SUCCESSOR_DUE)
            sync_folder(self.path)
        self._finish_succession()

    def _finish_succession(self) -> None:
        due = self.path / _SUCCESSOR_DUE
        successor = _read_successor(due)
        if successor is None:
            return
        self._write(self.path / "identity.key", successor.seed)
        self.save_mesh(successor.mesh)
        with _explained(f"cannot replace the identity of {self.path}", self.path):
            due.unlink()
            sync_folder(self.path)

    def save_options(self, chosen: Chosen) -> None:
        """Remember what the owner chose, for the next start; see `kept_options`."""
        self._write(self.path / "options", chosen.to_json())

    def forget(self) -> None:
        """Leave the mesh for good: its admission, its state and its models go.

        The device keeps its identity, boot epoch, options, configuration, measurements and logs. One
        rename decides: before it the folder belongs to the mesh with all that it had, after it to
        none. What is not removed then, because the process died, the next opening removes.

        Raises:
            ConfigError: if something could not be removed.
        """
        with _explained(f"cannot forget the mesh of {self.path}", self.path):
            (self.path / "mesh").replace(self.path / _FORGOTTEN)
            sync_folder(self.path)
        self._finish_forgetting()

    def evict(self, evicted: Evicted) -> None:
        """Belong to no mesh any more, and remember why; all else stays until `start_anew`.

        Raises:
            ConfigError: if that cannot be written.
        """
        self._write(self.path / _EVICTED, msgspec.json.encode(evicted))
        self._finish_eviction()

    def _finish_eviction(self) -> None:
        if not (self.path / _EVICTED).exists() or not (self.path / "mesh").exists():
            return
        with _explained(f"cannot set the mesh of {self.path} aside", self.path):
            (self.path / "mesh").replace(self.path / _MESH_EVICTED)
            sync_folder(self.path)

    def evicted(self) -> Evicted | None:
        """Return why this device is no member any more, or None; see `read_evicted`."""
        return read_evicted(self.path)

    def start_anew(self) -> None:
        """Forget the mesh that evicted this device, and the identity that it had there.

        What is not removed because the process died, the next call removes: why it was evicted goes last.

        Raises:
            ConfigError: if something could not be removed.
        """
        with _explained(f"cannot remove what is left of a mesh in {self.path}", self.path):
            for name in _OF_THE_MESH:
                if (self.path / name).exists():
                    shutil.rmtree(self.path / name)
            (self.path / "state").mkdir(exist_ok=True, mode=0o700)
            for name in ("identity.key", _SUCCESSOR, _MESH_EVICTED, _EVICTED):
                (self.path / name).unlink(missing_ok=True)
            sync_folder(self.path)

    def _finish_forgetting(self) -> None:
        forgotten = self.path / _FORGOTTEN
        if not forgotten.exists():
            return
        with _explained(
            f"cannot remove what is left of a forgotten mesh in {self.path}", self.path
        ):
            for name in _OF_THE_MESH:
                folder = self.path / name
                if folder.exists():
                    shutil.rmtree(folder)
            (self.path / "state").mkdir(exist_ok=True, mode=0o700)
            if (self.path / _SUCCESSOR).exists():
                (self.path / _SUCCESSOR).unlink()
            forgotten.unlink()
            sync_folder(self.path)

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

    def hardware(self) -> bytes | None:
        """Return what was measured of this machine (`meshnode.hardware.speed`), or None."""
        return _read(self.path / "hardware.json")

    def save_hardware(self, data: bytes) -> None:
        """Keep what was measured of this machine."""
        self._write(self.path / "hardware.json", data)

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        with _explained(f"cannot write {path}", self.path):
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


def is_member(data_dir: Path) -> bool:
    """Whether a data folder belongs to a mesh; it need not exist, or be locked.

    Raises:
        ConfigError: if the folder is closed to this user.
    """
    with _explained(f"cannot read {data_dir}", data_dir):
        return (data_dir / "mesh").exists()


def read_evicted(data_dir: Path) -> Evicted | None:
    """Return why a device is no member any more, or None; the folder need not be locked.

    Raises:
        ConfigError: if the file is damaged or not readable.
    """
    path = data_dir / _EVICTED
    data = _read(path)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Evicted)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}); this device was evicted from its mesh: remove the folder, and "
            "join again with a new invite"
        ) from error


def read_mesh(data_dir: Path) -> MeshFile | None:
    """Return the mesh that a data folder belongs to, or None; the folder need not be locked.

    Raises:
        ConfigError: if the file is damaged or not readable.
    """
    path = data_dir / "mesh"
    data = _read(path)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=MeshFile)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); remove it and join again with a new invite"
        ) from error


def _read_successor(path: Path) -> Successor | None:
    data = _read(path)
    if data is None:
        return None
    try:
        return msgspec.msgpack.decode(data, type=Successor)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{path} is damaged ({error}); restore it from a backup, or remove the folder and join "
            "again with a new invite"
        ) from error


def is_alone(data_dir: Path) -> bool:
    """Whether a node is all that its mesh ever had; the folder need not be locked.

    One that was admitted by others is not; a founder is, until it has written down another member.

    Raises:
        ConfigError: if a file is damaged or not readable.
    """
    mesh = read_mesh(data_dir)
    if mesh is None or not mesh.root_seed:
        return False
    data = _read(data_dir / "state" / "members")
    try:
        return data is None or not read_members(data)
    except ProtocolError:  # somebody was written down there
        return False


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
    with _explained(f"cannot read {path}", path):
        try:
            if path.stat().st_size > MAX_STATE_FILE_BYTES:
                raise ConfigError(f"{path} is not a file of meshnode's: it is too large")
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _close_to_others(path: Path) -> None:
    """Take others' rights at a file with a secret in it away.

    Raises:
        ConfigError: if that is not possible.
    """
    if sys.platform == "win32":
        return
    try:
        mode = path.stat().st_mode
        if not mode & 0o077:
            return
        path.chmod(0o600)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(
            f"{path} holds a secret, can be read or written by other users of this machine, and cannot be "
            f"closed to them ({error.strerror}); make it yours with chown, and run chmod 600 {path}"
        ) from error
    log.warning(
        "%s could be read or written by other users of this machine (mode %o) and is closed to them now; if "
        "one of them may have read it, give this device another key: meshnode trust rotate",
        path, mode & 0o777,
    )  # fmt: skip


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What network file systems say that know no locks."""


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
def _explained(doing: str, place: Path) -> Iterator[None]:
    """Turn an OSError into a ConfigError that says what was tried, and what to do."""
    try:
        yield
    except OSError as error:
        raise _config_error(doing, place, error) from error


def _config_error(doing: str, place: Path, error: OSError) -> ConfigError:
    sentence = f"{doing}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ConfigError(f"{sentence}; free some space")
    if error.errno == errno.EROFS:
        return ConfigError(
            f"{sentence}; name a folder that can be written with --data-dir, or mount this one so"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError(f"{sentence}; {_whose(place)}")
    return ConfigError(sentence)


def _whose(place: Path) -> str:
    """Say to whom a place that is closed to this user belongs, and what to do about it."""
    for existing in (place, *place.parents):
        try:
            owner = existing.owner()
        except (OSError, KeyError, NotImplementedError):  # not there, or of nobody; or Windows
            continue
        # What is above a data folder may be the system's, and what is in a home somebody's own:
        # nothing to take over.
        is_ours = existing == place or _was_data_folder(existing)
        may_take = is_ours and not _is_in_home(existing, owner)
        make_it_yours = "make it yours with chown, or " if may_take else ""
        return f"{existing} belongs to user {owner}: {make_it_yours}name another folder with --data-dir"
    return "name another folder with --data-dir"


def _was_data_folder(place: Path) -> bool:
    """Whether a node has run on this folder; False where that cannot be seen."""
    try:
        return (place / LOCK_NAME).exists()
    except OSError:
        return False


def _is_in_home(place: Path, user: str) -> bool:
    """Whether a place is a user's home folder or lies in it."""
    try:
        return place.absolute().is_relative_to(Path(f"~{user}").expanduser())
    except RuntimeError:  # it has none
        return False
