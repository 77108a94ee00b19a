"""From what is wanted to what runs here: which versions of a model this node loads and unloads.

Every node computes the same placement from the same deployments and members, and looks after its
own part of it only. The rules, for each version of a model that is wanted or here:

==============================  ====================================  =============================
the deployment, and this node   state here                            what happens
==============================  ====================================  =============================
wants it, placed here           absent                                load
wants it, placed here           failed                                load again after a back-off
wants it, placed here           ready with other files                unload in its turn, then load
wants it, placed here           fetching, loading, unloading, ready   nothing
wants it, not placed here       ready                                 unload once handed over
wants it, not placed here       failed                                unload: forget it
wants other versions only       ready                                 unload once those are served
wants other versions only       failed                                unload: forget it
there is none                   ready, failed                         unload
any but "placed here"           fetching, loading, unloading          nothing
==============================  ====================================  =============================

What has begun finishes first: whoever fetches, loads or unloads reports how it ended, and the rules
look again. A load that nobody wants any more is unloaded then; a replica that is wanted again while
it unloads is loaded once it is gone.

*Handed over* (or *served*) means that every node of the placement is ready with the right files. A
gateway hears of one node's new replica and of another's old one in any order, so a replica is let
go only after that has held for `HANDOVER_S`: until then a gateway may know of no other.

*In its turn*: a deployment may be changed to other files under the same version. The placed nodes
then replace theirs one after the other, best-placed first, each once the one before it has been
ready for `HANDOVER_S`; if the new files fail on the first, all others keep the old ones.

A replica from the node's own folder (`--models`) is its owner's business and is never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from meshnode.models.manifest import Manifest

RETRY_FIRST_S: Final = 5.0
"""Seconds before a failed load is tried again: a disk may have been freed by then."""

RETRY_MAX_S: Final = 300.0
"""Seconds between tries at the longest: a broken model must not keep a node busy."""

HANDOVER_S: Final = 4.0
"""Seconds for which others must have served before a replica is let go: two comparisons of states
(`OwnerConfig.sync_interval_s`), after which hardly a gateway has missed that they do."""

_IDLE: Final = (ReplicaState.READY, ReplicaState.FAILED)
"""States in which nothing is under way. What is under way finishes first."""


@dataclass(slots=True)
class OwnReplica:
    """One of this node's replicas, as its driver last reported it."""

    manifest: Manifest
    state: ReplicaState
    deployed: bool
    reason: str = ""
    slots: int = 1
    service_ms: float = 0.0
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Compute the digest once: it is a hash over the manifest."""
        self.digest = self.manifest.digest


@dataclass(frozen=True, slots=True)
class Wanted:
    """One version that a deployment wants.

    Attributes:
        digest: Of its manifest.
        nodes: Where it is placed, best first.
        ready: The nodes that serve it now with exactly these files.
    """

    digest: str
    nodes: Sequence[NodeId]
    ready: Collection[NodeId]

    @property
    def served(self) -> bool:
        """Whether every node of the placement serves it, and there is one."""
        return bool(self.nodes) and all(node in self.ready for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one model now.

    Attributes:
        load: Versions to load.
        unload: Versions to unload.
        look_again_at: When a plan may differ although nothing happened (monotonic seconds), or None.
    """

    load: tuple[int, ...] = ()
    unload: tuple[int, ...] = ()
    look_again_at: float | None = None


@dataclass(slots=True)
class _Failure:
    count: int
    retry_at: float


