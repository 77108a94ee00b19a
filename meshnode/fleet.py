"""The mesh's nodes as placement sees them, and where all deployments belong on them.

What a node is comes from its signed record, and what it says of itself for placement from its own state
(`meshnode.suitability`): both reach every node, so all of them place alike. A record's capabilities are free words of
its node: what makes no sense counts as nothing, so that no record can stop the others from placing.

A release that is on its way has a place of its own for its new version: a claim as of a deployment that is as old as the
release, so that it moves nothing that was there before, and lies where the old version lies as long as there is room
for both (`Resident`).

All deployments are placed together (`meshnode.routing.packing`), and only when something has changed that matters to
one of them. What each deployment makes of each node is kept until the node or the deployment is another one: of
1,000 nodes and 100 deployments a change of one node costs 100 looks, not 100,000.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.deployments import ALL_RESIDENT, Known, Resident, Target, known_of
from meshnode.fleet_node import FleetNode
from meshnode.routing.packing import Budget, Claim, pack
from meshnode.routing.placement import Charge, Option, Placement, draw
from meshnode.suitability import NOTHING_SAID, mark_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from meshnode.membership.member import Member
    from meshnode.state.deployment import Deployment
    from meshnode.suitability import Suitability
    from meshnode.types import NodeId

HAS_FILES_BONUS: Final = 1.5
"""What a deployment's score of a node is multiplied by that has all its files on disk. So a node counts as about equal
to one that scores up to half as much again, and of two such nodes the one that only has to load is taken. It gets no
node out of a placement that it is in: who is in it soon has the files too."""

_CANDIDATE: Final = "\0candidate"
"""What is added to a deployment's name for its new version: no name of a model has a NUL."""

_NOWHERE: Final = Placement((), (), (), 0, paused=True)


