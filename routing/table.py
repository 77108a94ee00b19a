"""Which node serves which version of which model.

The table is written by membership (a node died or left) and by replicated state (a node says what
it serves), seldom; it is read on each request. So every write brings a group's tuple of ready
replicas, and its model's newest ready version, up to date, and a read is two look-ups.

Gossip is slow and sometimes wrong, so it decides little here: a node that is only *suspected*
stays a candidate, and whether a candidate works is for links and breakers to find out.

The table also holds what the mesh is asked to serve (`Goal`), so that a deployed model that nobody
serves at the moment is told from one that nobody knows.

**One version, one content.** Two nodes may hold different files under the same version number: while
a deployment replaces them, or by mistake. Requests are checked against one manifest, so only
replicas of one digest serve: the deployment's while one of those is ready; otherwise the digest
that most ready replicas have, the smallest of equals, so that all gateways decide alike. A deployment's
variants of a version (fp32, int8) take and give the same, so they count as one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from meshnode.errors import ModelNotFound, NoReplica
from meshnode.limits import MAX_MODELS, MAX_REPLICAS_PER_NODE, MAX_TABLE_REPLICAS
from meshnode.routing.conditions import USUAL, NodeConditions
from meshnode.routing.header import escape
from meshnode.types import NodeId, NodeState, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from meshnode.models.manifest import Manifest

_GONE = (NodeState.DEAD, NodeState.LEFT)
_ON_THEIR_WAY = (ReplicaState.FETCHING, ReplicaState.LOADING)


@dataclass(frozen=True, slots=True)
class Replica:
    """One node serving one version of a model, as that node says itself.

    Attributes:
        node: The node.
        node_name: Its name for people.
        region: The region that it says it is in.
        zone: The zone that it says it is in.
        model: Public name of the model.
        version: Positive integer.
        state: Whether it is ready, and if not, what it is doing.
        reason: Why it failed, or empty.
        manifest: What the model is; None until it is known.
        slots: Requests that it runs at once, at least 1.
        digest: Of its manifest with all files: other files, other digest.
        service_ms: Time of one request as it was measured at warm-up, in milliseconds; 0 if unknown.
        label: The part of the `Mesh-Route` header that names it.
    """

    node: NodeId
    node_name: str
    region: str
    zone: str
    model: str
    version: int
    state: ReplicaState
    reason: str = ""
    manifest: Manifest | None = None
    slots: int = 1
    digest: str = ""
    service_ms: float = 0.0
    label: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        label = (
            f"node={escape(self.node_name)}; region={escape(self.region)}; version={self.version}"
        )
        if self.manifest is not None and self.manifest.variant:
            label += f"; variant={escape(self.manifest.variant)}"
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "slots", max(1, self.slots))


@dataclass(frozen=True, slots=True)
class Goal:
    """A model version that a deployment wants.

    Attributes:
        manifest: What it is.
        digest: Of that manifest.
        placed: For people: where it belongs, or why nowhere.
        digests: Of all variants of the version, this one's included; empty where there is only one.
        standby: The nodes whose replicas are asked only where the others cannot answer.
        is_paused: Whether its deployment is paused: nobody is to serve it, whoever still could.
    """

    manifest: Manifest
    digest: str
    placed: str
    digests: frozenset[str] = frozenset()
    standby: frozenset[NodeId] = frozenset()
    is_paused: bool = False

    def takes(self, digest: str) -> bool:
        """Whether a replica with this digest is what is wanted."""
        return digest == self.digest or digest in self.digests


class ReplicaGroup:
    """All replicas of one model version. What follows from them is worked out when somebody asks.

    So a thousand replicas that come at once cost a thousand small steps, not a million.

    Attributes:
        version: Its number.
        goal: What a deployment wants it to be, or None.
        members: Every replica that was announced, by node.
        revision: Differs after every change; what is derived from the group is stale then.
    """

    __slots__ = (
        "_excluded", "_gone", "_is_loading", "_is_stale", "_manifest", "_ready", "goal", "members", "revision",
        "version",
    )  # fmt: skip

    def __init__(self, version: int, gone: Mapping[NodeId, NodeState]) -> None:
        """Begin without any.

        Args:
            version: Its number.
            gone: The nodes that died or left, kept up by the table, which says `changed` after a change.
        """
        self.version = version
        self.goal: Goal | None = None
        self.members: dict[NodeId, Replica] = {}
        self.revision = 0
        self._gone = gone
        self._is_stale = False
        self._ready: tuple[Replica, ...] = ()
        self._excluded: tuple[tuple[Replica, str], ...] = ()
        self._manifest: Manifest | None = None
        self._is_loading = False

    def __repr__(self) -> str:
        return (
            f"<ReplicaGroup version {self.version}: {len(self.ready)} ready of {len(self.members)}>"
        )

    @property
    def ready(self) -> tuple[Replica, ...]:
        """Those that may serve: state ready, node neither dead nor left, all of one digest."""
        self._settle()
        return self._ready

    @property
    def excluded(self) -> tuple[tuple[Replica, str], ...]:
        """The others, each with the reason."""
        self._settle()
        return self._excluded

    @property
    def manifest(self) -> Manifest | None:
        """What those that are ready serve, or else what is wanted or was announced; None until anybody said so."""
        self._settle()
        return self._manifest

    @property
    def is_loading(self) -> bool:
        """Whether a replica is on its way: fetching its files, or loading them."""
        self._settle()
        return self._is_loading

    @property
    def is_paused(self) -> bool:
        """Whether its deployment is paused."""
        return self.goal is not None and self.goal.is_paused

    def changed(self, revision: int) -> None:
        """Note that members, the goal or who is gone changed."""
        self.revision = revision
        self._is_stale = True

    def _settle(self) -> None:
        """Derive everything else from `members` again, if they have changed."""
        if not self._is_stale:
            return
        self._is_stale = False
        gone = self._gone
        ready: list[Replica] = []
        excluded: list[tuple[Replica, str]] = []
        for replica in self.members.values():
            if replica.node in gone:
                excluded.append((replica, f"node {gone[replica.node]}"))
            elif replica.state is not ReplicaState.READY:
                why = f": {replica.reason}" if replica.reason else ""
                excluded.append((replica, f"{replica.state}{why}"))
            else:
                ready.append(replica)
        digest = self._chosen(ready or self.members.values(), fallback=not ready)
        excluded += [
            (replica, "other files under the same version")
            for replica in ready
            if not self._agree(replica.digest, digest)
        ]
        self._ready = tuple(each for each in ready if self._agree(each.digest, digest))
        self._is_loading = any(
            each.state in _ON_THEIR_WAY and each.node not in gone for each in self.members.values()
        )
        self._excluded = tuple(excluded)
        self._manifest = self._manifest_of(digest)

    def _chosen(self, replicas: Collection[Replica], *, fallback: bool) -> str:
        """Return the digest that counts (see this module's text); of none ready, the wanted one."""
        counts = Counter(replica.digest for replica in replicas)
        if self.goal is not None and (fallback or any(map(self.goal.takes, counts))):
            return self.goal.digest
        return min(counts, key=lambda digest: (-counts[digest], digest), default="")

    def _agree(self, digest: str, chosen: str) -> bool:
        """Whether files serve beside those that count: the same, or another variant of what is wanted."""
        if digest == chosen:
            return True
        return self.goal is not None and self.goal.takes(chosen) and self.goal.takes(digest)

    def _manifest_of(self, digest: str) -> Manifest | None:
        goal = self.goal
        if goal is not None and goal.digest == digest:
            return goal.manifest
        # The smallest id, so that all gateways offer a model alike of which nodes say different things.
        said = [
            each
            for each in self.members.values()
            if each.digest == digest and each.manifest is not None
        ]
        manifest = min(said, key=lambda each: each.node).manifest if said else None
        if goal is None or manifest is None or goal.manifest.exposure == manifest.exposure:
            return manifest
        # Other files serve until those that are wanted do; they are offered as the deployment says.
        return structs.replace(manifest, exposure=goal.manifest.exposure)

    def why_none(self) -> str:
        """Say for people why no replica is ready: each one's reason, and what is planned."""
        reasons = [f"{replica.node_name}: {reason}" for replica, reason in self.excluded]
        if self.goal is not None:
            reasons.append(self.goal.placed)
        return "; ".join(reasons)


class ReplicaTable:
    """model -> version -> node -> replica, with who is ready worked out beforehand."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, ReplicaGroup]] = {}
        self._newest: dict[str, ReplicaGroup] = {}
        self._preferred: dict[str, int] = {}  # bounded by the deployments that have a release
        self._served_by: dict[NodeId, set[tuple[str, int]]] = {}
        self._gone: dict[NodeId, NodeState] = {}
        self._conditions: dict[NodeId, NodeConditions] = {}
        self._size = 0
        self._revision = 0

    def __repr__(self) -> str:
        return f"<ReplicaTable {self._size} replicas of {len(self._models)} models>"

    def __len__(self) -> int:
        return self._size

    # What changes it.

    def set(self, replica: Replica) -> bool:
        """Add or replace a replica; False if the table is full and the replica was not taken."""
        versions = self._models.get(replica.model)
        group = versions.get(replica.version) if versions is not None else None
        if group is None or replica.node not in group.members:
            if not self._has_room(replica):
                return False
            if versions is None:
                versions = self._models[replica.model] = {}
            if group is None:
                group = versions[replica.version] = ReplicaGroup(replica.version, self._gone)
            self._served_by.setdefault(replica.node, set()).add((replica.model, replica.version))
            self._size += 1
        elif group.members[replica.node] == replica:
            return True
        group.members[replica.node] = replica
        self._refresh(replica.model, replica.version)
        return True

    def want(self, model: str, goals: Mapping[int, Goal]) -> None:
        """Take which versions of a model are deployed now; none if it is not.

        Their number is bounded where deployments are kept.
        """
        versions = self._models.get(model, {})
        if goals:
            versions = self._models.setdefault(model, versions)
        # What is wanted comes first: a model that lost all its versions meanwhile would be dropped.
        for version in dict.fromkeys((*goals, *versions)):
            goal = goals.get(version)
            group = versions.get(version)
            if group is None:
                group = versions[version] = ReplicaGroup(version, self._gone)
            if group.goal != goal:
                group.goal = goal
                self._refresh(model, version)

    def prefer(self, model: str, version: int | None) -> None:
        """Take which version of a model counts as its newest while it is ready; None for the highest."""
        if self._preferred.get(model) == version:
            return
        if version is None:
            del self._preferred[model]
        else:
            self._preferred[model] = version
        self._newest.pop(model, None)
        self._revision += 1

    def remove(self, node: NodeId, model: str, version: int) -> None:
        """Forget a replica; nothing happens if there is none."""
        group = self.group(model, version)
        if group is None or group.members.pop(node, None) is None:
            return
        served = self._served_by[node]
        served.discard((model, version))
        if not served:
            del self._served_by[node]
        self._size -= 1
        self._refresh(model, version)

    def remove_node(self, node: NodeId) -> None:
        """Forget a node and all its replicas."""
        for model, version in self.served_by(node):
            self.remove(node, model, version)
        self._gone.pop(node, None)
        self._conditions.pop(node, None)

    def node_state(self, node: NodeId, state: NodeState) -> None:
        """Take a member's state: replicas of dead nodes and of those that left are none to use.

        A suspect stays a candidate: gossip never gates failover (DESIGN.md, section 6). The
        memory of who is gone is bounded by membership, which reports members only.
        """
        if (self._gone.get(node) == state) or (state not in _GONE and node not in self._gone):
            return
        if state in _GONE:
            self._gone[node] = state
        else:
            del self._gone[node]
        for model, version in self.served_by(node):
            self._refresh(model, version)

    def conditions_changed(self, node: NodeId, conditions: NodeConditions) -> None:
        """Take a member's conditions; bounded as `node_state` is."""
        if self.conditions(node) == conditions:
            return
        self._conditions[node] = conditions
        for model, version in self.served_by(node):  # who is ready does not depend on them
            self._revision += 1
            self._models[model][version].revision = self._revision

    # What reads it.

    def conditions(self, node: NodeId) -> NodeConditions:
        """Return a node's conditions."""
        return self._conditions.get(node, USUAL)

    def resolve(self, model: str, version: int | None) -> int:
        """Return the version to use: the one asked for, or the newest that has a ready replica.

        The newest is the highest, or during a release the one that serves meanwhile (`prefer`).

        Raises:
            ModelNotFound, NoReplica: as `lookup` does.
        """
        return self.lookup(model, version).version

    def lookup(self, model: str, version: int | None) -> ReplicaGroup:
        """Return the group to use: of the version asked for, or the newest that is ready.

        Raises:
            ModelNotFound: if the model or the version is neither announced by a node nor deployed.
            NoReplica: if it is, but no replica is ready; the message says why.
        """
        if version is None:
            newest = self._newest_ready(model)
            if newest is not None and not newest.is_paused:
                return newest
        versions = self._models.get(model)
        if versions is None:
            raise ModelNotFound(f"no node of this mesh has a model {model!r}")
        if any(each.is_paused for each in versions.values()):
            raise NoReplica(
                f"the deployment of model {model!r} is paused, so nobody serves it; resume it with: meshnode resume {model}"
            )
        if version is None:
            raise NoReplica(
                f"no replica of model {model!r} is ready: {self._newest_of(model, versions).why_none()}"
            )
        group = versions.get(version)
        if group is None:
            known = ", ".join(str(number) for number in sorted(versions))
            raise ModelNotFound(f"model {model!r} has no version {version}; there is {known}")
        if not group.ready:
            raise NoReplica(
                f"no replica of model {model!r} version {version} is ready: {group.why_none()}"
            )
        return group

    def coming(self, model: str, version: int | None) -> ReplicaGroup | None:
        """Return the group that may soon have a ready replica: of the version asked for, else the newest; or None.

        One of which a replica loads comes before one that is only wanted.
        """
        versions = self._models.get(model, {})
        numbers = self._by_preference(model, versions) if version is None else [version]
        groups = [versions[number] for number in numbers if number in versions]
        groups = [each for each in groups if not each.is_paused]
        loading = next((each for each in groups if each.is_loading), None)
        return loading or next((each for each in groups if each.goal is not None), None)

    def group(self, model: str, version: int) -> ReplicaGroup | None:
        """Return the replicas of a model version together with what is derived from them."""
        versions = self._models.get(model)
        return versions.get(version) if versions is not None else None

    def replicas(self, model: str, version: int) -> tuple[Replica, ...]:
        """Return all replicas of a model version, ready or not; empty if it is unknown."""
        group = self.group(model, version)
        return tuple(group.members.values()) if group is not None else ()

    def models(self) -> dict[str, tuple[int, ...]]:
        """Return the versions, announced or deployed, of each model, ascending; models by name."""
        return {name: self.versions(name) for name in sorted(self._models)}

    def versions(self, model: str) -> tuple[int, ...]:
        """Return the versions of a model, announced or deployed, ascending."""
        return tuple(sorted(self._models.get(model, ())))

    def manifest(self, model: str, version: int) -> Manifest | None:
        """Return what a model version is, or None if nobody has said so."""
        group = self.group(model, version)
        return group.manifest if group is not None else None

    @property
    def revision(self) -> int:
        """Differs after every change of who serves or is wanted to serve."""
        return self._revision

    def usual(self, model: str) -> Manifest | None:
        """Return what a model is to those who name no version, or None if nobody has said so.

        That is the version that answers them, as `lookup` finds it, or else the newest of which is known what it is.
        """
        ready = self._newest_ready(model)
        if ready is not None and ready.manifest is not None:
            return ready.manifest
        versions = self._models.get(model, {})
        told = (versions[number].manifest for number in self._by_preference(model, versions))
        return next((manifest for manifest in told if manifest is not None), None)

    def manifests(self) -> Iterator[Manifest]:
        """Yield what each model is to those who name no version (`usual`)."""
        for name in self._models:
            if (manifest := self.usual(name)) is not None:
                yield manifest

    def served_by(self, node: NodeId) -> tuple[tuple[str, int], ...]:
        """Return the (model, version) pairs that a node has announced, sorted."""
        return tuple(sorted(self._served_by.get(node, ())))

    def _has_room(self, replica: Replica) -> bool:
        return (
            self._size < MAX_TABLE_REPLICAS
            and len(self._served_by.get(replica.node, ())) < MAX_REPLICAS_PER_NODE
            and (replica.model in self._models or len(self._models) < MAX_MODELS)
        )

    def _refresh(self, model: str, version: int) -> None:
        versions = self._models[model]
        group = versions[version]
        self._revision += 1
        group.changed(self._revision)
        self._newest.pop(model, None)
        if not group.members and group.goal is None:
            del versions[version]
            if not versions:
                del self._models[model]

    def _newest_ready(self, model: str) -> ReplicaGroup | None:
        """Return the newest version that is ready, or None; found once after each change."""
        known = self._newest.get(model)
        if known is None:
            versions = self._models.get(model, {})
            for number in self._by_preference(model, versions):
                if versions[number].ready:
                    known = self._newest[model] = versions[number]
                    break
        return known

    def _newest_of(self, model: str, versions: Mapping[int, ReplicaGroup]) -> ReplicaGroup:
        """Return the group of the newest version, ready or not."""
        return versions[self._by_preference(model, versions)[0]]

    def _by_preference(self, model: str, versions: Iterable[int]) -> list[int]:
        """Return versions, the one first that counts as the newest."""
        preferred = self._preferred.get(model)
        return sorted(versions, key=lambda number: (number == preferred, number), reverse=True)