class Reconciler:
    """Decides loads and unloads. Tell it of failures; ask for a plan whenever something changed."""

    def __init__(self, me: NodeId) -> None:
        """`me` is the node it decides for."""
        self._me = me
        # By model, version and digest; what is no longer wanted is dropped, so deployments bound it.
        self._failures: dict[str, dict[tuple[int, str], _Failure]] = {}
        # By model and version: since when it could be let go. Bounded by this node's replicas.
        self._free_since: dict[str, dict[int, float]] = {}

    def __repr__(self) -> str:
        failures = sum(len(each) for each in self._failures.values())
        return f"<Reconciler of {self._me[:8]}, {failures} failures remembered>"

    def failed(self, manifest: Manifest, digest: str, now: float) -> None:
        """Note that a load failed; it is tried again later and later, while it is wanted."""
        failures = self._failures.setdefault(manifest.model, {})
        failure = failures.setdefault((manifest.version, digest), _Failure(0, 0.0))
        failure.count += 1
        # The exponent is bounded: 2 to the 1,024th is no float.
        wait_s = RETRY_FIRST_S * 2.0 ** min(failure.count - 1, 16)
        failure.retry_at = now + min(RETRY_MAX_S, wait_s)

    def plan(
        self,
        model: str,
        wanted: Mapping[int, Wanted],
        own: Mapping[int, OwnReplica],
        now: float,
    ) -> Plan:
        """Return what to load and unload of one model now.

        Args:
            model: Its public name.
            wanted: The versions that its deployment wants; empty if there is none.
            own: This node's replicas of it, by version.
            now: Monotonic seconds.
        """
        self._forget(model, wanted, own)
        load: list[int] = []
        due: list[float] = []
        free: list[int] = []
        for version, target in wanted.items():
            if self._me not in target.nodes:
                continue
            retry_at = self._when_to_load(model, version, target, own.get(version))
            if retry_at is not None and retry_at <= now:
                load.append(version)
            elif retry_at is not None:
                due.append(retry_at)
        unload: list[int] = []
        for version, replica in own.items():
            if replica.deployed and replica.state in _IDLE and version not in load:
                if self._may_go_at_once(wanted.get(version), replica, bool(wanted)):
                    unload.append(version)
                elif self._is_free(version, replica, wanted):
                    free.append(version)
        ripe, ripe_at = self._ripen(model, free, now)
        due += ripe_at
        return Plan(tuple(load), (*unload, *ripe), min(due, default=None))

    def _when_to_load(
        self, model: str, version: int, target: Wanted, replica: OwnReplica | None
    ) -> float | None:
        """Return from when on a version that is placed here is to be loaded, or None for not now."""
        if replica is None:
            return float("-inf")
        if replica.state is not ReplicaState.FAILED or not replica.deployed:
            return None
        failure = self._failures.get(model, {}).get((version, target.digest))
        return failure.retry_at if failure is not None else float("-inf")

    def _may_go_at_once(
        self, target: Wanted | None, replica: OwnReplica, is_deployed: bool
    ) -> bool:
        """Whether nobody can miss a replica: none is wanted, or it failed and is not due here."""
        if replica.state is ReplicaState.FAILED:
            return target is None or self._me not in target.nodes
        return not is_deployed

    def _is_free(self, version: int, replica: OwnReplica, wanted: Mapping[int, Wanted]) -> bool:
        """Whether others serve instead of a ready replica, as things are now."""
        if replica.state is not ReplicaState.READY:
            return False
        target = wanted.get(version)
        if target is None:
            return all(each.served for each in wanted.values())
        if self._me not in target.nodes:
            return target.served
        if replica.digest == target.digest:
            return False
        before = target.nodes[: target.nodes.index(self._me)]
        return all(node in target.ready for node in before)

    def _ripen(self, model: str, free: list[int], now: float) -> tuple[list[int], list[float]]:
        """Return which of the free versions have been so for long enough, and when others will."""
        before = self._free_since.pop(model, {})
        since = {version: before.get(version, now) for version in free}
        ripe = [version for version in free if since[version] + HANDOVER_S <= now]
        waiting = {version: at for version, at in since.items() if version not in ripe}
        if waiting:
            self._free_since[model] = waiting
        return ripe, [at + HANDOVER_S for at in waiting.values()]

    def _forget(
        self, model: str, wanted: Mapping[int, Wanted], own: Mapping[int, OwnReplica]
    ) -> None:
        """Drop failures of what is no longer wanted, and of what has been loaded after all."""
        kept = {
            (version, digest): failure
            for (version, digest), failure in self._failures.pop(model, {}).items()
            if version in wanted
            and wanted[version].digest == digest
            and not _is_ready(own.get(version), digest)
        }
        if kept:
            self._failures[model] = kept


def _is_ready(replica: OwnReplica | None, digest: str) -> bool:
    return replica is not None and replica.state is ReplicaState.READY and replica.digest == digest
