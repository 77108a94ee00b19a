"""Bringing models here and taking them away: what `LoadModel` and `UnloadModel` ask for.

A model's files are fetched from all nodes that have them, or are getting them
(`meshnode.daemon.fetching`), once there is room on the disk. Then they are laid out in a folder and
loaded.

Files that nothing wants any more are removed only while nothing is being published, whose files no
deployment names yet.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from meshnode.daemon.background import BackgroundTasks
from meshnode.daemon.disk_room import DiskRoom
from meshnode.daemon.fetching import Fetcher
from meshnode.daemon.own_models import UNLOAD_GRACE_S, OwnModels
from meshnode.daemon.replica_log import ReplicaLog
from meshnode.daemon.replicas import ReplicaReports
from meshnode.errors import MeshError
from meshnode.limits import CACHE_SWEEP_S
from meshnode.models.artifacts.store import COLLECT_AGE_S
from meshnode.models.repository.publish import hashed, publish
from meshnode.models.runtimes.registry import runtime_named
from meshnode.models.variables import without_variables
from meshnode.node_events import FilesHere, ReplicaChanged, ReplicaGone
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from meshnode.advertisement import FetchProgress
    from meshnode.effects import LoadModel
    from meshnode.events import Event
    from meshnode.models.artifacts.store import BlobStore
    from meshnode.models.baking.folder import BakedFolder
    from meshnode.models.manifest import Manifest
    from meshnode.models.repository.scanning import FoundModel
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.serving.server import ModelServer
    from meshnode.net.peers import PeerClient

log = logging.getLogger(__name__)


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
        runtimes: Mapping[str, Runtime],
        name_of: Callable[[NodeId], str],
        me: NodeId,
        why_too_large: Callable[[], str] = lambda: "",
        max_disk: float | None = None,
    ) -> None:
        """Work with these, on the running loop.

        Args:
            store: Where files are kept.
            models: What loads and runs them.
            peers: Where missing files come from.
            linked: Peers that may be asked when the named holders do not have a file.
            tell: Takes `ReplicaChanged` and `ReplicaGone`.
            keep: Every manifest whose files must stay on disk.
            runtimes: What opens models, by name.
            name_of: A node's name, for messages.
            me: This node.
            why_too_large: Says after a load why the model must go again; empty if it may stay.
            max_disk: What files may take of the disk: bytes, or a share up to 1; None without a limit.
        """
        self._store = store
        self._models = models
        self._log = ReplicaLog(tell)
        self._tell = tell = self._log
        self._keep = keep
        self._runtimes = runtimes
        self._replicas = ReplicaReports(models, tell, why_too_large)
        self.own = OwnModels(models, self._replicas, runtimes, tell)
        self._fetcher = Fetcher(store, peers, me, linked, name_of)
        self._room = DiskRoom(store, max_disk)
        self._publishing = asyncio.Lock()
        self._tasks = BackgroundTasks(log, "loading or unloading a model failed")
        self._mending: set[bytes] = set()
        self._files_told: frozenset[str] = frozenset()
        loop = asyncio.get_running_loop()
        store.files.on_damaged = lambda sha256: loop.call_soon_threadsafe(self.damaged, sha256)

    def load(self, effect: LoadModel, manifest: Manifest) -> None:
        """Begin to fetch and load a deployed model."""
        self._log.changed(manifest, ReplicaState.FETCHING)
        self._tasks.start(self._load(manifest, effect))

    def offer(self, manifest: Manifest) -> None:
        """Offer a model that is here as its manifest says now."""
        self._replicas.offer(manifest)

    def damaged(self, sha256: bytes) -> None:
        """Begin to fetch a file again that was found damaged on this disk, if anything wants it."""
        wanted = {
            manifest.digest: manifest  # once, though it is both published and deployed
            for manifest in self._keep()
            if any(file.sha256 == sha256 for file in manifest.files)
        }
        if wanted and sha256 not in self._mending:
            self._mending.add(sha256)
            self._tasks.start(self._mend(sha256, [*wanted.values()]))

    def unload(self, manifest: Manifest) -> None:
        """Begin to take a model out of service."""
        self._tasks.start(self._unload(manifest))

    async def publish(self, model: FoundModel) -> list[Manifest]:
        """Describe a model on disk and keep its files, ready to be fetched by others.

        Raises:
            ModelError: if a version cannot be loaded; nothing is deployed then.
            ConfigError, TransferFailed: if the files cannot be kept.
        """
        # The caller deploys before anything else runs: nothing is collected in between.
        async with self._publishing:
            await self._make_room_for(model)
            return [
                await asyncio.to_thread(
                    publish,
                    self._store,
                    model,
                    version,
                    runtime_named(self._runtimes, version.runtime),
                )
                for version in model.versions
            ]

    async def obtain(self, manifest: Manifest) -> Path:
        """Have a version's files here, from other nodes if need be; return the folder that holds them.

        Nothing keeps them there that does not name them within `COLLECT_AGE_S`.

        Raises:
            TransferFailed: if they cannot be fetched, or the disk is full.
            ConfigError: if the data folder cannot be written.
        """
        async with self._publishing:
            coming = [*self._fetcher.manifests, manifest]
            what = f"version {manifest.version} of {manifest.model!r}"
            keep = [*self._keep(), *coming]
            await asyncio.to_thread(self._room.make, keep, what, coming=coming)
        await self._fetcher.fetch(manifest, (), ())
        return await asyncio.to_thread(self._store.materialise, manifest)

    def scratch(self) -> Path:
        """Make an empty folder on the disk of the models' files; its maker removes it. It blocks.

        Raises:
            ConfigError: if the data folder cannot be written.
        """
        return self._store.scratch()

    async def _make_room_for(self, model: FoundModel) -> None:
        copied = sum(file.size_bytes for version in model.versions for file in version.files)
        coming = self._fetcher.manifests
        keep, what = [*self._keep(), *coming], f"the model {model.name!r}"
        if not await asyncio.to_thread(self._room.has_room, keep, coming, copied):
            # Much of it may be here already, in other versions: that is seen once it is hashed.
            described = await asyncio.to_thread(self._described, model)
            keep, coming, copied = [*keep, *described], [*coming, *described], 0
        await asyncio.to_thread(self._room.make, keep, what, coming=coming, copied_bytes=copied)

    def _described(self, model: FoundModel) -> list[Manifest]:
        return [
            hashed(model, version, runtime_named(self._runtimes, version.runtime))
            for version in model.versions
        ]

    async def close(self) -> None:
        """Give up what is under way."""
        await self._tasks.close()

    async def tend(self) -> None:
        """Say at first which files are here; remove, now and then, what versions kept that are gone. Never returns."""
        await self._tell_files()
        while True:
            await asyncio.sleep(CACHE_SWEEP_S)
            await self.sweep_caches()

    async def sweep_caches(self) -> None:
        """Remove the caches of versions that nothing here refers to any more."""
        if not self.own.is_settled:
            return  # whose they are is not known yet
        keep = {each.digest for each in (*self._keep(), *self._fetcher.manifests)}
        gone = await asyncio.to_thread(self._store.caches.sweep, keep, COLLECT_AGE_S)
        if gone:
            log.info("the caches of %d versions that are gone were removed", len(gone))

    @property
    def is_fetching(self) -> bool:
        """Whether files are on their way."""
        return self._fetcher.is_busy

    def fetches(self) -> tuple[FetchProgress, ...]:
        """Say how far each fetch is that is under way."""
        return self._fetcher.progress()

    async def _load(self, manifest: Manifest, effect: LoadModel) -> None:
        try:
            async with (
                self._publishing
            ):  # what is made of a publication meanwhile has no manifest yet
                coming = [*self._fetcher.manifests, manifest]
                keep = [*self._keep(), *coming]
                what = f"version {manifest.version} of {manifest.model!r}"
                await asyncio.to_thread(self._room.make, keep, what, coming=coming)
            await self.own.baked_is_known.wait()
            if self.own.baked is not None:
                await asyncio.to_thread(self._take_baked, self.own.baked, manifest)
            await self._fetcher.fetch(manifest, effect.holders, effect.companions)
            folder = await asyncio.to_thread(self._store.materialise, manifest)
            await self._replicas.bring_up(manifest, folder, deployed=True)
        except MeshError as error:
            self._report(manifest, ReplicaState.FAILED, str(error))
        except Exception as error:
            self._report(manifest, ReplicaState.FAILED, f"loading failed: {error!r}")
            raise
        await self._tell_files()

    def _take_baked(self, baked: BakedFolder, manifest: Manifest) -> None:
        """Copy those files of a version that lie in this node's own baked folder, so that they need not travel."""
        for entry in manifest.files:
            place = baked.file_of(entry)
            if place is not None and place.is_file() and not self._store.is_sound(entry.sha256):
                with suppress(MeshError):  # then it is fetched, which tells what is wrong
                    self._store.add_file(place)

    async def _mend(self, sha256: bytes, wanted: Sequence[Manifest]) -> None:
        try:
            for manifest in wanted:
                what = f"version {manifest.version} of {manifest.model}"
                log.warning("a file of %s is damaged on this disk and is fetched again", what)
                try:
                    await self._fetcher.fetch(manifest, (), ())
                    await asyncio.to_thread(self._store.materialise, manifest)
                except MeshError as error:
                    log.warning("%s: %s; publish it again from its source", what, error)
                else:
                    log.info("all files of %s are right again", what)
        finally:
            self._mending.discard(sha256)

    async def _unload(self, manifest: Manifest) -> None:
        await asyncio.sleep(UNLOAD_GRACE_S)
        await self._models.unload(manifest.model, manifest.version)
        self._tell(ReplicaGone(manifest.model, manifest.version))
        await asyncio.to_thread(self._store.touch, manifest)
        async with self._publishing:
            coming = self._fetcher.manifests
            await asyncio.to_thread(self._room.give_back, [*self._keep(), *coming], coming)
        await self._tell_files()
        await self.sweep_caches()

    async def _tell_files(self) -> None:
        """Say of which versions all files are here: where they are, placement spares the mesh a transfer."""
        keep = self._keep()
        here = await asyncio.to_thread(
            lambda: [
                manifest
                for manifest in keep
                if manifest.files and all(self._store.has(file.sha256) for file in manifest.files)
            ]
        )
        digests = frozenset(without_variables(each).digest for each in here)
        if digests != self._files_told:
            self._files_told = digests
            self._tell(FilesHere(digests))

    def _report(
        self, manifest: Manifest, state: ReplicaState, reason: str = "", *, deployed: bool = True
    ) -> None:
        self._tell(ReplicaChanged(manifest, state, reason, deployed=deployed))
