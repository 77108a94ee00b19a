"""From what is wanted to what runs here: which models this node loads and unloads.

Every node computes the same placement from the same deployments and members, and looks after its
own part of it only. The rules, for each version of each deployment:

====================  ==========================================  ================================
this node is placed   state here                                  what happens
====================  ==========================================  ================================
yes                   absent                                      load
yes                   failed                                      load again after a back-off
yes                   fetching, loading, ready                    nothing
yes                   unloading                                   load, once it is gone
no                    ready, and every placed node is ready too   unload: the handover is complete
no                    ready, and a placed node is not ready yet   keep serving
no                    failed                                      unload: forget it
no deployment wants   any                                         unload
====================  ==========================================  ================================

A replica from the node's own folder (`--models`) is its owner's business and is never unloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.effects import Effect, LoadModel, UnloadModel
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshnode.models.manifest import Manifest
    from meshnode.routing.placement import Placement
    from meshnode.state.deployment import Deployment

RETRY_FIRST_S = 5.0
"""Seconds before a failed load is tried again: a disk may have been freed by then."""

RETRY_MAX_S = 300.0
"""Seconds between tries at the longest: a broken model must not keep a node busy."""


@dataclass(slots=True)
class OwnReplica:
    """One of this node's replicas, as its driver last reported it."""

    manifest: Manifest
    state: ReplicaState
    deployed: bool
    reason: str = ""
    slots: int = 1
    service_ms: float = 0.0


@dataclass(slots=True)
class _Failure:
    count: int
    retry_at: float


class Reconciler:
    """Decides loads and unloads. Feed it failures; ask it for effects whenever anything changed."""

    def __init__(self, me: NodeId) -> None:
        """`me` is the node it decides for."""
        self._me = me
        self._failures: dict[tuple[str, int, str], _Failure] = {}

    def __repr__(self) -> str:
        return f"<Reconciler of {self._me[:8]}, {len(self._failures)} failures remembered>"

    def failed(self, manifest: Manifest, now: float) -> float:
        """Note that a load failed; return when it may be tried again (monotonic seconds)."""
        key = (manifest.model, manifest.version, manifest.digest)
        failure = self._failures.setdefault(key, _Failure(0, 0.0))
        failure.count += 1
        failure.retry_at = now + min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** (failure.count - 1))
        return failure.retry_at

    def plan(
        self,
        deployments: Iterable[Deployment],
        placements: Mapping[str, Placement],
        own: Mapping[tuple[str, int], OwnReplica],
        ready: Mapping[tuple[str, int], frozenset[NodeId]],
        holders: Mapping[str, tuple[NodeId, ...]],
        now: float,
    ) -> list[Effect]:
        """Return what to load and unload now.

        Args:
            deployments: All deployments of the mesh.
            placements: Their placements, by name.
            own: This node's replicas by (model, version).
            ready: Nodes that serve each (model, version) now.
            holders: Nodes that have the files of a manifest's digest.
            now: Monotonic seconds.
        """
        effects: list[Effect] = []
        wanted: set[tuple[str, int]] = set()
        for deployment in deployments:
            placement = placements[deployment.name]
            newest_ready = all(
                _handed_over(placement, ready.get((m.model, m.version), frozenset()))
                for m in deployment.manifests
            )
            for manifest in deployment.manifests:
                key = (manifest.model, manifest.version)
                wanted.add(key)
                if self._me in placement.nodes:
                    effects += self._load(manifest, own.get(key), holders, now)
                else:
                    effects += _hand_over(
                        own.get(key), _handed_over(placement, ready.get(key, frozenset()))
                    )
            if not newest_ready:
                # Older versions keep serving until the new ones do.
                wanted |= {key for key in own if key[0] == deployment.name}
        for key, replica in own.items():
            if key not in wanted and replica.deployed and _unloadable(replica):
                effects.append(UnloadModel(*key))
        self._forget_failures(own, wanted)
        return effects

    def _load(
        self,
        manifest: Manifest,
        replica: OwnReplica | None,
        holders: Mapping[str, tuple[NodeId, ...]],
        now: float,
    ) -> list[Effect]:
        key = (manifest.model, manifest.version, manifest.digest)
        if replica is not None:
            if replica.state is not ReplicaState.FAILED or not replica.deployed:
                return _replace(replica, manifest)
            failure = self._failures.get(key)
            if failure is not None and now < failure.retry_at:
                return []
        digest = manifest.digest
        return [LoadModel(manifest.model, manifest.version, digest, holders.get(digest, ()))]

    def _forget_failures(
        self, own: Mapping[tuple[str, int], OwnReplica], wanted: set[tuple[str, int]]
    ) -> None:
        for key in [key for key in self._failures if key[:2] not in wanted]:
            del self._failures[key]
        for (model, version), replica in own.items():
            if replica.state is ReplicaState.READY:
                self._failures.pop((model, version, replica.manifest.digest), None)


def _handed_over(placement: Placement, ready: frozenset[NodeId]) -> bool:
    return bool(placement.nodes) and ready.issuperset(placement.nodes)


def _hand_over(replica: OwnReplica | None, complete: bool) -> list[Effect]:
    if replica is None or not replica.deployed or not _unloadable(replica):
        return []
    if complete or replica.state is ReplicaState.FAILED:
        return [UnloadModel(replica.manifest.model, replica.manifest.version)]
    return []


def _replace(replica: OwnReplica, manifest: Manifest) -> list[Effect]:
    """Unload a deployed replica whose files are no longer those of the deployment."""
    changed = replica.deployed and replica.manifest.digest != manifest.digest
    if changed and _unloadable(replica):
        return [UnloadModel(manifest.model, manifest.version)]
    return []


def _unloadable(replica: OwnReplica) -> bool:
    # What is being fetched or loaded finishes first; the next round sees the result.
    return replica.state in (ReplicaState.READY, ReplicaState.FAILED)
