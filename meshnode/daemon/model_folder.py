"""A node's own models (`join --models`): loaded at the start, and followed while the folder changes.

What changes ask for, `meshnode.models.repository.folder_watch` decides; here the folder is looked at, the copy of a
bucket or web server brought up to date, and what was decided carried out, one after the other. A version that
takes long to unload (its requests end first) does so in the background. Files are served where they lie.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshnode.errors import MeshError
from meshnode.limits import SOURCE_POLL_S, UNLOAD_PATIENCE_S
from meshnode.models.repository.folder_watch import Changes, FolderWatch, Key
from meshnode.models.repository.local_archive import is_local_archive, unpacked
from meshnode.models.repository.scanning import FoundModel, FoundVersion, passed_over, scan
from meshnode.models.repository.server_models import SERVER_MODELS
from meshnode.models.repository.source_urls import is_url, shown
from meshnode.models.repository.version_files import is_passed_over

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from meshnode.daemon.own_models import OwnModels
    from meshnode.models.repository.sources import Source

log = logging.getLogger(__name__)


SOURCES_FOLDER: Final = "sources"
"""Folder of the data folder in which copies of buckets and web servers are kept."""


class _Look(NamedTuple):
    """What one look at the folder gave."""

    models: Mapping[Key, tuple[FoundModel, FoundVersion]]
    signatures: Mapping[Key, bytes]
    broken: Mapping[str, str]
    warnings: tuple[str, ...]


class ModelFolder:
    """Serves what lies at one place, for as long as `follow` runs."""

    def __init__(
        self,
        place: str,
        models: OwnModels,
        *,
        copies: Path,
        poll_s: float,
        now: Callable[[], float],
        server_models: str | None = None,
    ) -> None:
        """Follow a place.

        Args:
            place: Absolute path of a folder or of an archive, or a URL.
            models: Loads and unloads.
            copies: The folder where copies of buckets and web servers are kept.
            poll_s: Seconds between two looks; 0 for a single one.
            now: Monotonic seconds.
            server_models: Value of `SERVER_MODELS`; None if it is not set.
        """
        self._place = place
        self._models = models
        models.is_settled = False  # before the first look
        if not is_url(place):
            models.baked_is_known.clear()
        self._copies = copies
        self._poll_s = poll_s
        self._now = now
        self._server_models = server_models
        self._watch = FolderWatch()
        self._source: Source | None = None
        self._path: Path | None = None if is_url(place) else Path(place)
        self._baked_from: Path | None = None
        self._fetched_at = float("-inf")
        self._stamp = b""
        # Warnings, each logged once; bounded by what the folder has.
        self._told: dict[str, None] = {}
        self._trouble = ""
        self._is_empty = False
        # What is done with versions in the background; bounded by what the folder has.
        self._going: dict[Key, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"<ModelFolder {shown(self._place)}: {self._watch}>"

    async def follow(self) -> None:
        """Load what is there, then look again and again; returns only where that is not wanted."""
        try:
            await self._follow()
        finally:
            for task in self._going.values():
                task.cancel()

    async def _follow(self) -> None:
        while True:
            try:
                await self.look()
            except MeshError as error:
                self._log_trouble(str(error))
            else:
                if not self._is_empty:
                    self._trouble = ""
            if not self._poll_s:
                return
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """Look once, and carry out what that asks for.

        Raises:
            MeshError: if the place as a whole cannot be read; what serves goes on serving.
        """
        path = await self._prepared_path()
        stamp = await asyncio.to_thread(_stamp, path)
        if stamp == self._stamp and self._watch.is_settled:
            return
        look = await asyncio.to_thread(_look, path, self._server_models)
        self._stamp = stamp
        self._is_empty = not look.models and not look.broken
        if self._is_empty:
            self._log_trouble("it holds no model yet, such as DIR/digits/1/model.onnx")
        for warning in look.warnings:
            if warning not in self._told:
                self._told[warning] = None
                log.warning("%s", warning)
        serving = [key for key in look.signatures if self._models.serves(*key)]
        changes = self._watch.look(look.signatures, look.broken, serving)
        await self._carry_out(changes, look)
        self._models.is_settled = True

    async def _prepared_path(self) -> Path:
        """Return where the models lie, after reading what was compiled of them ahead of time."""
        try:
            path = await self._current_path()
            if path != self._baked_from:
                self._baked_from = path
                await asyncio.to_thread(self._models.read_baked, path)
        finally:
            self._models.baked_is_known.set()
        return path

    async def _current_path(self) -> Path:
        """Return where the models lie on this disk, after fetching what is new."""
        if self._path is not None and is_local_archive(Path(self._place)):
            return await asyncio.to_thread(unpacked, Path(self._place), self._copies)
        is_due = self._now() - self._fetched_at >= max(self._poll_s, SOURCE_POLL_S)
        if self._path is not None and (not is_url(self._place) or not is_due):
            return self._path
        if self._source is None:
            from meshnode.models.repository.sources import Source

            self._source = Source(self._place, self._copies, progress=_Progress(self._place))
        self._fetched_at = self._now()
        self._path = await asyncio.to_thread(self._source.refresh, may_be_old=True)
        for warning in self._source.warnings:
            log.warning("%s", warning)
        return self._path

    async def _carry_out(self, changes: Changes, look: _Look) -> None:
        for name in changes.mended:
            self._models.mended(name)
        for name in changes.broken:
            self._models.broken(name, look.broken[name])
        for key in changes.load:
            if key in self._going:
                self._go(key, self._models.load(*look.models[key]))
            else:
                await self._models.load(*look.models[key])
        for key in changes.unload:
            log.info("version %d of model %s is gone from %s", key[1], key[0], shown(self._place))
            self._go(key, self._models.unload(*key))
        if self._going:
            await asyncio.wait([*self._going.values()], timeout=UNLOAD_PATIENCE_S)

    def _go(self, key: Key, work: Coroutine[Any, Any, None]) -> None:
        """Do something with a version in the background, after what is still done with it."""
        task = asyncio.ensure_future(_after(self._going.get(key), work))
        self._going[key] = task
        task.add_done_callback(partial(self._gone, key))

    def _gone(self, key: Key, task: asyncio.Task[None]) -> None:
        if self._going.get(key) is task:
            del self._going[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("loading or unloading a model failed", exc_info=error)

    def _log_trouble(self, reason: str) -> None:
        if reason != self._trouble:  # not at each look
            self._trouble = reason
            log.error("the models of %s cannot be served: %s", shown(self._place), reason)


async def _after(earlier: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
    try:
        if earlier is not None:
            await asyncio.wait([earlier])
        await work
    finally:
        work.close()  # it never began if this was cancelled before


class _Progress:
    """Logs how far a fetch is, each tenth of the way."""

    def __init__(self, place: str) -> None:
        self._place = shown(place)
        self._tenth = 0

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        tenth = 10 * done_bytes // max(1, total_bytes)
        if tenth != self._tenth:
            self._tenth = tenth
            log.info("%s: %d of %d bytes fetched", self._place, done_bytes, total_bytes)


def server_models() -> str | None:
    """Return the value of `SERVER_MODELS` in this process's environment."""
    return os.environ.get(SERVER_MODELS)


