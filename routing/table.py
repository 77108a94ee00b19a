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
that most ready replicas have, the smallest of equals, so that all gateways decide alike.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshnode.errors import ModelNotFound, NoReplica
from meshnode.limits import MAX_MODELS, MAX_REPLICAS_PER_NODE, MAX_TABLE_REPLICAS
from meshnode.routing.header import escape
from meshnode.types import NodeId, NodeState, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from meshnode.models.manifest import Manifest

_GONE = (NodeState.DEAD, NodeState.LEFT)


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
    label: str = field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        label = (
            f"node={escape(self.node_name)}; region={escape(self.region)}; version={self.version}"
        )
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "slots", max(1, self.slots))


@dataclass(frozen=True, slots=True)
class Goal:
    """A model version that a deployment wants.

    Attributes:
        manifest: What it is.
        digest: Of that manifest.
        placed: For people: where it belongs, or why nowhere.
    """

    manifest: Manifest
    digest: str
    placed: str


class ReplicaGroup:
    """All replicas of one model version.

    Attributes:
        version: Its number.
        goal: What a deployment wants it to be, or None.
        members: Every replica that was announced, by node.
        ready: Those that may serve: state ready, node neither dead nor left, all of one digest.
        excluded: The others, each with the reason.
        revision: Differs after every change; what is derived from the group is stale then.
        manifest: What those that are ready serve, or else what is wanted or was announced; None
            until anybody said so.
    """

    __slots__ = ("excluded", "goal", "manifest", "members", "ready", "revision", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.goal: Goal | None = None
        self.members: dict[NodeId, Replica] = {}
        self.ready: tuple[Replica, ...] = ()
        self.excluded: tuple[tuple[Replica, str], ...] = ()
        self.revision = 0
        self.manifest: Manifest | None = None

    def __repr__(self) -> str:
        return (
            f"<ReplicaGroup version {self.version}: {len(self.ready)} ready of {len(self.members)}>"
        )

    def refresh(self, gone: Mapping[NodeId, NodeState], revision: int) -> None:
        """Derive everything else from `members` again."""
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
            if replica.digest != digest
        ]
        self.ready = tuple(replica for replica in ready if replica.digest == digest)
        self.excluded = tuple(excluded)
        self.manifest = self._manifest_of(digest)
        self.revision = revision

    def _chosen(self, replicas: Collection[Replica], *, fallback: bool) -> str:
        """Return the digest that counts (see this module's text); of none ready, the wanted one."""
        counts = Counter(replica.digest for replica in replicas)
        if self.goal is not None and (fallback or self.goal.digest in counts):
            return self.goal.digest
        return min(counts, key=lambda digest: (-counts[digest], digest), default="")

    def _manifest_of(self, digest: str) -> Manifest | None:
        if self.goal is not None and self.goal.digest == digest:
            return self.goal.manifest
        said = (each.manifest for each in self.members.values() if each.digest == digest)
        return next((manifest for manifest in said if manifest is not None), None)

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
        self._served_by: dict[NodeId, set[tuple[str, int]]] = {}
        self._gone: dict[NodeId, NodeState] = {}
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
                group = versions[replica.version] = ReplicaGroup(replica.version)
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
                group = versions[version] = ReplicaGroup(version)
            if group.goal != goal:
                group.goal = goal
                self._refresh(model, version)

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

    # What reads it.

    def resolve(self, model: str, version: int | None) -> int:
        """Return the version to use: the one asked for, or the highest that has a ready replica.

        Raises:
            ModelNotFound, NoReplica: as `lookup` does.
        """
        return self.lookup(model, version).version

    def lookup(self, model: str, version: int | None) -> ReplicaGroup:
        """Return the group to use: of the version asked for, or the highest that is ready.

        Raises:
            ModelNotFound: if the model or the version is neither announced by a node nor deployed.
            NoReplica: if it is, but no replica is ready; the message says why.
        """
        if version is None:
            newest = self._newest.get(model)
            if newest is not None:
                return newest
        versions = self._models.get(model)
        if versions is None:
            raise ModelNotFound(f"no node of this mesh has a model {model!r}")
        if version is None:
            raise NoReplica(
                f"no replica of model {model!r} is ready: {versions[max(versions)].why_none()}"
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
        group.refresh(self._gone, self._revision)
        if not group.members and group.goal is None:
            del versions[version]
            if not versions:
                del self._models[model]
        ready = [number for number, each in versions.items() if each.ready]
        if ready:
            self._newest[model] = versions[max(ready)]
        else:
            self._newest.pop(model, None)
