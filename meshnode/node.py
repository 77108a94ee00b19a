"""One node of the mesh as a pure state machine: the cores, composed.

`Node.handle(event, now, wall_s)` is the only door. It hands each event to the cores that care
(membership, owner states, desired state), watches what they emit, and keeps three things in step
with it: the table that routing chooses from, the beliefs about load, and which models run here.

What the driver adds to the events of `meshnode.events`: `ReplicaChanged` and `ReplicaGone` tell how
carrying out `LoadModel` and `UnloadModel` goes (and which models lie in the node's own folder), and
`LoadSampled` how busy the node is.

The daemon and the simulator both drive exactly this class.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY, NodeLoad, parse_replica_key, replica_key
from meshnode.effects import Effect, Emit, LoadModel, StartTimer, UnloadModel
from meshnode.errors import MeshError, ModelNotFound, ProtocolError, UsageError
from meshnode.events import Event, Start, TimerFired
from meshnode.membership.config import LAN, MembershipConfig
from meshnode.membership.core import Membership
from meshnode.reconcile import OwnReplica, Reconciler
from meshnode.routing.config import RoutingConfig
from meshnode.routing.placement import Placement, PlacementNode
from meshnode.routing.placement import placement as place
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.state.config import DesiredConfig, OwnerConfig
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired import DesiredState
from meshnode.state.owner import OwnerStates
from meshnode.types import Address, NodeId, NodeState, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.membership.messages import MemberRecord
    from meshnode.models.manifest import Manifest
    from meshnode.state.desired_messages import Entry

_PRESENT = (NodeState.ALIVE, NodeState.SUSPECT)

_MEMBER_CHANGES = frozenset(
    f"member.{what}" for what in ("alive", "suspect", "dead", "left", "refuted", "updated")
)
"""Events after which a member's state or record may be another one."""

QUIET_START_S = 3.0
"""Seconds after a start in which a node that has a mesh to rejoin loads nothing: links, records and
deployments arrive within one; without the pause it would fetch every model and drop it again."""


@dataclass(frozen=True, slots=True)
class ReplicaChanged(Event):
    """A model version on this node is being fetched or loaded, is ready, or failed."""

    manifest: Manifest
    state: ReplicaState
    reason: str = ""
    slots: int = 1
    service_ms: float = 0.0
    deployed: bool = True


@dataclass(frozen=True, slots=True)
class ReplicaGone(Event):
    """A model version is not on this node any more."""

    model: str
    version: int


@dataclass(frozen=True, slots=True)
class LoadSampled(Event):
    """How busy this node is now."""

    load: NodeLoad


