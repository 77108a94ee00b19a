"""What becomes of this node's replicas, told to its cores: loads, replacements, processes that end.

A model that is loaded while other files of its version serve replaces them once it is ready; until then, and
if it fails, the old ones are what the mesh is told of (`meshnode.reconcile`). Only where memory has no room
for both are the old ones gone before, which is told at once. A replica whose processes have all ended is
loading until one is back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.advertisement import ShownReplica
from meshnode.errors import MeshError
from meshnode.models.serving.profile import service_ms
from meshnode.node_events import ReplicaChanged
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.events import Event
    from meshnode.models.manifest import Manifest
    from meshnode.models.serving.server import ModelServer


@dataclass(frozen=True, slots=True)
class _Known:
    manifest: Manifest
    deployed: bool


class ReplicaReports:
    """Loads models and tells how they fare."""

    def __init__(
        self,
        models: ModelServer,
        tell: Callable[[Event], None],
        why_too_large: Callable[[], str] = lambda: "",
    ) -> None:
        """Listen to a model server.

        Args:
            models: What loads and serves.
            tell: Takes `ReplicaChanged`.
            why_too_large: Says after a load why the model must go again; empty if it may stay.
        """
        self._models = models
        self._tell = tell
        self._why_too_large = why_too_large
        # By model and version; both bounded by this node's replicas.
        self._coming: dict[tuple[str, int], _Known] = {}
        self._up: dict[tuple[str, int], _Known] = {}
        models.on_change = self._changed

    def __repr__(self) -> str:
        return f"<ReplicaReports {len(self._up)} up, {len(self._coming)} on their way>"

    async def bring_up(self, manifest: Manifest, folder: Path, *, deployed: bool) -> None:
        """Load a model from a folder and serve it, and tell each step.

        Args:
            manifest: What it is.
            folder: Its files.
            deployed: Whether a deployment wants it; else it lies in the node's own folder.
        """
        key = (manifest.model, manifest.version)
        self.report(manifest, ReplicaState.LOADING, deployed=deployed)
        self._coming[key] = _Known(manifest, deployed)
        try:
            status = await self._models.load(manifest, folder)
        finally:
            self._coming.pop(key, None)
        if status.state is ReplicaState.LOADING:  # it was here, and its processes have just ended
            self._up[key] = _Known(manifest, deployed)
            self.report(manifest, status.state, status.reason, deployed=deployed)
            return
        if status.state is not ReplicaState.READY:
            self._failed(manifest, status.reason, deployed=deployed)
            return
        too_large = self._why_too_large()
        if too_large:
            await self._models.unload(*key)
            self._failed(manifest, too_large, deployed=deployed)
            return
        self._up[key] = _Known(manifest, deployed)
        self._ready(self._up[key])

    def offer(self, manifest: Manifest) -> None:
        """Offer a model that is here otherwise, without loading it again."""
        key = (manifest.model, manifest.version)
        known = self._up.get(key)
        if known is not None and known.manifest.digest == manifest.digest:
            self._up[key] = _Known(manifest, known.deployed)
            self._models.offer(manifest)

    def report(
        self,
        manifest: Manifest,
        state: ReplicaState,
        reason: str = "",
        *,
        deployed: bool = True,
        replaces: bool = True,
    ) -> None:
        """Tell where a replica stands; see `ReplicaChanged`."""
        self._tell(ReplicaChanged(manifest, state, reason, deployed=deployed, replaces=replaces))

    def _failed(self, manifest: Manifest, reason: str, *, deployed: bool) -> None:
        serves = self._models.serves(manifest.model, manifest.version)
        self.report(manifest, ReplicaState.FAILED, reason, deployed=deployed, replaces=serves)

    def _ready(self, known: _Known) -> None:
        model, version = known.manifest.model, known.manifest.version
        try:
            report = self._models.load_report(model, version)
            details = self._models.details(model, version)
        except MeshError:
            return  # it went again meanwhile, which is told by whoever took it
        self._tell(
            ReplicaChanged(
                known.manifest,
                ReplicaState.READY,
                slots=report.slots,
                service_ms=service_ms(details.profile) or report.service_ms,
                deployed=known.deployed,
                profile=details.profile,
                shown=ShownReplica(
                    details.device, details.instances, details.batching, details.restarted
                ),
            )
        )

    def _changed(self, model: str, version: int, state: ReplicaState, reason: str) -> None:
        """Hear from the model server what nobody asked for."""
        key = (model, version)
        known, coming = self._up.get(key), self._coming.get(key)
        if state is ReplicaState.UNLOADING:
            self._up.pop(key, None)
            if coming is not None:  # the old files had to go first
                self.report(
                    coming.manifest,
                    ReplicaState.LOADING,
                    deployed=coming.deployed,
                    replaces=False,
                )
        elif known is not None and coming is None:
            if state is ReplicaState.LOADING:  # its processes have ended
                self.report(known.manifest, state, reason, deployed=known.deployed, replaces=False)
            elif state is ReplicaState.READY:
                self._ready(known)