def _stamp(path: Path) -> bytes:
    """Return a hash that changes when a file below a path appears, goes, or changes."""
    digest = hashlib.sha256()
    for entry in _entries(path):
        digest.update(repr(entry).encode())
    return digest.digest()


def _entries(path: Path) -> Iterator[tuple[str, int, int]]:
    if path.is_file():
        path = path.parent  # its external data and metadata lie beside it
    for parent, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        for name in sorted([*names, *folders]):
            place = Path(parent) / name
            try:
                status = place.stat()
            except OSError:
                continue
            is_file = name in names
            yield str(place), status.st_size if is_file else 0, status.st_mtime_ns if is_file else 0


def _look(path: Path, wanted: str | None) -> _Look:
    models: dict[Key, tuple[FoundModel, FoundVersion]] = {}
    broken: dict[str, str] = {}
    warnings: list[str] = []
    for model in scan(path, server_models=wanted, may_be_empty=True):
        warnings.extend(f"model {model.name}: {warning}" for warning in model.warnings)
        if model.error:
            broken[model.name] = model.error
        models |= {(model.name, each.version): (model, each) for each in model.versions}
    with suppress(OSError):  # it changes just now; the next look knows more
        warnings.extend(passed_over(path, wanted))
    signatures = {key: _signature(*found) for key, found in models.items()}
    return _Look(models, signatures, broken, tuple(warnings))


def _signature(model: FoundModel, version: FoundVersion) -> bytes:
    config = model.config
    told: list[object] = [
        version.runtime,
        version.entry,
        version.execution,
        version.provenance,
        str(version.folder),
        (config.inputs, config.outputs, config.max_batch_size) if config else None,
    ]
    for file in version.files:
        try:
            status = file.source.stat()
            told.append((file.path, status.st_size, status.st_mtime_ns, status.st_ino))
        except OSError:
            told.append((file.path, -1))  # it goes just now; the next look knows more
    return hashlib.sha256(msgspec.msgpack.encode(told)).digest()
