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
| `member.*` | its replicas go to routing, or leave it | those that are placed otherwise now |
| `member.evicted` | its replicas leave routing, its state is forgotten | those that are placed otherwise now |
| `desired.changed` | what is wanted goes to routing | the deployment's model, those that are placed otherwise now |
| `desired.changed`, `desired.outdated` | people are told of changes that were overwritten unseen (`overwrites`) | |

Then each stale model is reconciled (`reconcile_loop`): what is asked of the driver is noted in `own` and
advertised, which may make models stale again, until none is.

The daemon and the simulator both drive exactly this class.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from meshnode import advertisement, suitability
from meshnode.advertisement import LOAD_KEY, parse_replica_key
from meshnode.deployments import Deployments
from meshnode.directory import Directory
from meshnode.drafts import Drafts
from meshnode.draining import Handover
from meshnode.effects import Effect, Emit
from meshnode.events import DatagramReceived, Event, LinkUp, Start, TimerFired
from meshnode.eviction import Evictions
from meshnode.fleet import Fleet
from meshnode.goals import goals_of
from meshnode.membership.config import LAN, MembershipConfig
from meshnode.membership.core import Membership
from meshnode.membership.timers import MembershipTimer
from meshnode.node_events import (
    CapabilitiesChanged,
    DrainReported,
    FilesHere,
    LoadSampled,
    ReplicaChanged,
    ReplicaGone,
    RequestsWait,
)
from meshnode.overwrites import Overwrites
from meshnode.own_replicas import OwnReplicas
from meshnode.reconcile_loop import QUIET_START_S, ReconcileDue, ReconcileLoop
from meshnode.releases import ReleaseBook, ReleaseView, release_of
from meshnode.request_links import RequestLinks
from meshnode.routing.affinity import sequence_hosts
from meshnode.routing.config import RoutingConfig
from meshnode.routing.router import Router
from meshnode.state.api_keys import is_api_key, why_kept
from meshnode.state.config import DesiredConfig, OwnerConfig
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.state.desired import DesiredState
from meshnode.state.drain import REPORT_KEY, Drains, is_drain
from meshnode.state.owner import OwnerStates, OwnerTrust
from meshnode.stewardship import ScalingView, StewardDue, Stewardship
from meshnode.suitability import SUITABILITY_KEY
from meshnode.trust.identity import verify
from meshnode.types import Address, NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from meshnode.authority import Authority
    from meshnode.deployments import Known
    from meshnode.draining import Kept
    from meshnode.fleet import Part
    from meshnode.membership.messages import MemberRecord
    from meshnode.reconcile import OwnReplica
    from meshnode.routing.placement import Placement
    from meshnode.state.desired import Draft
    from meshnode.state.desired_messages import Entry
    from meshnode.state.release import Verb
    from meshnode.trust.identity import Identity

