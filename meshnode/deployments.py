"""The deployments of the mesh and where they belong, worked out once for each change.

`Deployments` reads them from the desired state. Its values come from any operator of the mesh, in
whatever version of meshnode that runs, so one that is no deployment is left alone, never an error.

`Fleet` is the nodes as placement sees them. A record's capabilities are free words of its node:
what makes no sense counts as nothing, so that no record can stop the others from placing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.capabilities import cpus_of, memory_of, paused_of, runtimes_of
from meshnode.errors import MeshError
from meshnode.limits import MAX_PLACEMENT_CPUS
from meshnode.owner_limits import load_estimate_bytes, size_text
from meshnode.routing.placement import Placement, PlacementNode
from meshnode.routing.placement import placement as place
from meshnode.state.deployment import KEY_PREFIX, Deployment
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.membership.member import Member
    from meshnode.models.manifest import Manifest
    from meshnode.state.desired import DesiredState
    from meshnode.types import NodeId


_NAMED_NODES: Final = 4
"""Nodes that a sentence about a placement names; the mesh's own list has all."""


@dataclass(frozen=True, slots=True)
class Target:
    """A version that a deployment wants, with its digest, which costs a hash to compute."""

    manifest: Manifest
    digest: str


@dataclass(frozen=True, slots=True)
class Known:
    """A deployment, decoded, and its versions."""

    deployment: Deployment
    targets: tuple[Target, ...]


class Deployments:
    """The deployments as the desired state holds them at this moment."""

    def __init__(self, desired: DesiredState) -> None:
        """Read from `desired`."""
        self._desired = desired
        # By name: the value it was decoded from, and what came of it. Bounded as the desired state.
        self._decoded: dict[str, tuple[bytes, Known | str]] = {}

    def __repr__(self) -> str:
        return f"<Deployments: {len(self._decoded)} decoded>"

    def names(self) -> list[str]:
        """Return the names of all deployments, those that are none included, sorted."""
        return [
            key.removeprefix(KEY_PREFIX)
            for key, _ in self._desired.items()
            if key.startswith(KEY_PREFIX)
        ]

    def get(self, name: str) -> Known | None:
        """Return what is deployed under a name, or None."""
        found = self._look_up(name)
        return found if isinstance(found, Known) else None

    def flaw(self, name: str) -> str | None:
        """Return why the value under a name is no deployment, or None if it is one or is absent."""
        found = self._look_up(name)
        return found if isinstance(found, str) else None

    def _look_up(self, name: str) -> Known | str | None:
        value = self._desired.get(KEY_PREFIX + name)
        if value is None:
            self._decoded.pop(name, None)
            return None
        before = self._decoded.get(name)
        if before is not None and before[0] == value:
            return before[1]
        found = _decode(name, value)
        self._decoded[name] = (value, found)
        return found


class Fleet:
    """The mesh's nodes as placement sees them, and the placements that follow."""

    def __init__(self) -> None:
        """Begin without nodes."""
        self._nodes: dict[NodeId, _FleetNode] = {}
        self._placements: dict[str, tuple[Deployment, Placement]] = {}

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._nodes)} nodes, {len(self._placements)} placements known>"

    def update(self, members: Iterable[Member]) -> bool:
        """Take the members as they are now; return whether placements may differ from before."""
        nodes = {member.node_id: _FleetNode.of(member) for member in members}
        if nodes == self._nodes:
            return False
        self._nodes = nodes
        self._placements.clear()
        return True

    def take(self, member: Member, members: Mapping[NodeId, Member]) -> bool:
        """Take one member as it is now; return whether placements may differ from before.

        Args:
            member: The one that has changed.
            members: All of them: whom they have lost in silence is dropped too. Looking at each with
                every change would cost a large mesh the square of its size when it starts.
        """
        node = _FleetNode.of(member)
        is_new = self._nodes.get(member.node_id) != node
        if is_new:
            self._nodes[member.node_id] = node
            self._placements.clear()
        return (len(self._nodes) > len(members) and self.update(members.values())) or is_new

    def drop(self, node_id: NodeId) -> bool:
        """Drop a member; return whether placements may differ from before."""
        if self._nodes.pop(node_id, None) is None:
            return False
        self._placements.clear()
        return True

    def placement(self, deployment: Deployment) -> Placement:
        """Compute where a deployment's replicas belong; the same on every node."""
        known = self._placements.get(deployment.name)
        if known is not None and known[0] == deployment:
            return known[1]
        runtimes = {manifest.runtime for manifest in deployment.manifests}
        # One version at a time: a node may hold one of several and still be of use.
        need_bytes = max(
            (load_estimate_bytes(each.size_bytes) for each in deployment.manifests), default=0
        )
        nodes = [node.placeable(runtimes, need_bytes) for node in self._nodes.values()]
        made = place(deployment.name, deployment.replicas, deployment.on, nodes)
        self._placements[deployment.name] = (deployment, made)
        return made

    def forget(self, name: str) -> None:
        """Drop the placement of a deployment that is no more."""
        self._placements.pop(name, None)


def describe(placement: Placement, name_of: Callable[[NodeId], str]) -> str:
    """Say for people where a deployment belongs, or why nowhere."""
    if placement.nodes:
        names = [name_of(node) for node in placement.nodes[:_NAMED_NODES]]
        more = len(placement.nodes) - len(names)
        return f"it is placed on {', '.join(names)}" + (f" and {more} more" if more else "")
    reasons = [f"{name_of(node)}: {reason}" for node, reason in placement.ineligible[:_NAMED_NODES]]
    more = len(placement.ineligible) - len(reasons)
    reasons += [f"and {more} more"] if more else []
    return f"no node can take it ({'; '.join(reasons) or 'none was asked for'})"


@dataclass(frozen=True, slots=True)
class _FleetNode:
    node_id: NodeId
    region: str
    weight: float
    absent: str  # why it is not there or serves nobody, or empty
    runtimes: frozenset[str]
    memory_bytes: int  # 0 if it does not say

    @classmethod
    def of(cls, member: Member) -> _FleetNode:
        facts = member.record.capabilities
        paused = paused_of(facts)
        absent = f"paused: {paused}" if paused else ""
        if member.state not in (NodeState.ALIVE, NodeState.SUSPECT):
            absent = f"it is {member.state}"
        return cls(
            member.node_id,
            member.record.region,
            min(MAX_PLACEMENT_CPUS, max(1.0, float(cpus_of(facts)))),
            absent,
            frozenset(runtimes_of(facts)),
            memory_of(facts),
        )

    def placeable(self, runtimes: set[str], need_bytes: int) -> PlacementNode:
        reason = self.absent
        if not reason and 0 < self.memory_bytes < need_bytes:
            reason = (
                f"it would take about {size_text(need_bytes)} of memory, and this node has "
                f"{size_text(self.memory_bytes)} for it"
            )
        missing = sorted(runtimes - self.runtimes)
        if not reason and missing:
            reason = f"it has no runtime {missing[0]!r}"
        return PlacementNode(self.node_id, self.region, self.weight, not reason, reason)


def _decode(name: str, value: bytes) -> Known | str:
    try:
        deployment = Deployment.decode(value)
    except MeshError as error:
        return str(error)
    if deployment.name != name:
        return f"the value under {name!r} is a deployment of {deployment.name!r}"
    targets = tuple(Target(manifest, manifest.digest) for manifest in deployment.manifests)
    return Known(deployment, targets)