class Fleet:
    """The mesh's nodes as placement sees them, and the placements that follow."""

    def __init__(
        self,
        draining: Container[NodeId] = (),
        wanted: Callable[[Deployment], int] = lambda deployment: deployment.replicas,
        resident: Callable[[Known], Resident] = lambda _known: ALL_RESIDENT,
    ) -> None:
        """Begin without nodes and deployments.

        Args:
            draining: Nodes that are to be emptied, and so take nothing; a live view.
            wanted: How many replicas a deployment is to have now; of one that has none, nothing stands by either.
            resident: Which of a deployment's versions are wanted now.
        """
        self._draining = draining
        self._replicas_of = wanted
        self._resident = resident
        self._nodes: dict[NodeId, FleetNode] = {}
        self._said: dict[NodeId, Suitability] = {}
        self._known: dict[str, Known] = {}
        self._wanted: dict[
            str, _Wanted
        ] = {}  # by name; what a release brings by name and `_CANDIDATE`
        self._placements: dict[str, Placement] = {}
        self._is_stale = False
        self._moved: set[str] = (
            set()
        )  # names whose placements differ from those that were last told

    def __repr__(self) -> str:
        return f"<Fleet of {len(self._nodes)} nodes, {len(self._known)} deployments>"

    # What changes it; each returns whether placements may differ from before.

    def update(self, members: Iterable[Member]) -> bool:
        """Take the members as they are now."""
        nodes = {member.node_id: self._node(member) for member in members}
        if nodes == self._nodes:
            return False
        for node_id, node in nodes.items():  # what is the same stays the same object: see `_Wanted`
            if self._nodes.get(node_id) != node:
                self._nodes[node_id] = node
        for node_id in [*self._nodes.keys() - nodes.keys()]:
            del self._nodes[node_id]
        return self._changed()

    def take(self, member: Member, members: Mapping[NodeId, Member]) -> bool:
        """Take one member as it is now.

        Args:
            member: The one that has changed.
            members: All of them: whom they have lost in silence is dropped too. Looking at each with
                every change would cost a large mesh the square of its size when it starts.
        """
        node = self._node(member)
        is_new = self._nodes.get(member.node_id) != node
        if is_new:
            self._nodes[member.node_id] = node
            self._changed()
        return (len(self._nodes) > len(members) and self.update(members.values())) or is_new

    def drop(self, node_id: NodeId) -> bool:
        """Drop a member."""
        self._said.pop(node_id, None)
        return self._nodes.pop(node_id, None) is not None and self._changed()

    def said(self, node_id: NodeId, suitability: Suitability) -> bool:
        """Take what a node says of itself for placement; it is forgotten with the node."""
        if self._said.get(node_id, NOTHING_SAID) == suitability:
            return False
        if suitability == NOTHING_SAID:
            del self._said[node_id]
        else:
            self._said[node_id] = suitability
        return self._changed()

    def want(self, name: str, known: Known | None) -> bool:
        """Take a deployment as it is now, or that there is none of this name."""
        if known is None:
            self._wanted.pop(name, None)
            self._wanted.pop(name + _CANDIDATE, None)
            return self._known.pop(name, None) is not None and self._changed()
        if self._known.get(name) is known:
            return False
        self._known[name] = known
        self._wanted.pop(name, None)
        self._wanted.pop(name + _CANDIDATE, None)
        return self.wanted_changed(name)

    def wanted_changed(self, name: str) -> bool:
        """Take that a deployment is to have another number of replicas now, or other ones of its versions."""
        known = self._known.get(name)
        if known is None:
            return False
        for key, part in self._parts(known).items():
            before = self._wanted.get(key)
            if part is None:
                self._wanted.pop(key, None)
            elif before is None or before.known.versions != part.versions:
                self._wanted[key] = _Wanted(part, is_candidate=key != name)
        return self._changed()

    def _parts(self, known: Known) -> dict[str, Known | None]:
        """Return what of a deployment is placed, by the name of its claim."""
        name, resident = known.deployment.name, self._resident(known)
        main = known if resident.versions is None else known.only(resident.versions)
        candidate = None if resident.candidate is None else known.only((resident.candidate,))
        return {name: main, name + _CANDIDATE: candidate}

    def _changed(self) -> bool:
        self._is_stale = True
        return True

    # What is asked.

    def moved(self) -> set[str]:
        """Return the deployments whose placements differ, in more than the order of those that are next."""
        self._settle()
        moved, self._moved = self._moved, set()
        return moved

    def placement(self, deployment: Deployment) -> Placement:
        """Return where a deployment's replicas belong; the same on every node.

        One that is not wanted (`want`), or otherwise, is placed as if it were: beside all others.
        """
        wanted = self._wanted.get(deployment.name)
        if wanted is None or wanted.known.deployment != deployment:
            main = self._parts(known_of(deployment))[deployment.name]
            assert main is not None
            return self._placed({**self._wanted, deployment.name: _Wanted(main)})[deployment.name]
        self._settle()
        return self._placements[deployment.name]

    def parts(self, known: Known) -> list[Part]:
        """Return where the versions of a deployment belong that are wanted now.

        Args:
            known: One that is wanted.
        """
        name = known.deployment.name
        if name + _CANDIDATE not in self._wanted:
            wanted = self._wanted.get(name)
            part = known if wanted is None else wanted.known
            return [Part(part.versions, self.placement(known.deployment))]
        self._settle()
        candidate = self._wanted[name + _CANDIDATE]
        return [
            Part(self._wanted[name].known.versions, self._placements[name]),
            Part(
                candidate.known.versions,
                self._placements[name + _CANDIDATE],
                is_candidate=True,
                failing=candidate.failing,
            ),
        ]

    def placement_of(self, known: Known, version: int) -> Placement | None:
        """Return where one version of a deployment belongs; None if it is not wanted now."""
        found = (each.placement for each in self.parts(known) if version in each.versions)
        return next(found, None)

    def chosen(self, node_id: NodeId, known: Known, version: int) -> Target:
        """Return the variant of a version that a node takes; the first where none suits it."""
        variants = known.versions[version]
        node = self._nodes.get(node_id)
        if node is None or len(variants) == 1:
            return variants[0]
        return node.choice(variants, known.deployment) or variants[0]

    def charge(self, node_id: NodeId, target: Target, deployment: Deployment) -> Charge:
        """Return what a version takes of a node; nothing of one that is not there."""
        node = self._nodes.get(node_id)
        return Charge() if node is None else node.charge([target], deployment)

    def budget(self, node_id: NodeId) -> Budget:
        """Return what a node has for replicas; nothing is counted of one that is not there."""
        node = self._nodes.get(node_id)
        return Budget() if node is None else node.budget

    def is_lasting(self, node_id: NodeId, deployment: Deployment) -> bool:
        """Whether a node that cannot take a deployment is there, so that waiting changes nothing."""
        node = self._nodes.get(node_id)
        is_left_out = bool(deployment.on) and node_id not in deployment.on
        return node is not None and (is_left_out or not node.absent)

    def _settle(self) -> None:
        if not self._is_stale:
            return
        self._is_stale = False
        before, self._placements = self._placements, self._placed(self._wanted)
        names = before.keys() | self._placements.keys()
        self._moved.update(
            name.removesuffix(_CANDIDATE)
            for name in names
            if _told(before.get(name)) != _told(self._placements.get(name))
        )

    def _placed(self, wanted: Mapping[str, _Wanted]) -> dict[str, Placement]:
        for node_id in [*self._said.keys() - self._nodes.keys()]:
            del self._said[node_id]
        claims = [
            each.claim(name, self._nodes, self._said, self._replicas_of(each.known.deployment))
            for name, each in wanted.items()
            if each.known.deployment.enabled
        ]
        placed = pack(claims, {node_id: node.budget for node_id, node in self._nodes.items()})
        return dict.fromkeys(wanted, _NOWHERE) | placed

    def _node(self, member: Member) -> FleetNode:
        return FleetNode.of(member, is_draining=member.node_id in self._draining)