_MEMBER_CHANGES: Final = frozenset(
    f"member.{what}"
    for what in ("alive", "suspect", "dead", "left", "refuted", "updated", "conflict")
)
"""Events after which a member's state or record may be another one."""


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
        drains: The nodes that are to be emptied.
        has_friends: Whether it knew at its start of others to look for.
        changed_replicas: (node, key of its state) of replicas that changed, for whoever tells people; cleared by them.
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
        self._replicas = OwnReplicas(self.membership, self.owners)
        self.own = self._replicas.by_version
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
        self._overwrites = Overwrites(self.desired, self._name_of)
        self.drains = Drains(self.desired)
        self._releases = ReleaseBook(
            self.me,
            deployments=self._deployments,
            desired=self.desired,
            owners=self.owners,
            members=self.membership.members,
            router=self.router,
            parts=self._parts,
            drafts=self.drafts,
            authority=trust.authority,
            name_of=self._name_of,
        )
        self._stewardship = Stewardship(
            self.me,
            deployments=self._deployments,
            desired=self.desired,
            owners=self.owners,
            members=self.membership.members,
            router=self.router,
            placement=self.placement,
            releases=self._releases,
        )
        self._fleet = Fleet(self.drains, self._stewardship.wanted, self._releases.resident)
        self._fleet.update(self.membership.members.values())
        for name in self._deployments.names():
            self._fleet.want(name, self._deployments.get(name))
        self.changed_replicas: dict[tuple[NodeId, str], None] = {}
        self._unrouted: set[str] = set()  # models of which routing may have another goal
        self._directory = Directory(self.me, self.membership.members, self.owners, self.router)
        self._links = RequestLinks(self.me)
        self._reconcile = ReconcileLoop(
            self.me,
            replicas=self._replicas,
            desired=self.desired,
            deployments=self._deployments,
            fleet=self._fleet,
            directory=self._directory,
            links=self._links,
        )
        self._handover = Handover(
            self.me,
            own=self.own,
            deployments=self._deployments,
            fleet=self._fleet,
            directory=self._directory,
            drains=self.drains,
            name_of=self._name_of,
        )
        for member in self.membership.members:  # stored drains: nothing tells of them again
            self._route_drain(member)

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
                effects = self._reconcile.replica_changed(event, now)
            case ReplicaGone(model, version):
                effects = self._reconcile.replica_gone(model, version, now)
            case LoadSampled(load):
                value = advertisement.encode(self._stewardship.told(load))
                effects = self.owners.set(LOAD_KEY, value, now)
            case RequestsWait(models):
                effects = self._stewardship.requests_wait(models, now)
            case TimerFired(StewardDue()):
                effects = self._stewardship.due(now, wall_s)
            case FilesHere(digests):
                effects = self._replicas.tell_files(digests, now)
            case CapabilitiesChanged(capabilities):
                effects = self._capabilities_changed(capabilities, now)
            case DrainReported():
                effects = self._drain_reported(event, now)
            case TimerFired(ReconcileDue(at)):
                effects = []
                # A clock's rounding must not make a timer early for what it was started for.
                now = max(now, at)
                self._reconcile.mark_due(at)
            case _:
                effects = self._begin(now, wall_s) if isinstance(event, Start) else []
                effects += [
                    *self.membership.handle(event, now),
                    *self.owners.handle(event, now),
                    *self.desired.handle(event, now, wall_s),
                ]
                if isinstance(event, Start | LinkUp):
                    peer = event.peer if isinstance(event, LinkUp) else self.me
                    effects += [*self._evictions.count(peer, wall_s), *self._evictions.check_own()]
        return self._settle(effects, now)

    def _begin(self, now: float, wall_s: float) -> list[Effect]:
        self._all_stale()
        quiet_until = now + QUIET_START_S * self.has_friends
        stewarded = self._stewardship.begin(quiet_until, now, wall_s)
        for name in self._deployments.names():
            self._fleet.wanted_changed(name)
        return [*stewarded, *(self._reconcile.be_quiet(now) if self.has_friends else ())]

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

    def parts(self, name: str) -> list[Part]:
        """Return where the versions of a deployment belong that are wanted now; nothing if there is none."""
        known = self._deployments.get(name)
        return [] if known is None else self._fleet.parts(known)

    def _parts(self, known: Known) -> list[Part]:
        return self._fleet.parts(known)

    def scaling(self, deployment: Deployment) -> ScalingView:
        """Return how many replicas a deployment is to have now, how many it has, and who decided it why."""
        return self._stewardship.view(deployment)

    def release_view(self, name: str) -> ReleaseView | None:
        """Return how far a deployment's release has come; None if it has none, or there is no such deployment."""
        known = self._deployments.get(name)
        return None if known is None else self._stewardship.release_view(known)

    def release_order(
        self, name: str, verb: Verb, wall_s: float, *, by: str = "", reason: str = ""
    ) -> Draft:
        """Prepare to ask something of a deployment's release: see `ReleaseBook.order`."""
        return self._releases.order(name, verb, wall_s, by=by, reason=reason)

    def is_lasting(self, node: NodeId, deployment: Deployment) -> bool:
        """Whether a node that cannot take a deployment is there, so that waiting changes nothing."""
        return self._fleet.is_lasting(node, deployment)

    def chosen_digest(self, name: str, version: int, node: NodeId) -> str:
        """Return the digest of the form that a node is to serve; empty if the version is not deployed."""
        known = self._deployments.get(name)
        variants = known.versions.get(version, ()) if known is not None else ()
        return self._fleet.chosen(node, known, version).digest if known and variants else ""

    @property
    def needed(self) -> frozenset[NodeId]:
        """The nodes that this one's requests and fetches go to: it wants links to them, however."""
        return self._links.members

    @property
    def paused(self) -> str:
        """Why this node's replicas serve nobody at present, or an empty text."""
        return self._replicas.paused

    def shown_state(self, replica: OwnReplica) -> ReplicaState:
        """Return what others are told of a replica: a ready one of a paused node is paused."""
        return self._replicas.shown_state(replica)

    def kept_replicas(self) -> list[Kept]:
        """Return what of this node's replicas keeps it from being empty, if it is to be drained."""
        return self._handover.kept()

    # What this node is

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
            effects += self._replicas.publish_all(now)
        return effects

    # Draining

    def _drains_changed(self, now: float) -> list[Effect]:
        """Place and route anew; what this node reported of a drain that was taken back is withdrawn."""
        changed = self.drains.look()
        if not changed:
            return []
        self._fleet.update(self.membership.members.values())
        for node in changed:
            self._route_drain(node)
        told = [
            Emit("node.drain" if node in self.drains else "node.undrained", node)
            for node in sorted(changed)
        ]
        if self.me not in changed or self.me in self.drains:
            return [*told]
        return [*told, *self._replicas.withdraw("", now), *self.owners.delete(REPORT_KEY, now)]

    def _route_drain(self, node: NodeId) -> None:
        """Tell routing whether a member is to be emptied; its other conditions stay."""
        if node in self.membership.members:
            conditions = self.router.table.conditions(node)._replace(draining=node in self.drains)
            self.router.conditions_changed(node, conditions)

    def _drain_reported(self, event: DrainReported, now: float) -> list[Effect]:
        if self.me not in self.drains:
            return []  # it was taken back meanwhile
        told = self.owners.set(REPORT_KEY, event.report.encode(), now)
        return [*told, *self._replicas.withdraw(event.withdrawn, now)]

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
                    self._reconcile.mark(self._directory.state_changed(node, key, now))
                    if key == SUITABILITY_KEY:
                        self._suitability_heard(node)
                    for name in self._stewardship.heard(node, key):
                        self._wanted_changed(name)
                    if parse_replica_key(key) is not None:
                        self.changed_replicas[node, key] = None
                else:
                    settled.append(effect)
                    queue += self._follow(effect, now)
            queue += self._evictions.heed(now)
            queue += self._stewardship.run(now)
            self._directory.forget_reaped()
            if not self._reconcile.is_quiet(
                now
            ):  # a node that starts hears of all others, one by one
                moved = self._fleet.moved()
                self._reconcile.mark(moved)
                self._unrouted |= moved
            self._route_goals()
            queue += self._reconcile.run(now)
            queue += self._link_to_holders(now)
            if not queue:
                return settled

    def _follow(self, emit: Emit, now: float) -> list[Effect]:
        if emit.kind == "member.evicted":
            return self._member_gone(NodeId(emit.subject))
        if emit.kind in _MEMBER_CHANGES and emit.subject in self.membership.members:
            return self._member_changed(NodeId(emit.subject), now)
        if emit.kind == "desired.changed" and is_drain(emit.subject):
            return self._drains_changed(now)
        if emit.kind == "desired.changed" and (about := release_of(emit.subject)):
            effects = self._stewardship.release_said(about, now)
            self._wanted_changed(about)
            return effects
        name = emit.subject.removeprefix(KEY_PREFIX)
        if name == emit.subject or emit.kind not in ("desired.changed", "desired.outdated"):
            return []
        told = self._overwrites.look(name)
        if emit.kind == "desired.changed":
            self._fleet.want(name, self._deployments.get(name))
            self._reconcile.mark((name,))
            self._unrouted.add(name)
            effects = self._stewardship.deployment_changed(name, now)
            self._wanted_changed(name)
            flaw = self._deployments.flaw(name)
            told += [Emit("deployment.ignored", name, flaw)] if flaw else []
            return [*effects, *told]
        return told

    def _wanted_changed(self, name: str) -> None:
        """Place a deployment anew of which another number of replicas is wanted, or other ones of its versions."""
        self._fleet.wanted_changed(name)
        known = self._deployments.get(name)
        if known is not None and known.deployment.release is not None:
            self._reconcile.mark((name,))
            self._unrouted.add(name)

    def _member_changed(self, node: NodeId, now: float) -> list[Effect]:
        members = self.membership.members
        if self._fleet.take(members[node], members):
            self._suitability_heard(node)
            if node == self.me:  # another variant of what is placed here may suit it now
                self._all_stale()
        self._reconcile.mark(self._directory.member_changed(node, now))
        self._route_drain(node)
        if node == self.me:
            return self.owners.follow_epoch(members[node].record.epoch)
        if members[node].live:
            return self.owners.welcome(node)
        return self.owners.forget(node)

    def _suitability_heard(self, node: NodeId) -> None:
        """Take what a member says of itself for placement; what one that is no member said counts as nothing."""
        if node in self.membership.members:
            self._fleet.said(node, suitability.decode(self.owners.get(node, SUITABILITY_KEY)))

    def _member_gone(self, node: NodeId) -> list[Effect]:
        self._fleet.drop(node)
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
            holders: Collection[NodeId] = self._directory.holders(*key)
            if self.router.has_sequences(*key):
                holders = sequence_hosts(*key, holders)
            self._links.put(key, holders)
        if not self._links.has_changed():
            return []
        return self.membership.want_links(self._links.members, now)

    # What routing and people are told

    def _all_stale(self) -> None:
        self._reconcile.mark_all()
        self._unrouted.update(self._deployments.names())

    def _route_goals(self) -> None:
        """Tell routing what is deployed and where: a model that nobody serves yet is known."""
        while self._unrouted:
            name = self._unrouted.pop()
            known = self._deployments.get(name)
            parts = [] if known is None else self._fleet.parts(known)
            self.router.wanted_changed(name, goals_of(parts, self._name_of))

    def _name_of(self, node: NodeId) -> str:
        member = self.membership.members.get(node)
        return member.record.name if member is not None else node
