"""One node of the mesh as a pure state machine: the cores, composed.

`Node.handle(event, now, wall_s)` is the only door. It hands each event to the cores that care
(membership, owner states, desired state), watches what they emit, and keeps three things in step
with it: the table that routing chooses from, the beliefs about load, and which models run here.

What the driver adds to the events of `meshnode.events`: `ReplicaChanged` and `ReplicaGone` tell how
carrying out `LoadModel` and `UnloadModel` goes (and which models lie in the node's own folder),
`LoadSampled` how busy the node is, and `CapabilitiesChanged` what its machine is and whether it serves.

How things are kept in step. What a core emits names what changed, and marks models as *stale*:

| emitted | what follows | stale |
|---|---|---|
| `state.changed` | the replica or load goes to routing (`directory`) | that model |
| `member.*` | its replicas go to routing, or leave it | all, if placements may differ now |
| `member.evicted` | its replicas leave routing, its state is forgotten | all, if placements may differ now |
| `desired.changed` | what is wanted goes to routing | the deployment's model |

Then each stale model is reconciled (`reconcile`): what is asked of the driver is noted in `own` and
advertised, which may make models stale again, until none is. A model that is not stale costs
nothing, so a mesh of many deployments is no dearer than its changes. What changes only with time
(a retry, a handover) is one timer, for the earliest of them.

The daemon and the simulator both drive exactly this class.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY, NodeLoad, replica_key
from meshnode.capabilities import paused_of
from meshnode.deployments import Deployments, Fleet, Known, Target, describe
from meshnode.directory import Directory
from meshnode.drafts import Drafts
from meshnode.effects import Effect, Emit, LoadModel, StartTimer, UnloadModel
from meshnode.errors import TooLarge
from meshnode.events import DatagramReceived, Event, LinkUp, Start, TimerFired
from meshnode.eviction import Evictions
from meshnode.limits import MAX_OWNER_VALUE_BYTES
from meshnode.membership.config import LAN, MembershipConfig
from meshnode.membership.core import Membership
from meshnode.membership.timers import MembershipTimer
from meshnode.reconcile import OwnReplica, Reconciler, Wanted
from meshnode.request_links import RequestLinks
from meshnode.routing.config import RoutingConfig
from meshnode.routing.router import Router
from meshnode.routing.table import Goal
from meshnode.state.api_keys import is_api_key, why_kept
from meshnode.state.config import DesiredConfig, OwnerConfig
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired import DesiredState
from meshnode.state.owner import OwnerStates, OwnerTrust
from meshnode.trust.identity import verify
from meshnode.types import Address, NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.authority import Authority
    from meshnode.membership.messages import MemberRecord
    from meshnode.models.manifest import Manifest
    from meshnode.routing.placement import Placement
    from meshnode.state.desired import Draft
    from meshnode.state.desired_messages import Entry
    from meshnode.trust.identity import Identity

_MEMBER_CHANGES: Final = frozenset(
    f"member.{what}"
    for what in ("alive", "suspect", "dead", "left", "refuted", "updated", "conflict")
)
"""Events after which a member's state or record may be another one."""

QUIET_START_S: Final = 3.0
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
class CapabilitiesChanged(Event):
    """This machine's facts are other ones now; a word under `paused` takes it out of service."""

    capabilities: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReconcileDue:
    """A timer: models may have to be looked at again (at this monotonic second)."""

    at: float


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
        identity: The node's key.
        authority: Whose word counts for what.
        verify_signature: Whether a public key signed these bytes (key, bytes, signature).
    """

    identity: Identity
    authority: Authority
    verify_signature: Callable[[bytes, bytes, bytes], bool] = verify

    def sign(self, data: bytes) -> bytes:
        """Sign with the node's key."""
        return self.identity.sign(data)

    def sign_entry(self, data: bytes) -> bytes:
        """Sign an entry of the desired state, for this mesh only."""
        return self.identity.sign(self.authority.bound(data))