@dataclass(frozen=True, slots=True)
class ReconcileDue:
    """A timer: a failed load may be tried again."""


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The settings of all cores."""

    membership: MembershipConfig = LAN
    owner: OwnerConfig = field(default_factory=OwnerConfig)
    desired: DesiredConfig = field(default_factory=DesiredConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)


@dataclass(frozen=True, slots=True)
class NodeTrust:
    """What the node needs of the trust layer.

    Attributes:
        sign: Ed25519 with the node's key.
        verify_record: Why a member's record is refused, or None if its chain and signature hold.
        verify_signature: Whether a public key signed these bytes (key, bytes, signature).
        verify_entry: Why an entry of the desired state is refused, or None.
    """

    sign: Callable[[bytes], bytes]
    verify_record: Callable[[MemberRecord], str | None]
    verify_signature: Callable[[bytes, bytes, bytes], bool]
    verify_entry: Callable[[Entry], str | None]


class Node:
    """The cores of one node.

    Attributes:
        membership: Who is there.
        owners: What each node says about itself.
        desired: What the mesh is asked to do.
        router: Where requests go.
        own: This node's replicas by (model, version).
        has_friends: Whether it knew at its start of others to look for.
    """

    def __init__(
        self,
        *,
        record: MemberRecord,
        trust: NodeTrust,
        rng: random.Random,
        config: NodeConfig | None = None,
        seeds: tuple[Address, ...] = (),
        known: Iterable[MemberRecord] = (),
        stored_desired: bytes | None = None,
    ) -> None:
        """Compose the cores.

        Args:
            record: This node's signed record.
            trust: Signing and verification.
            rng: Seeds one stream per core, so that none disturbs another's.
            config: Settings; the LAN preset by default.
            seeds: Addresses to join by.
            known: Members remembered from before.
            stored_desired: The desired state as it was last persisted.
        """
        config = config or NodeConfig()
        known = tuple(known)
        self.me = record.node_id
        self.membership = Membership(
            record=record,
            sign=trust.sign,
            verify_record=trust.verify_record,
            verify_signature=trust.verify_signature,
            config=config.membership,
            rng=random.Random(rng.getrandbits(64)),
            seeds=seeds,
            known=known,
        )
        self.owners = OwnerStates(
            self.me, record.epoch, config.owner, random.Random(rng.getrandbits(64))
        )
        self.desired = DesiredState(
            self.me,
            sign=trust.sign,
            verify=trust.verify_entry,
            config=config.desired,
            rng=random.Random(rng.getrandbits(64)),
            stored=stored_desired,
        )
        self.router = Router(
            self.me,
            region=record.region,
            config=config.routing,
            rng=random.Random(rng.getrandbits(64)),
        )
        self.own: dict[tuple[str, int], OwnReplica] = {}
        self._reconciler = Reconciler(self.me)
        self._dirty = False
        self.has_friends = bool(seeds or known)
        self._quiet_until = float("-inf")

    def __repr__(self) -> str:
        return f"<Node {self.me[:8]} {self.membership!r} {len(self.own)} replicas>"

    # The door

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """Take one event; return what is to be done.

        Args:
            event: What happened.
            now: Monotonic seconds.
            wall_s: Seconds since the Unix epoch.
        """
        match event:
            case ReplicaChanged():
                effects = self._replica_changed(event, now)
            case ReplicaGone(model, version):
                effects = self._replica_gone(model, version, now)
            case LoadSampled(load):
                effects = self.owners.set(LOAD_KEY, advertisement.encode(load), now)
            case TimerFired(ReconcileDue()):
                self._dirty = True
                effects = []
            case _:
                effects = self._begin_quietly(now) if isinstance(event, Start) else []
                effects += [
                    *self.membership.handle(event, now),
                    *self.owners.handle(event, now),
                    *self.desired.handle(event, now, wall_s),
                ]
        return self._settle(effects, now)

    def _begin_quietly(self, now: float) -> list[Effect]:
        """Wait for news before acting: a node that just started would think that it is alone."""
        self._dirty = True
        if not self.has_friends:
            return []
        self._quiet_until = now + QUIET_START_S
        return [StartTimer(ReconcileDue(), QUIET_START_S)]

    def deploy(self, deployment: Deployment, now: float, wall_s: float) -> list[Effect]:
        """Ask the mesh to serve a model; durable here before anyone else hears of it.

        Raises:
            UsageError: if it is too large to be shared.
        """
        key = deployment.key
        return self._settle(self.desired.put(key, deployment.encode(), now, wall_s), now)

    def undeploy(self, name: str, now: float, wall_s: float) -> list[Effect]:
        """Ask the mesh to stop serving a model.

        Raises:
            ModelNotFound: if there is no such deployment.
        """
        if self.deployment(name) is None:
            if any(model == name for model, _ in self.own):
                raise UsageError(
                    f"{name!r} is served from a node's own model folder (--models), not deployed"
                )
            raise ModelNotFound(f"nothing is deployed under the name {name!r}")
        return self._settle(self.desired.delete(KEY_PREFIX + name, now, wall_s), now)

    # What is known

    def deployment(self, name: str) -> Deployment | None:
        """Return the deployment of this name, or None."""
        value = self.desired.get(KEY_PREFIX + name)
        return Deployment.decode(value) if value else None

    def deployments(self) -> list[Deployment]:
        """Return all deployments, by name."""
        return [Deployment.decode(value) for _, value in sorted(self.desired.items())]

    def placement(self, deployment: Deployment) -> Placement:
        """Compute where a deployment's replicas belong now; the same on every node."""
        nodes = [
            PlacementNode(
                node_id=member.node_id,
                region=member.record.region,
                weight=float(max(1, int(member.record.capabilities.get("cpus") or 1))),
                eligible=(why := _ineligible(member.state, member.record, deployment)) is None,
                reason=why or "",
            )
            for member in self.membership.members.values()
        ]
        return place(deployment.name, deployment.replicas, deployment.on, nodes)

    def deployed_manifest(self, model: str, version: int, digest: str) -> Manifest | None:
        """Return the manifest that a `LoadModel` effect names, while it is still wanted."""
        deployment = self.deployment(model)
        if deployment is None:
            return None
        for manifest in deployment.manifests:
            if manifest.version == version and manifest.digest == digest:
                return manifest
        return None

    # This node's replicas

    def _replica_changed(self, event: ReplicaChanged, now: float) -> list[Effect]:
        manifest = event.manifest
        self.own[manifest.model, manifest.version] = OwnReplica(
            manifest, event.state, event.deployed, event.reason, event.slots, event.service_ms
        )
        self._dirty = True
        effects = self._publish(manifest.model, manifest.version, now)
        if event.state is ReplicaState.FAILED and event.deployed:
            retry_at = self._reconciler.failed(manifest, now)
            effects.append(StartTimer(ReconcileDue(), max(0.0, retry_at - now)))
        return effects

    def _replica_gone(self, model: str, version: int, now: float) -> list[Effect]:
        self.own.pop((model, version), None)
        self._dirty = True
        return self.owners.delete(replica_key(model, version), now)

    def _publish(self, model: str, version: int, now: float) -> list[Effect]:
        replica = self.own[model, version]
        advert = advertisement.advert(
            replica.manifest,
            replica.state,
            reason=replica.reason,
            slots=replica.slots,
            deployed=replica.deployed,
            service_ms=replica.service_ms,
        )
        return self.owners.set(replica_key(model, version), advertisement.encode(advert), now)

    # Keeping everything in step

    def _settle(self, effects: list[Effect], now: float) -> list[Effect]:
        """Follow what the cores emitted until nothing changes any more."""
        settled: list[Effect] = []
        while effects:
            for effect in effects:
                settled += self._follow(effect, now) if isinstance(effect, Emit) else [effect]
            effects = []
            if self._dirty and now >= self._quiet_until:
                self._dirty = False
                effects = self._reconcile(now)
        return settled

    def _follow(self, emit: Emit, now: float) -> list[Effect]:
        node = NodeId(emit.subject)
        match emit.kind:
            case "state.changed":
                self._state_changed(node, emit.detail, now)
                return []
            case kind if kind in _MEMBER_CHANGES:
                return [emit, *self._settle(self._member_changed(node, now), now)]
            case "desired.changed":
                self._dirty = True
        return [emit]

    def _member_changed(self, node: NodeId, now: float) -> list[Effect]:
        self._dirty = True
        member = self.membership.members.get(node)
        state = member.state if member else NodeState.DEAD
        self.router.node_changed(node, state)
        if state in _PRESENT:
            self.owners.welcome(node)
            for key in self.owners.entries(node):  # its name and region may be news
                self._state_changed(node, key, now)
            return []
        return self.owners.forget(node, now)

    def _state_changed(self, node: NodeId, key: str, now: float) -> None:
        value = self.owners.get(node, key)
        if key == LOAD_KEY:
            if value is not None and node != self.me:
                self._load_heard(node, value, now)
            return
        found = parse_replica_key(key)
        if found is None:
            return
        self._dirty = True
        if value is None:
            self.router.replica_removed(node, *found)
            return
        try:
            advert = advertisement.decode_replica(key, value)
        except ProtocolError:
            self.router.replica_removed(node, *found)
            return
        member = self.membership.members.get(node)
        record = member.record if member else None
        self.router.replica_changed(
            Replica(
                node=node,
                node_name=record.name if record else node[:8],
                region=record.region if record else "",
                zone=record.zone if record else "",
                model=found[0],
                version=found[1],
                state=advert.state,
                reason=advert.reason,
                manifest=advert.manifest,
                slots=advert.slots,
            ),
            now,
        )

    def _load_heard(self, node: NodeId, value: bytes, now: float) -> None:
        try:
            load = advertisement.decode_load(value)
        except ProtocolError:
            return
        for each in load.models:
            report = LoadReport(each.in_system, each.slots, each.service_ms)
            self.router.load_reported(node, each.model, each.version, report, now)

    def _reconcile(self, now: float) -> list[Effect]:
        deployments = self.deployments()
        placements = {each.name: self.placement(each) for each in deployments}
        effects: list[Effect] = []
        for effect in self._reconciler.plan(
            deployments, placements, self.own, self._ready(), self._holders(deployments), now
        ):
            effects += self._begin(effect, now)
        return effects

    def _begin(self, effect: Effect, now: float) -> list[Effect]:
        """Note what is asked of the driver, so that it is asked once."""
        if isinstance(effect, LoadModel):
            manifest = self.deployed_manifest(effect.model, effect.version, effect.digest)
            assert manifest is not None
            self.own[effect.model, effect.version] = OwnReplica(
                manifest, ReplicaState.FETCHING, deployed=True
            )
            return [effect, *self._publish(effect.model, effect.version, now)]
        assert isinstance(effect, UnloadModel)
        self.own[effect.model, effect.version].state = ReplicaState.UNLOADING
        return [effect, *self._publish(effect.model, effect.version, now)]

    def _ready(self) -> Mapping[tuple[str, int], frozenset[NodeId]]:
        ready: dict[tuple[str, int], frozenset[NodeId]] = {}
        table = self.router.table
        for model, versions in table.models().items():
            for version in versions:
                ready[model, version] = frozenset(
                    replica.node
                    for replica in table.replicas(model, version)
                    if replica.state is ReplicaState.READY
                )
        return ready

    def _holders(self, deployments: Iterable[Deployment]) -> Mapping[str, tuple[NodeId, ...]]:
        """Return who has each deployed model's files: its replicas, then whoever deployed it."""
        holders: dict[str, tuple[NodeId, ...]] = {}
        for deployment in deployments:
            entry = self.desired.entry(deployment.key)
            author = (NodeId(entry.author),) if entry else ()
            for manifest in deployment.manifests:
                digest = manifest.digest
                found = [
                    node
                    for node in self.owners.owners()
                    if node != self.me and self._has_files(node, manifest, digest)
                ]
                holders[digest] = (*found, *(node for node in author if node not in found))
        return holders

    def _has_files(self, node: NodeId, manifest: Manifest, digest: str) -> bool:
        key = replica_key(manifest.model, manifest.version)
        value = self.owners.get(node, key)
        if value is None:
            return False
        try:
            advert = advertisement.decode_replica(key, value)
        except MeshError:
            return False
        return advert.digest == digest and advert.state in (
            ReplicaState.READY,
            ReplicaState.LOADING,
            ReplicaState.UNLOADING,
        )


def _ineligible(state: NodeState, record: MemberRecord, deployment: Deployment) -> str | None:
    """Return why a node cannot serve a deployment, or None."""
    if state not in _PRESENT:
        return f"it is {state}"
    runtimes = record.capabilities.get("runtimes")
    available = runtimes if isinstance(runtimes, list) else []
    for manifest in deployment.manifests:
        if manifest.runtime not in available:
            return f"it has no runtime {manifest.runtime!r}"
    return None