class Part(NamedTuple):
    """Versions of a deployment that are placed together.

    Attributes:
        versions: All variants of each, by number.
        placement: Where they belong.
        is_candidate: Whether a release brings it.
        failing: The nodes on which it could not be loaded, again and again, each with the reason.
    """

    versions: Mapping[int, tuple[Target, ...]]
    placement: Placement
    is_candidate: bool = False
    failing: Mapping[NodeId, str] = MappingProxyType({})


class _Wanted:
    """A deployment, or what a release brings of it, and what it makes of each node.

    Attributes:
        known: It, decoded.
        is_candidate: Whether a release brings it.
    """

    __slots__ = ("_claim", "_draws", "_looks", "_seen", "is_candidate", "known")

    def __init__(self, known: Known, *, is_candidate: bool = False) -> None:
        self.known = known
        self.is_candidate = is_candidate
        self._draws: dict[NodeId, float] = {}
        # What was looked at last, and what came of it: an option, or why it is none.
        self._seen: dict[NodeId, tuple[FleetNode, Suitability]] = {}
        self._looks: dict[NodeId, _Look] = {}
        self._claim: Claim | None = None

    @property
    def failing(self) -> Mapping[NodeId, str]:
        """The nodes on which it could not be loaded, with the reason, as they were looked at last."""
        return {node_id: look.failing for node_id, look in self._looks.items() if look.failing}

    def claim(
        self,
        name: str,
        nodes: Mapping[NodeId, FleetNode],
        said: Mapping[NodeId, Suitability],
        replicas: int,
    ) -> Claim:
        """Return the deployment as it is to be placed among these nodes.

        Args:
            name: Of the claim.
            nodes: All of them.
            said: What they say of themselves; nothing, where they are not named.
            replicas: How many are to serve it.
        """
        if self.is_candidate:
            replicas = max(
                1, replicas
            )  # else a deployment that sleeps would never show what it brings
        seen = self._seen
        fresh = {}
        for node_id, node in nodes.items():
            word = said.get(node_id, NOTHING_SAID)
            before = seen.get(node_id)
            if before is None or before[0] is not node or before[1] is not word:
                fresh[node_id] = (node, word)
        gone = [] if len(seen) + len(fresh) == len(nodes) else [*seen.keys() - nodes.keys()]
        for node_id in gone:
            del seen[node_id], self._looks[node_id]
            self._draws.pop(node_id, None)
        before_claim = self._claim
        if (
            before_claim is not None
            and not fresh
            and not gone
            and before_claim.replicas == replicas
        ):
            return before_claim
        seen.update(fresh)
        changed = bool(gone) or before_claim is None or before_claim.replicas != replicas
        for node_id, (node, word) in fresh.items():
            look = self._look(node, word)
            changed |= self._looks.get(node_id) != look
            self._looks[node_id] = look
        if changed or before_claim is None:
            self._claim = self._made(name, nodes, replicas)
            return self._claim
        return before_claim

    def _look(self, node: FleetNode, said: Suitability) -> _Look:
        deployment, node_id = self.known.deployment, node.node_id
        if deployment.on and node_id not in deployment.on:
            return _Look(None, "not one of the nodes that the deployment is pinned to")
        reason, targets = node.why_not(self.known)
        if reason:
            return _Look(None, reason)
        score = self._draws.get(node_id) or draw(deployment.name, node_id)
        self._draws[node_id] = score
        score *= node.weight
        if said.files and all(each.files in said.files for each in targets):
            score *= HAS_FILES_BONUS
        option = Option(score, node_id, node.region, node.charge(targets, deployment))
        return _Look(option, "", _why_failing(said, targets))

    def _made(self, name: str, nodes: Mapping[NodeId, FleetNode], replicas: int) -> Claim:
        deployment = self.known.deployment
        standby, since_ms = deployment.standby if replicas else 0, deployment.since_ms
        if self.is_candidate:
            begun_ms = 0 if deployment.release is None else deployment.release.begun_ms
            standby, since_ms = 0, max(since_ms, begun_ms)
        unfit = [(node_id, look.reason) for node_id, look in self._looks.items() if look.reason]
        strangers = (node_id for node_id in deployment.on if node_id not in nodes)
        unfit += [(node_id, "not a node of this mesh") for node_id in strangers]
        return Claim(
            name,
            replicas,
            [look.option for look in self._looks.values() if look.option is not None],
            standby,
            tuple(sorted(unfit)),
            self.failing,
            is_pinned=bool(deployment.on),
            since_ms=since_ms,
        )


def _told(placement: Placement | None) -> Placement | None:
    """Return what follows from a placement: of its ranking nothing but who is first."""
    return placement and replace(placement, ranking=placement.ranking[:1])


@dataclass(frozen=True, slots=True)
class _Look:
    """What a deployment makes of a node."""

    option: Option | None
    reason: str = ""  # why it is none
    failing: str = ""  # why it is one that does not count


def _why_failing(said: Suitability, targets: Iterable[Target]) -> str:
    for each in targets if said.failing else ():
        mark = mark_of(each.digest)
        for failing in said.failing:
            if failing.mark == mark and failing.model == each.manifest.model:
                return f"it could not be loaded there, several times: {failing.why}"
    return ""
