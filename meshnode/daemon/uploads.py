"""Model files on their way here from a client: staged on disk, piece by piece, until they are deployed.

    <data_dir>/uploads/<id>/<path>      as the client named it, below a folder of its own

A file grows from its start: a piece begins where the last one ended, so what has arrived is one
number per file, and a client that lost its connection asks for it and goes on. A piece that is here
already is taken for a repetition. Which names may come at all, `models.upload_paths` says; each file
is created before its first piece, so that a name that another one hides behind is found out.

Uploads live as long as the process, at most `UPLOAD_IDLE_S` without a piece, and no longer than the
key that began them. What a former process left is removed at the start.

Room. An upload begins only if all of it fits the disk, twice over: it is staged, then published.
What has arrived keeps its room, and `UPLOAD_ROOM_BYTES` beyond it. So uploads may be promised more
than there is; whichever comes to the end of the disk first is told so, and can go on later.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import secrets
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from meshnode.errors import (
    ConfigError,
    InvalidRequest,
    NotFound,
    Saturated,
    TooLarge,
    TransferFailed,
)
from meshnode.limits import (
    MAX_MODEL_FILE_BYTES,
    MAX_MODEL_FILES,
    MAX_UPLOADS,
    MAX_UPLOADS_PER_KEY,
    UPLOAD_IDLE_S,
    UPLOAD_PIECE_BYTES,
    UPLOAD_RESERVE_BYTES,
    UPLOAD_ROOM_BYTES,
    UPLOAD_SWEEP_S,
)
from meshnode.models.repository.upload_paths import check_upload_paths
from meshnode.trust.records import rfc3339
from meshnode.types import Scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from pathlib import Path

    from meshnode.clock import Clock
    from meshnode.gateway.protocols.caller import Caller
    from meshnode.types import Buffer

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_COPIES = 2  # the staged file, and the published one that is made of it before it goes


@dataclass
class _File:
    path: str
    size_bytes: int
    received_bytes: int = 0


@dataclass
class _Upload:
    id: str
    owner: str  # id of the key that began it; empty for the owner of the node
    folder: Path
    place: str  # of the model within the folder
    files: list[_File]
    used_at: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def received_bytes(self) -> int:
        return sum(file.received_bytes for file in self.files)

    @property
    def outstanding_bytes(self) -> int:
        """What it will still take of the disk."""
        return _COPIES * self.size_bytes - self.received_bytes

    @property
    def reserved_bytes(self) -> int:
        """What of that is kept for it: the copy of what is here, and room for the next pieces."""
        received = self.received_bytes
        coming = min(self.size_bytes - received, UPLOAD_ROOM_BYTES)
        return _COPIES * (received + coming) - received


class Uploads:
    """The uploads of one node."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        free_bytes: Callable[[Path], int] | None = None,
        is_key_valid: Callable[[str], bool] = lambda _: True,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Stage below a folder of the data folder, which is made when it is needed.

        Args:
            folder: Belongs to this object alone.
            clock: For what expires, and when.
            free_bytes: How much room the disk of a folder has; asks the system by default.
            is_key_valid: Whether the key of an id still opens anything.
            random_bytes: Draws so many bytes that nobody can guess, for the uploads' ids.
        """
        self._random_bytes = random_bytes
        self._folder = folder
        self._clock = clock
        self._free_bytes = free_bytes or _free_bytes
        self._is_key_valid = is_key_valid
        self._uploads: dict[str, _Upload] = {}
        self._working: set[asyncio.Future[Any]] = set()
        self._beginning = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Uploads in {self._folder}: {len(self._uploads)}>"

    @property
    def count(self) -> int:
        """Uploads that have begun and not ended."""
        return len(self._uploads)

    @property
    def staged_bytes(self) -> int:
        """What has arrived of them."""
        return sum(upload.received_bytes for upload in self._uploads.values())

    def sweep(self) -> None:
        """Remove what a former process left; blocks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def expire_regularly(self) -> None:
        """Forget idle uploads, for ever."""
        while True:
            await asyncio.sleep(UPLOAD_SWEEP_S)
            await self.expire()

    def keys_changed(self) -> None:
        """Forget the uploads whose keys were revoked; returns at once."""
        gone = [each for each in self._uploads.values() if not self._is_owner_there(each)]
        for upload in gone:
            del self._uploads[upload.id]  # from now on nobody can add to it
            log.info("an upload is forgotten: its key %s is valid no more", upload.owner)
            self._go_on_with(self._remove(upload))

    async def expire(self) -> None:
        """Forget the uploads that had no piece for so long, or whose key expired."""
        self.keys_changed()
        before = self._clock.now() - UPLOAD_IDLE_S
        for upload in tuple(self._uploads.values()):
            if upload.used_at <= before and not upload.lock.locked():
                log.info("an upload was idle for %.0f s and is forgotten", UPLOAD_IDLE_S)
                await self._forget(upload)

    async def begin(self, files: Sequence[tuple[str, int]], caller: Caller) -> dict[str, Any]:
        """Make room for files, each a path and its size in bytes; describe the upload.

        Raises:
            InvalidRequest: if a name breaks a rule, or they are not one model.
            TooLarge: if there are too many files or bytes for this node's disk.
            Saturated: if too many uploads are under way, or too many of this caller.
            ConfigError: if the data folder cannot be written.
        """
        if not 0 < len(files) <= MAX_MODEL_FILES:
            raise TooLarge(f"an upload has 1 to {MAX_MODEL_FILES} files, not {len(files)}")
        for path, size_bytes in files:
            if not 0 <= size_bytes <= MAX_MODEL_FILE_BYTES:
                raise TooLarge(f"{path[:200]!r} has more than {MAX_MODEL_FILE_BYTES} bytes")
        place = check_upload_paths([path for path, _ in files])
        return await self._to_its_end(self._begin(files, place, caller))

    async def _begin(
        self, files: Sequence[tuple[str, int]], place: str, caller: Caller
    ) -> dict[str, Any]:
        async with self._beginning:  # one after the other, so that each sees the others' room
            await self.expire()
            if len(self._uploads) >= MAX_UPLOADS:
                raise Saturated(
                    f"{MAX_UPLOADS} uploads to this node are under way; try again later"
                )
            own = sum(each.owner == caller.key_id for each in self._uploads.values())
            if own >= MAX_UPLOADS_PER_KEY:
                raise Saturated(
                    f"{own} uploads of this caller to this node are under way; end one first, or "
                    "try again later"
                )
            upload_id = self._random_bytes(16).hex()
            upload = _Upload(
                upload_id,
                caller.key_id,
                self._folder / upload_id,
                place,
                [_File(path, size_bytes) for path, size_bytes in files],
                self._clock.now(),
            )
            await self._require_room(upload)
            try:
                await asyncio.to_thread(_create, upload)
            except BaseException:
                await asyncio.to_thread(shutil.rmtree, upload.folder, ignore_errors=True)
                raise
            self._uploads[upload_id] = upload
        return self._view(upload)

    def all(self) -> list[dict[str, Any]]:
        """Describe all uploads without their files, the oldest first."""
        return [
            {
                **self._view(upload),
                "key_id": upload.owner,
                "size_bytes": upload.size_bytes,
                "received_bytes": upload.received_bytes,
            }
            for upload in self._uploads.values()
        ]

    def view(self, upload_id: str, caller: Caller) -> dict[str, Any]:
        """Describe an upload with its files.

        Raises:
            NotFound: if the caller has none of this id.
        """
        upload = self._of(upload_id, caller)
        files = [
            {
                "path": file.path,
                "size_bytes": file.size_bytes,
                "received_bytes": file.received_bytes,
            }
            for file in upload.files
        ]
        return {**self._view(upload), "files": files}

    async def take(
        self, upload_id: str, index: int, offset: int, data: Buffer, caller: Caller
    ) -> int:
        """Append a piece to a file; return how many bytes of it are here.

        Raises:
            NotFound: if the caller has no upload of this id.
            InvalidRequest: if it has no such file, or the piece does not continue it.
            TransferFailed: if it cannot be written; nothing of it counts.
        """
        upload = self._of(upload_id, caller)
        return await self._to_its_end(self._take(upload, index, offset, data, caller))

    async def drop(self, upload_id: str, caller: Caller) -> None:
        """Forget an upload and its files; an admin may, whoever began it.

        Raises:
            NotFound: if the caller has none of this id.
        """
        upload = self._uploads.get(upload_id)
        if upload is None or not caller.scope.allows(Scope.ADMIN):
            upload = self._of(upload_id, caller)
        async with upload.lock:
            await self._forget(upload)

    @contextlib.asynccontextmanager
    async def complete(self, upload_id: str, caller: Caller) -> AsyncIterator[Path]:
        """Give out where a complete upload's model lies; the upload is gone after the block.

        If the block raises, the upload stays.

        Raises:
            NotFound: if the caller has none of this id.
            InvalidRequest: if it is not complete; the message says what lacks.
        """
        upload = self._of(upload_id, caller)
        async with upload.lock:
            upload = self._of(upload_id, caller)  # it may have gone meanwhile
            for index, file in enumerate(upload.files):
                lacking = file.size_bytes - file.received_bytes
                if lacking:
                    raise InvalidRequest(
                        f"the upload is not complete: file {index}, {file.path!r}, lacks {lacking} of "
                        f"{file.size_bytes} bytes"
                    )
            upload.used_at = self._clock.now()
            yield upload.folder / upload.place
            await self._forget(upload)

    # Inside

    def _of(self, upload_id: str, caller: Caller) -> _Upload:
        """Return an upload of this caller; another one's is none."""
        upload = self._uploads.get(upload_id)
        if upload is None or (caller.scope is not Scope.OWNER and upload.owner != caller.key_id):
            raise NotFound(
                "there is no such upload; it may have expired, or the node was started again: "
                "begin anew"
            )
        return upload

    async def _take(
        self, upload: _Upload, index: int, offset: int, data: Buffer, caller: Caller
    ) -> int:
        async with upload.lock:
            self._of(upload.id, caller)  # it may have gone meanwhile
            if index >= len(upload.files):
                raise InvalidRequest(
                    f"the upload has {len(upload.files)} files, counted from 0; there is no {index}"
                )
            file = upload.files[index]
            end = offset + len(data)
            if end > file.size_bytes:
                raise InvalidRequest(
                    f"file {index} was announced with {file.size_bytes} bytes; this piece ends at {end}"
                )
            if end <= file.received_bytes:
                return file.received_bytes  # a repetition
            if offset != file.received_bytes:
                raise InvalidRequest(
                    f"of file {index} there are {file.received_bytes} bytes: the next piece begins "
                    f"at offset={file.received_bytes}, not {offset}"
                )
            await asyncio.to_thread(self._write, upload.folder / file.path, offset, data)
            file.received_bytes = end
            upload.used_at = self._clock.now()
            return end

    def _write(self, path: Path, offset: int, data: Buffer) -> None:
        room = self._free_bytes(path.parent) - UPLOAD_RESERVE_BYTES
        if len(data) > room:
            raise TransferFailed(
                f"the piece cannot be kept on this node: its disk has {max(0, room)} bytes free for "
                "uploads; free some space and go on, or use the gateway of another node"
            )
        _write(path, offset, data)

    def _is_owner_there(self, upload: _Upload) -> bool:
        return not upload.owner or self._is_key_valid(upload.owner)

    async def _to_its_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for work that a client which hangs up must not leave half done."""
        return await asyncio.shield(self._go_on_with(work))

    def _go_on_with(self, work: Coroutine[Any, Any, _T]) -> asyncio.Future[_T]:
        task = asyncio.ensure_future(work)
        self._working.add(task)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Future[Any]) -> None:
        self._working.discard(task)
        if not task.cancelled():
            task.exception()  # whoever still waits gets it; otherwise nobody has to

    async def _require_room(self, upload: _Upload) -> None:
        free = await asyncio.to_thread(self._free_bytes, self._folder)
        others = sum(each.reserved_bytes for each in self._uploads.values())
        room = max(0, free - others - UPLOAD_RESERVE_BYTES)
        if upload.outstanding_bytes > room:
            raise TooLarge(
                f"the upload needs {upload.outstanding_bytes} bytes of this node's disk (twice its size "
                f"while it is published), and {room} are free for it; use the gateway of another node, "
                "or free some space"
            )

    async def _forget(self, upload: _Upload) -> None:
        self._uploads.pop(upload.id, None)
        await asyncio.to_thread(shutil.rmtree, upload.folder, ignore_errors=True)

    async def _remove(self, upload: _Upload) -> None:
        async with upload.lock:  # a piece may be on its way to the disk
            await asyncio.to_thread(shutil.rmtree, upload.folder, ignore_errors=True)

    def _view(self, upload: _Upload) -> dict[str, Any]:
        left_s = UPLOAD_IDLE_S - (self._clock.now() - upload.used_at)
        return {
            "id": upload.id,
            "piece_bytes": UPLOAD_PIECE_BYTES,
            "expires_at": rfc3339(self._clock.wall_s() + left_s),
        }


def _free_bytes(folder: Path) -> int:
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return shutil.disk_usage(existing).free


def _create(upload: _Upload) -> None:
    for file in upload.files:
        path = upload.folder / file.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.open("xb").close()
        except FileExistsError as error:
            raise InvalidRequest(
                f"{file.path!r} is the same file as another one of the upload on this node's disk"
            ) from error
        except OSError as error:
            raise ConfigError(
                f"uploads cannot be kept in {upload.folder.parent}: {error.strerror or error}"
            ) from error


def _write(path: Path, offset: int, data: Buffer) -> None:
    try:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
    except OSError as error:
        what = "its disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise TransferFailed(f"the piece cannot be kept on this node: {what}") from error
