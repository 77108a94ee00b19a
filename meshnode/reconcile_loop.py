"""Keeps this node's replicas at what the deployments want: which models are looked at, and what is asked then.

A model is *stale* when anything changed that its plan (`meshnode.reconcile`) is made of: its deployment, its
placement, who serves it, or a replica of it here. Each stale model is planned anew: what is asked of the
driver is noted in this node's replicas and advertised, which may make models stale again, until none is. A
model that is not stale costs nothing, so a mesh of many deployments is no dearer than its changes. What
changes only with time (a retry, a handover) is one timer, for the earliest of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode import suitability
from meshnode.deployments import offered_otherwise
from meshnode.effects import Effect, LoadModel, OfferModel, StartTimer, UnloadModel
from meshnode.limits import MAX_FILE_SOURCES
from meshnode.loading_room import LoadingRoom
from meshnode.models.artifacts.transfer import companions
from meshnode.models.variables import without_variables
from meshnode.reconcile import OwnReplica, Reconciler, Wanted
from meshnode.state.artifact import artifact_key
from meshnode.state.deployment import KEY_PREFIX
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshnode.deployments import Deployments, Known, Target
    from meshnode.directory import Directory
    from meshnode.fleet import Fleet
    from meshnode.node_events import ReplicaChanged
    from meshnode.own_replicas import OwnReplicas
    from meshnode.request_links import RequestLinks
    from meshnode.state.desired import DesiredState

QUIET_START_S: Final = 3.0
"""Seconds after a start in which a node that has a mesh to rejoin loads nothing: links, records and
deployments arrive within one; without the pause it would fetch every model and drop it again."""


@dataclass(frozen=True, slots=True)
class ReconcileDue:
    """A timer: models may have to be looked at again (at this monotonic second)."""

    at: float


class ReconcileLoop:
    """The stale models, and when others become so by themselves."""

    def __init__(
        self,
        me: NodeId,
        *,
        replicas: OwnReplicas,
        desired: DesiredState,
        deployments: Deployments,
        fleet: Fleet,
        directory: Directory,
        links: RequestLinks,
    ) -> None:
        """Begin with no model stale.

        Args:
            me: The node that it decides for.
            replicas: What this node serves.
            desired: Says who deployed and who published.
            deployments: What is wanted.
            fleet: Where it is placed.
            directory: Who serves it.
            links: Where links to the sources of files are asked for.
        """
        self._me = me
        self._replicas = replicas
        self._own = replicas.by_version
        self._desired = desired
        self._deployments = deployments
        self._fleet = fleet
        self._directory = directory
        self._links = links
        self._reconciler = Reconciler(me)
        self._room = LoadingRoom(me, self._own, deployments, fleet)
        self._stale: set[str] = set()
        self._quiet_until = float("-inf")
        self._due: dict[str, float] = {}  # by model: when to look at it again
        self._timer_at: float | None = None  # the timer that runs for the earliest of them

    def __repr__(self) -> str:
        return f"<ReconcileLoop of {self._me[:8]}, {len(self._stale)} models stale>"

    # What makes a model stale

    def mark(self, models: Iterable[str]) -> None:
        """Have these models looked at."""
        self._stale.update(models)

    def mark_all(self) -> None:
        """Have every model looked at that is deployed or here."""
        self._stale.update(self._deployments.names(), (model for model, _ in self._own))

    def mark_due(self, at: float) -> None:
        """Have the models looked at whose time has come, since the timer of `at` ran out."""
        if self._timer_at == at:
            self._timer_at = None
        self._stale.update(model for model, due in self._due.items() if due <= at)

    def be_quiet(self, now: float) -> list[Effect]:
        """Wait for news before acting: a node that just started would think that it is alone."""
        self._quiet_until = now + QUIET_START_S
        return self._wake_at(self._quiet_until, now)

    def is_quiet(self, now: float) -> bool:
        """Whether the node still waits for news."""
        return now < self._quiet_until

    def replica_changed(self, event: ReplicaChanged, now: float) -> list[Effect]:
        """Take what the driver tells of a replica."""
        manifest = event.manifest
        serving = self._own.get((manifest.model, manifest.version))
        replica = OwnReplica(
            manifest,
            event.state,
            event.deployed,
            event.reason,
            event.slots,
            event.service_ms,
            event.profile,
            event.shown,
        )
        if serving is not None and event.replaces and _goes_on(serving, replica):
            if event.state is ReplicaState.FAILED:
                serving.failed_to_replace(replica.digest, event.reason)
            else:
                serving.begins(manifest, event.state)
        else:
            self._own[manifest.model, manifest.version] = replica
        if event.state is not ReplicaState.FETCHING:
            self._links.put(("files", manifest.model, manifest.version), ())
        if event.state is ReplicaState.FAILED and event.deployed:
            serves = self._own[manifest.model, manifest.version] is not replica
            why = "" if serves else event.reason or "no reason given"
            self._reconciler.failed(manifest, replica.digest, now, why)
        elif serving is not None and event.deployed and _has_ended(serving, replica):
            self._reconciler.crashed(manifest, replica.digest, now, event.reason)
        self._stale.add(manifest.model)
        return self._replicas.publish(manifest.model, manifest.version, now)

    def replica_gone(self, model: str, version: int, now: float) -> list[Effect]:
        """Take that a replica is not here any more."""
        self._links.put(("files", model, version), ())
        self._stale |= {model, *self._room.waiting}
        return self._replicas.drop(model, version, now)

    # What is asked of the driver

    def run(self, now: float) -> list[Effect]:
        """Look at every stale model once; what that advertises may make models stale again."""
        if self.is_quiet(now):
            return []
        stale, self._stale = sorted(self._stale), set()
        effects: list[Effect] = []
        for model in stale:
            effects += self._reconcile(model, now)
        if stale:
            failing = self._reconciler.failing(now)
            effects += self._replicas.tell_failing(
                [suitability.failing(*each) for each in failing], now
            )
        if stale or self._timer_at is None:
            effects += self._wake_at(min(self._due.values(), default=math.inf), now)
        return effects

    def _reconcile(self, model: str, now: float) -> list[Effect]:
        known = self._deployments.get(model)
        own = {version: own for (name, version), own in self._own.items() if name == model}
        wanted = {} if known is None else self._wanted(known)
        plan = self._reconciler.plan(model, wanted, own, now)
        self._due.pop(model, None)
        if plan.look_again_at is not None:
            self._due[model] = plan.look_again_at
        publish = self._replicas.publish
        effects: list[Effect] = []
        for version in plan.unload:
            self._own[model, version].state = ReplicaState.UNLOADING
            effects += [UnloadModel(model, version), *publish(model, version, now)]
        if not plan.load:
            self._room.forget(model)
        for version in plan.load:
            assert known is not None  # nothing is loaded that no deployment wants
            target = self._fleet.chosen(self._me, known, version)
            later = self._room.wait_until(known, target, now)
            if later is None:
                effects += self._load(target, now)
            else:
                self._due[model] = min(later, self._due.get(model, later))
        for version, manifest in offered_otherwise(known, own).items():
            self._own[model, version].manifest = manifest
            effects += [OfferModel(model, version), *publish(model, version, now)]
        return effects

    def _wanted(self, known: Known) -> dict[int, Wanted]:
        return {
            version: Wanted(
                self._fleet.chosen(self._me, known, version).digest,
                part.placement.nodes,
                frozenset().union(
                    *(self._directory.ready(each.manifest, each.digest) for each in variants)
                ),
                part.placement.standby,
                is_unasked=not part.placement.nodes and not part.placement.missing,
                is_candidate=part.is_candidate,
            )
            for part in self._fleet.parts(known)
            for version, variants in part.versions.items()
            if not part.placement.paused
        }

    def _load(self, target: Target, now: float) -> list[Effect]:
        """Ask the driver for a version; files that serve under its number go on until these are ready."""
        manifest = target.manifest
        key = (manifest.model, manifest.version)
        replica = OwnReplica(manifest, ReplicaState.FETCHING, deployed=True)
        serving = self._own.get(key)
        if serving is not None and _goes_on(serving, replica):
            serving.begins(manifest, ReplicaState.FETCHING)
        else:
            self._own[key] = replica
        holders = self._holders(target)
        known = self._deployments.get(manifest.model)
        assert known is not None  # the target is of it
        placement = self._fleet.placement_of(known, manifest.version)
        placed = () if placement is None else placement.hosts
        others = companions(placed, self._me)[:MAX_FILE_SOURCES]
        self._links.put(("files", *key), (*holders, *others))
        load = LoadModel(*key, target.digest, holders, others)
        return [load, *self._replicas.publish(*key, now)]

    def _holders(self, target: Target) -> tuple[NodeId, ...]:
        """Return who has a deployed model's files: its replicas, then who deployed or published it."""
        found = self._directory.with_files(target.manifest, target.digest)
        if target.manifest.execution.parameters:  # with other variables it has the same files
            plain = without_variables(target.manifest)
            found += self._directory.with_files(plain, plain.digest)
        entry = self._desired.entry(KEY_PREFIX + target.manifest.model)
        assert entry is not None  # the target is read from it
        found.append(NodeId(entry.author))
        published = self._desired.entry(artifact_key(target.manifest))
        if published is not None:
            found.append(NodeId(published.author))
        return tuple(node for node in dict.fromkeys(found) if node != self._me)

    def _wake_at(self, at: float, now: float) -> list[Effect]:
        """Start a timer, unless none is needed or one runs that is due before."""
        if at == math.inf or (self._timer_at is not None and self._timer_at <= at):
            return []
        self._timer_at = at
        return [StartTimer(ReconcileDue(at), max(0.0, at - now))]


def _has_ended(serving: OwnReplica, replica: OwnReplica) -> bool:
    """Whether a replica that served loads again by itself: its processes have ended."""
    return (
        serving.state is ReplicaState.READY
        and replica.state is ReplicaState.LOADING
        and serving.digest == replica.digest
    )


def _goes_on(serving: OwnReplica, replica: OwnReplica) -> bool:
    """Whether a replica serves on while other files of its version are brought here."""
    return (
        serving.state is ReplicaState.READY
        and replica.state is not ReplicaState.READY
        and serving.digest != replica.digest
    )