class Node:
    """The cores of one node.

    Attributes:
        membership: Who is there.
        owners: What each node says about itself.
        desired: What the mesh is asked to do.
        router: Where requests go.
        own: This node's replicas by (model, version).
        drafts: Prepares what this node asks of the mesh.
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
        self._authority = trust.authority
        self.membership = Membership(
            record=record,
            sign=trust.sign,
            verify_record=trust.authority.verify_record,
            verify_signature=trust.verify_signature,
            config=config.membership,
            rng=random.Random(rng.getrandbits(64)),
            seeds=seeds,
            known=known,
        )
        self._verify_signature = trust.verify_signature
        self.owners = OwnerStates(
            self.me,
            record.epoch,
            config.owner,
            random.Random(rng.getrandbits(64)),
            OwnerTrust(trust.sign, self._is_signed_by, self._epoch_of),
            hints=frozenset({LOAD_KEY}),
        )
        self.desired = DesiredState(
            self.me,
            sign=trust.sign_entry,
            verify=self._why_refused,
            config=config.desired,
            rng=random.Random(rng.getrandbits(64)),
            stored=stored_desired,
            on_statement=trust.authority.take,
            on_displaced=trust.authority.forget,
        )
        self.router = Router(
            self.me,
            region=record.region,
            config=config.routing,
            rng=random.Random(rng.getrandbits(64)),
        )
        self.own: dict[tuple[str, int], OwnReplica] = {}
        self.drafts = Drafts(
            trust.identity,
            desired=self.desired,
            own=self.own,
            authority=trust.authority,
            verify_entry=self._why_refused,
        )
        self._evictions = Evictions(
            self.me,
            authority=trust.authority,
            membership=self.membership,
            desired=self.desired,
            drafts=self.drafts,
        )
        self.has_friends = bool(seeds or known)
        self._deployments = Deployments(self.desired)
        self._fleet = Fleet()
        self._fleet.update(self.membership.members.values())
        self._reconciler = Reconciler(self.me)
        self._stale: set[str] = set()
        self._unrouted: set[str] = set()  # models of which routing may have another goal
        self._quiet_until = float("-inf")
        self._due: dict[str, float] = {}  # by model: when to look at it again
        self._timer_at: float | None = None  # the timer that runs for the earliest of them
        self._directory = Directory(self.me, self.membership.members, self.owners, self.router)
        self._links = RequestLinks(self.me)

    def __repr__(self) -> str:
        return f"<Node {self.me[:8]} {self.membership!r} {len(self.own)} replicas>"

    # The door

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:
        """React to an event.

        Args:
            event: What happened.
            now: Monotonic seconds.
            wall_s: Seconds since the Unix epoch.
        """
        match event:
            case DatagramReceived() | TimerFired(MembershipTimer()):
                # Most of what a node at rest is told, and no concern of the other cores.
                effects = self.membership.handle(event, now)
            case ReplicaChanged():
                effects = self._replica_changed(event, now)
            case ReplicaGone(model, version):
                effects = self._replica_gone(model, version, now)
            case LoadSampled(load):
                effects = self.owners.set(LOAD_KEY, advertisement.encode(load), now)
            case CapabilitiesChanged(capabilities):
                effects = self._capabilities_changed(capabilities, now)
            case TimerFired(ReconcileDue(at)):
                effects = []
                # A clock's rounding must not make a timer early for what it was started for.
                now = max(now, at)
                self._look_again(at)
            case _:
                effects = self._begin(now) if isinstance(event, Start) else []
                effects += [
                    *self.membership.handle(event, now),
                    *self.owners.handle(event, now),
                    *self.desired.handle(event, now, wall_s),
                ]
                if isinstance(event, Start | LinkUp):
                    peer = event.peer if isinstance(event, LinkUp) else self.me
                    effects += [*self._evictions.count(peer, wall_s), *self._evictions.check_own()]
        return self._settle(effects, now)

    def _begin(self, now: float) -> list[Effect]:
        """Wait for news before acting: a node that just started would think that it is alone."""
        self._all_stale()
        if not self.has_friends:
            return []
        self._quiet_until = now + QUIET_START_S
        return self._wake_at(self._quiet_until, now)

    def _why_refused(self, entry: Entry) -> str | None:
        """Say why an entry of the desired state is refused, or None."""
        if is_api_key(entry.key) and entry.deleted:
            known = self.desired.get(entry.key)
            reason = None if known is None else why_kept(known, entry.stamp.wall_ms / 1000)
            if reason is not None:
                return reason
        return self._authority.verify_entry(entry)

    def commit(self, draft: Draft, now: float) -> list[Effect]:
        """Let a draft of `drafts` count whose `persist` was carried out, and tell the mesh."""
        return self._settle(self.desired.commit(draft), now)

    # What is known

    def deployment(self, name: str) -> Deployment | None:
        """Return the deployment of this name, or None."""
        known = self._deployments.get(name)
        return known.deployment if known else None

    def deployments(self) -> list[Deployment]:
        """Return all deployments, by name."""
        known = (self._deployments.get(name) for name in self._deployments.names())
        return [each.deployment for each in known if each is not None]

    def placement(self, deployment: Deployment) -> Placement:
        """Compute where a deployment's replicas belong now; the same on every node."""
        return self._fleet.placement(deployment)

    @property
    def paused(self) -> str:
        """Why this node's replicas serve nobody at present, or an empty text."""
        return paused_of(self.membership.record.capabilities)

    def shown_state(self, replica: OwnReplica) -> ReplicaState:
        """Return what others are told of a replica: a ready one of a paused node is paused."""
        is_held = replica.state is ReplicaState.READY and bool(self.paused)
        return ReplicaState.PAUSED if is_held else replica.state

    # This node's replicas

    def _capabilities_changed(self, capabilities: dict[str, Any], now: float) -> list[Effect]:
        """Tell the mesh what this machine is now.

        A paused node stays a member, a gateway and a source of files. Its replicas are told to be
        paused, so that no gateway uses them, and its record keeps placement from it, so that
        another node takes over what is deployed.
        """
        before = self.paused
        effects = self.membership.update_record(now, capabilities=capabilities)
        if self.paused != before:
            what = Emit("node.paused", self.me, self.paused)
            effects.append(what if self.paused else Emit("node.resumed", self.me))
            for model, version in self.own:
                effects += self._publish(model, version, now)
        return effects

    def _replica_changed(self, event: ReplicaChanged, now: float) -> list[Effect]:
        manifest = event.manifest
        replica = OwnReplica(
            manifest, event.state, event.deployed, event.reason, event.slots, event.service_ms
        )
        self.own[manifest.model, manifest.version] = replica
        if event.state is not ReplicaState.FETCHING:
            self._links.put(("files", manifest.model, manifest.version), ())
        if event.state is ReplicaState.FAILED and event.deployed:
            self._reconciler.failed(manifest, replica.digest, now)
        self._stale.add(manifest.model)
        return self._publish(manifest.model, manifest.version, now)

    def _replica_gone(self, model: str, version: int, now: float) -> list[Effect]:
        self.own.pop((model, version), None)
        self._links.put(("files", model, version), ())
        self._stale.add(model)
        return self.owners.delete(replica_key(model, version), now)

    def _publish(self, model: str, version: int, now: float) -> list[Effect]:
        """Advertise a replica; one that cannot be described is told to have failed."""
        replica = self.own[model, version]
        key = replica_key(model, version)
        state = self.shown_state(replica)
        is_held = state is not replica.state
        full = advertisement.advert(
            replica.manifest,
            state,
            digest=replica.digest,
            reason=self.paused if is_held else replica.reason,
            slots=replica.slots,
            deployed=replica.deployed,
            service_ms=replica.service_ms,
        )
        value = advertisement.encode(full)
        if len(value) > MAX_OWNER_VALUE_BYTES:
            value = advertisement.encode(advertisement.undescribed(full))
        try:
            return self.owners.set(key, value, now)
        except TooLarge as error:
            return [Emit("replica.hidden", model, f"version {version}: {error}")]

    # Keeping everything in step

    def _settle(self, effects: list[Effect], now: float) -> list[Effect]:
        """Follow what the cores emitted until nothing changes any more."""
        settled: list[Effect] = []
        queue = deque(effects)
        while True:
            while queue:
                effect = queue.popleft()
                if not isinstance(effect, Emit):
                    settled.append(effect)
                elif effect.kind == "state.changed":
                    node, key = NodeId(effect.subject), effect.detail
                    self._stale.update(self._directory.state_changed(node, key, now))
                else:
                    settled.append(effect)
                    queue += self._follow(effect, now)
            queue += self._evictions.heed(now)
            self._directory.forget_reaped()
            self._route_goals()
            queue += self._reconcile_stale(now)
            queue += self._link_to_holders(now)
            if not queue:
                return settled

    def _follow(self, emit: Emit, now: float) -> list[Effect]:
        if emit.kind == "member.evicted":
            return self._member_gone(NodeId(emit.subject))
        if emit.kind in _MEMBER_CHANGES and emit.subject in self.membership.members:
            return self._member_changed(NodeId(emit.subject), now)
        if emit.kind == "desired.changed" and emit.subject.startswith(KEY_PREFIX):
            name = emit.subject.removeprefix(KEY_PREFIX)
            self._stale.add(name)
            self._unrouted.add(name)
            flaw = self._deployments.flaw(name)
            return [Emit("deployment.ignored", name, flaw)] if flaw else []
        return []

    def _member_changed(self, node: NodeId, now: float) -> list[Effect]:
        members = self.membership.members
        if self._fleet.take(members[node], members):
            self._all_stale()
        self._stale.update(self._directory.member_changed(node, now))
        if node == self.me:
            return self.owners.follow_epoch(members[node].record.epoch)
        if members[node].live:
            return self.owners.welcome(node)
        return self.owners.forget(node)

    def _member_gone(self, node: NodeId) -> list[Effect]:
        if self._fleet.drop(node):
            self._all_stale()
        return self.owners.forget(node)

    def _is_signed_by(self, owner: NodeId, data: bytes, signature: bytes) -> bool:
        """Whether a member signed what it is said to have written about itself."""
        member = self.membership.members.get(owner)
        return member is not None and self._verify_signature(
            member.record.public_key, data, signature
        )

    def _epoch_of(self, owner: NodeId) -> int | None:
        """Return a live member's boot epoch: what others say about itself counts only then."""
        member = self.membership.members.get(owner)
        return member.record.epoch if member is not None and member.live else None

    def _link_to_holders(self, now: float) -> list[Effect]:
        """Have links to the nodes that requests go to and files come from."""
        moved = self._directory.moved
        while moved:
            key = moved.pop()
            self._links.put(key, self._directory.holders(*key))
        if not self._links.has_changed():
            return []
        return self.membership.want_links(self._links.members, now)

    # Which models run here

    def _all_stale(self) -> None:
        names = self._deployments.names()
        self._stale.update(names, (model for model, _ in self.own))
        self._unrouted.update(names)

    def _route_goals(self) -> None:
        """Tell routing what is deployed and where: a model that nobody serves yet is known."""
        while self._unrouted:
            name = self._unrouted.pop()
            known = self._deployments.get(name)
            goals = {}
            if known is not None:
                placed = describe(self._fleet.placement(known.deployment), self._name_of)
                for target in known.targets:
                    goal = Goal(target.manifest, target.digest, placed)
                    goals[target.manifest.version] = goal
            self.router.wanted_changed(name, goals)

    def _name_of(self, node: NodeId) -> str:
        member = self.membership.members.get(node)
        return member.record.name if member is not None else node

    def _reconcile_stale(self, now: float) -> list[Effect]:
        if now < self._quiet_until:
            return []
        stale, self._stale = sorted(self._stale), set()
        effects: list[Effect] = []
        for model in stale:
            effects += self._reconcile(model, now)
        if stale or self._timer_at is None:
            effects += self._wake_at(min(self._due.values(), default=math.inf), now)
        return effects

    def _reconcile(self, model: str, now: float) -> list[Effect]:
        known = self._deployments.get(model)
        if known is None:
            self._fleet.forget(model)
        own = {version: own for (name, version), own in self.own.items() if name == model}
        wanted = {} if known is None else self._wanted(known)
        plan = self._reconciler.plan(model, wanted, own, now)
        self._due.pop(model, None)
        if plan.look_again_at is not None:
            self._due[model] = plan.look_again_at
        effects: list[Effect] = []
        for version in plan.unload:
            self.own[model, version].state = ReplicaState.UNLOADING
            effects += [UnloadModel(model, version), *self._publish(model, version, now)]
        for target in known.targets if known is not None else ():
            manifest = target.manifest
            if manifest.version in plan.load:
                self.own[model, manifest.version] = OwnReplica(
                    manifest, ReplicaState.FETCHING, deployed=True
                )
                holders = self._holders(target)
                self._links.put(("files", model, manifest.version), holders)
                effects.append(LoadModel(model, manifest.version, target.digest, holders))
                effects += self._publish(model, manifest.version, now)
        return effects

    def _wanted(self, known: Known) -> dict[int, Wanted]:
        nodes = self._fleet.placement(known.deployment).nodes
        return {
            target.manifest.version: Wanted(
                target.digest, nodes, self._directory.ready(target.manifest, target.digest)
            )
            for target in known.targets
        }

    def _holders(self, target: Target) -> tuple[NodeId, ...]:
        """Return who has a deployed model's files: its replicas, then whoever deployed it."""
        found = self._directory.with_files(target.manifest, target.digest)
        entry = self.desired.entry(KEY_PREFIX + target.manifest.model)
        assert entry is not None  # the target is read from it
        found.append(NodeId(entry.author))
        return tuple(node for node in dict.fromkeys(found) if node != self.me)

    def _look_again(self, at: float) -> None:
        if self._timer_at == at:
            self._timer_at = None
        self._stale.update(model for model, due in self._due.items() if due <= at)

    def _wake_at(self, at: float, now: float) -> list[Effect]:
        """Start a timer, unless none is needed or one runs that is due before."""
        if at == math.inf or (self._timer_at is not None and self._timer_at <= at):
            return []
        self._timer_at = at
        return [StartTimer(ReconcileDue(at), max(0.0, at - now))]
