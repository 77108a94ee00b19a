"""The models of a node's own folder: loaded where they lie, and told like all others."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshnode.errors import MeshError, ModelError
from meshnode.models.baking.folder import BakedFolder, is_baked
from meshnode.models.baking.machine import machine_here
from meshnode.models.manifest import Manifest
from meshnode.models.repository.config_backend import ONNX_RUNTIME
from meshnode.models.repository.publish import describe
from meshnode.models.runtimes.registry import runtime_named
from meshnode.node_events import ReplicaGone
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshnode.daemon.replicas import ReplicaReports
    from meshnode.events import Event
    from meshnode.models.repository.folder_watch import Key
    from meshnode.models.repository.scanning import FoundModel, FoundVersion
    from meshnode.models.runtimes.base import Runtime
    from meshnode.models.serving.server import ModelServer

log = logging.getLogger(__name__)

UNLOAD_GRACE_S: Final = 1.0
"""Seconds in which a replica that is about to go still answers: gateways learn of it by gossip in
a fraction of that, and requests already on their way arrive."""


class OwnModels:
    """Carries out what `meshnode.daemon.model_folder` asks for."""

    def __init__(
        self,
        models: ModelServer,
        replicas: ReplicaReports,
        runtimes: Mapping[str, Runtime],
        tell: Callable[[Event], None],
    ) -> None:
        """Work with these.

        Args:
            models: What loads and runs them.
            replicas: Tells how they fare.
            runtimes: What opens models, by name.
            tell: Takes `ReplicaGone`.

        Attributes:
            is_settled: Whether every version is told that the folder holds; true while no folder is followed.
            baked: What the folder holds that was compiled and measured ahead of time; None for nothing.
            baked_is_known: Clear only while a folder on this disk has not been looked at yet.
        """
        self.is_settled = True
        self.baked: BakedFolder | None = None
        self.baked_is_known = asyncio.Event()
        self.baked_is_known.set()
        self._models = models
        self._replicas = replicas
        self._runtimes = runtimes
        self._tell = tell
        # Both bounded by what the folder holds.
        self._told: dict[Key, Manifest] = {}  # replicas that others know of
        self._unreadable: set[str] = set()  # models that are told as a failed version 1
        self._found: dict[
            Key, tuple[FoundModel, FoundVersion]
        ] = {}  # as `load` was last given them
        self._held: set[str] = set()  # models that are not served until `release`

    def __repr__(self) -> str:
        return f"<OwnModels: {len(self._told)} versions>"

    def serves(self, model: str, version: int) -> bool:
        """Whether a version is ready here."""
        return self._models.serves(model, version)

    def read_baked(self, path: Path) -> None:
        """Use what a folder says was compiled and measured ahead of time, if it is baked; blocks.

        Versions that are deployed use it too, as far as they are the same.
        """
        if not is_baked(path):
            return
        try:
            baked = BakedFolder.read(path, machine_here(cores=self._models.cores))
        except ModelError as error:
            log.warning("%s", error)
            return
        for warning in baked.warnings:
            log.warning("%s", warning)
        self.baked = baked
        self._models.prepared = baked.prepared

    async def load(self, model: FoundModel, version: FoundVersion) -> None:
        """Load a version where it lies; what is wrong with it is told, not raised.

        Files of the same version that serve already go on until the new ones are ready, and if these fail.
        """
        key = (model.name, version.version)
        self._found[key] = (model, version)
        if model.name in self._held:
            return
        self.mended(model.name)
        try:
            runtime = runtime_named(self._runtimes, version.runtime)
            known = () if self.baked is None else (self.baked.manifest_of,)
            manifest = await asyncio.to_thread(describe, model, version, runtime, *known)
        except MeshError as error:
            self._failed(*key, version.runtime, str(error))
            return
        self._told[key] = manifest
        await self._replicas.bring_up(manifest, version.folder, deployed=False)

    async def unload(self, model: str, version: int) -> None:
        """Stop serving a version that is gone, once those who know of it had time to hear so."""
        self._found.pop((model, version), None)
        await self._unload(model, version)

    @property
    def held(self) -> tuple[Key, ...]:
        """Versions that the folder holds and that are not served because of `hold`, ascending."""
        return tuple(sorted(key for key in self._found if key[0] in self._held))

    async def hold(self, model: str) -> bool:
        """Serve a model of the folder no more until `release`; False if the folder has none of that name."""
        versions = [key for key in self._found if key[0] == model]
        if not versions:
            return False
        self._held.add(model)
        await asyncio.gather(*(self._unload(*key) for key in versions))
        return True

    async def release(self, model: str) -> int | None:
        """Serve a model of the folder again; return its newest version, None if the folder has none."""
        versions = sorted(key for key in self._found if key[0] == model)
        if not versions:
            return None
        if model in self._held:
            self._held.discard(model)
            for key in versions:
                await self.load(*self._found[key])
        return versions[-1][1]

    async def _unload(self, model: str, version: int) -> None:
        manifest = self._told.pop((model, version), None)
        if manifest is not None and self._models.serves(model, version):
            self._replicas.report(manifest, ReplicaState.UNLOADING, deployed=False, replaces=False)
            await asyncio.sleep(UNLOAD_GRACE_S)
        await self._models.unload(model, version)
        self._tell(ReplicaGone(model, version))

    def broken(self, model: str, reason: str) -> None:
        """Tell that a model cannot be read; versions of it that serve go on."""
        if any(name == model for name, _ in self._told):
            log.error("model %s cannot be read any more, and serves as before: %s", model, reason)
            return
        self._unreadable.add(model)
        self._failed(model, 1, ONNX_RUNTIME, reason)

    def mended(self, model: str) -> None:
        """Take back what `broken` told."""
        if model in self._unreadable:
            self._unreadable.discard(model)
            self._told.pop((model, 1), None)
            self._tell(ReplicaGone(model, 1))

    def _failed(self, model: str, version: int, runtime: str, reason: str) -> None:
        log.error("model %s cannot be served: %s", model, reason)
        manifest = Manifest(model, version, runtime, runtime, (), (), 0, (), "")
        serves = self._models.serves(model, version)
        if not serves:
            self._told[model, version] = manifest
        self._replicas.report(
            manifest, ReplicaState.FAILED, reason, deployed=False, replaces=serves
        )
