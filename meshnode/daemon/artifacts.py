"""Bringing models here and taking them away: what `LoadModel` and `UnloadModel` ask for.

A model's files are fetched from the nodes that have them, one after the other until each file is
whole and its SHA-256 right; what has arrived is kept, so the next holder continues where the last
one stopped. Then the files are laid out in a folder and loaded.

A file is fetched once at a time, also when several models share it. Files that nothing wants any more
are removed only while nothing is being published, whose files no deployment names yet.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING

from meshnode.errors import MeshError, TransferFailed
from meshnode.models.manifest import Manifest
from meshnode.models.publish import describe, publish
from meshnode.models.repository import FoundModel, scan
from meshnode.node import ReplicaChanged, ReplicaGone
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from pathlib import Path

    from meshnode.effects import LoadModel
    from meshnode.events import Event
    from meshnode.models.manifest import FileEntry
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.server import ModelServer
    from meshnode.models.store import BlobStore
    from meshnode.net.peers import PeerClient

log = logging.getLogger(__name__)

UNLOAD_GRACE_S = 1.0
"""Seconds in which a replica that is about to go still answers: gateways learn of it by gossip in
a fraction of that, and requests already on their way arrive."""


class Artifacts:
    """Carries out loads and unloads, and tells the node how they go."""

    def __init__(
        self,
        *,
        store: BlobStore,
        models: ModelServer,
        peers: PeerClient,
        linked: Callable[[], Iterable[NodeId]],
        tell: Callable[[Event], None],
        keep: Callable[[], list[Manifest]],
        runtime: Runtime,
        name_of: Callable[[NodeId], str],
        why_too_large: Callable[[], str] = lambda: "",
    ) -> None:
        """Work with these.

        Args:
            store: Where files are kept.
            models: What loads and runs them.
            peers: Where missing files come from.
            linked: Peers that may be asked when the named holders do not have a file.
            tell: Takes `ReplicaChanged` and `ReplicaGone`.
            keep: Every manifest whose files must stay on disk.
            runtime: What opens models.
            name_of: A node's name, for messages.
            why_too_large: Says after a load why the model must go again; empty if it may stay.
        """
        self._store = store
        self._models = models
        self._peers = peers
        self._linked = linked
        self._tell = tell
        self._keep = keep
        self._runtime = runtime
        self._name_of = name_of
        self._why_too_large = why_too_large
        # Weak: a lock lives as long as somebody fetches the file or waits for it.
        self._fetching: weakref.WeakValueDictionary[bytes, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )
        self._publishing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def load(self, effect: LoadModel, manifest: Manifest) -> None:
        """Begin to fetch and load a deployed model."""
        self._start(self._load(manifest, effect.holders))

    def unload(self, manifest: Manifest) -> None:
        """Begin to take a model out of service."""
        self._start(self._unload(manifest))

    async def load_folder(self, path: Path) -> None:
        """Load every model of this node's own repository folder and report each.

        Raises:
            ModelError: if the folder cannot be read or holds no model. A single bad model is
                reported as a failed replica and does not stop the others.
        """
        for model in await asyncio.to_thread(scan, path):
            for warning in model.warnings:
                log.warning("model %s: %s", model.name, warning)
            if model.error:
                self._report_unusable(model.name, 1, model.error)
            for version in model.versions:
                try:
                    manifest = await asyncio.to_thread(describe, model, version, self._runtime)
                except MeshError as error:
                    self._report_unusable(model.name, version.version, str(error))
                    continue
                await self._bring_up(manifest, version.folder, deployed=False)

    async def publish(self, model: FoundModel) -> list[Manifest]:
        """Describe a model on disk and keep its files, ready to be fetched by others.

        Raises:
            ModelError: if a version cannot be loaded; nothing is deployed then.
            ConfigError, TransferFailed: if the files cannot be kept.
        """
        # The caller deploys before anything else runs: nothing is collected in between.
        async with self._publishing:
            return [
                await asyncio.to_thread(publish, self._store, model, version, self._runtime)
                for version in model.versions
            ]

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _load(self, manifest: Manifest, holders: tuple[NodeId, ...]) -> None:
        try:
            for entry in manifest.files:
                await self._have(entry, holders)
            folder = await asyncio.to_thread(self._store.materialise, manifest)
            await self._bring_up(manifest, folder, deployed=True)
        except MeshError as error:
            self._report(manifest, ReplicaState.FAILED, str(error))
        except Exception as error:
            self._report(manifest, ReplicaState.FAILED, f"loading failed: {error!r}")
            raise

    async def _have(self, entry: FileEntry, holders: tuple[NodeId, ...]) -> None:
        lock = self._fetching.get(entry.sha256) or asyncio.Lock()
        self._fetching[entry.sha256] = lock
        async with lock:
            if not await asyncio.to_thread(self._store.has, entry.sha256):
                await self._fetch(entry, holders)

    async def _bring_up(self, manifest: Manifest, folder: Path, *, deployed: bool) -> None:
        self._report(manifest, ReplicaState.LOADING, deployed=deployed)
        status = await self._models.load(manifest, folder)
        if status.state is not ReplicaState.READY:
            self._report(manifest, ReplicaState.FAILED, status.reason, deployed=deployed)
            return
        too_large = self._why_too_large()
        if too_large:
            await self._models.unload(manifest.model, manifest.version)
            self._report(manifest, ReplicaState.FAILED, too_large, deployed=deployed)
            return
        report = self._models.load_report(manifest.model, manifest.version)
        self._tell(
            ReplicaChanged(
                manifest,
                ReplicaState.READY,
                slots=report.slots,
                service_ms=report.service_ms,
                deployed=deployed,
            )
        )

    async def _fetch(self, entry: FileEntry, holders: tuple[NodeId, ...]) -> None:
        others = [node for node in self._linked() if node not in holders]
        reasons: list[str] = []
        for node in (*holders, *others):
            try:
                writer = await asyncio.to_thread(
                    self._store.open_writer, entry.sha256, entry.size_bytes
                )
                with writer:
                    await self._peers.fetch_blob(node, entry.sha256, writer)
                    await asyncio.to_thread(writer.finish)
            except MeshError as error:
                reasons.append(f"{self._name_of(node)}: {error}")
                continue
            return
        raise TransferFailed("no node could send the model's files: " + "; ".join(reasons))

    async def _unload(self, manifest: Manifest) -> None:
        await asyncio.sleep(UNLOAD_GRACE_S)
        await self._models.unload(manifest.model, manifest.version)
        self._tell(ReplicaGone(manifest.model, manifest.version))
        async with self._publishing:
            await asyncio.to_thread(self._store.collect, self._keep())

    def _report(
        self, manifest: Manifest, state: ReplicaState, reason: str = "", *, deployed: bool = True
    ) -> None:
        self._tell(ReplicaChanged(manifest, state, reason, deployed=deployed))

    def _report_unusable(self, model: str, version: int, reason: str) -> None:
        log.error("model %s cannot be served: %s", model, reason)
        name = self._runtime.name
        manifest = Manifest(model, version, name, self._runtime.platform, (), (), 0, (), "")
        self._report(manifest, ReplicaState.FAILED, reason, deployed=False)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("loading or unloading a model failed", exc_info=error)
