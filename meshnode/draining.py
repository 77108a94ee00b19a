"""How a node is emptied: what keeps it, in which order it goes, and when nothing is left.

    handing over   replicas serve until others do; sequences that began here go on, for as long as they may
        │ nothing is kept, no sequence is open (or the time for them is over)
        v    ^ a replica is kept again: who took over is gone, or another one came
    withdrawn      its replicas are told to be paused, so that no gateway sends anything; what runs is finished
        │ nothing runs, no job is left (or the time for them is over)
        v
    drained        it may be stopped

The node is a gateway and a source of files all along: its `/readyz` says no, so that balancers go elsewhere, and who
asks it still is answered by others. What comes that way later does not make a drained node another one: nothing
leads back but taking the drain back.

A replica goes when others serve instead (`reconcile` unloads it then) or, of the node's own folder, when another
node serves the same files. Until then it serves on: a drain leaves no gap. What nobody else can take over blocks
it, and is given up only by force. Force does not wait longer than it was told to, either: where the time is over, what
has not come elsewhere by then is given up too.

A node that starts begins with neither: what its own folder holds is unknown until that was looked through once.

| replica | kept until | blocks if |
|---|---|---|
| of a deployment | the nodes of the placement, which this one is none of, serve it | the placement is empty, or it failed there |
| of the node's own folder | another node that is not drained itself serves these files | there is none |
| on its way in or out | it has come, or gone | never |
| failed | never kept | never |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from meshnode.deployments import describe
from meshnode.limits import (
    DRAIN_HAND_OVER_S,
    MAX_DRAIN_REASONS,
    MAX_DRAIN_REASONS_BYTES,
    MAX_REASON_BYTES,
)
from meshnode.state.drain import DrainReport, DrainState
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from meshnode.deployments import Deployments
    from meshnode.directory import Directory
    from meshnode.fleet import Fleet
    from meshnode.reconcile import OwnReplica
    from meshnode.routing.placement import Placement
    from meshnode.state.drain import Drain, Drains


WITHDRAWN = "it is drained"
"""Why a replica serves nobody any more whose node is emptied."""


class Work(NamedTuple):
    """What a node still does.

    Attributes:
        for_peers: Requests that it answers for other nodes' gateways.
        for_callers: Requests that came to its own gateway.
        sequences: Sequences that began on its replicas and have not ended.
        jobs: Jobs that it keeps.
        is_settled: Whether its own model folder was looked through since it started, if it has one.
    """

    for_peers: int = 0
    for_callers: int = 0
    sequences: int = 0
    jobs: int = 0
    is_settled: bool = True


class Step(NamedTuple):
    """What a look at a node that is drained says.

    Attributes:
        report: What the mesh is told.
        is_withdrawn: Whether its replicas are to serve nobody.
        is_overdue: Whether what takes longer than it may is to be ended.
    """

    report: DrainReport
    is_withdrawn: bool
    is_overdue: bool


class Course:
    """One drain of one node, from when it heard of it."""

    def __init__(self, drain: Drain, now: float) -> None:
        """Begin.

        Args:
            drain: What is wanted.
            now: Monotonic seconds.
        """
        self.drain = drain
        self._begun = now
        self._is_withdrawn = False
        self._ended = 0
        self._drained: DrainReport | None = None

    def __repr__(self) -> str:
        where = "withdrawn" if self._is_withdrawn else "handing over"
        return f"<Course of a drain since {self.drain.since_s}, {where}>"

    def look(self, kept: Collection[Kept], work: Work, now: float) -> Step:
        """Say how far the node is.

        Args:
            kept: Its replicas that keep it (`kept_replicas`).
            work: What it does.
            now: Monotonic seconds.
        """
        over_s = now - self._begun - self.drain.wait_s
        if self._drained is not None:
            return Step(self._drained, is_withdrawn=True, is_overdue=over_s >= 0)
        blocking = [each for each in kept if each.is_blocked and not self.drain.force]
        gives_up = self.drain.force and over_s >= 0
        waiting = [each for each in kept if not each.is_blocked and not gives_up]
        may_part = work.sequences == 0 or over_s >= 0
        if blocking or waiting or not (work.is_settled or gives_up):
            self._is_withdrawn = False
            self._ended = 0
        elif not self._is_withdrawn and may_part:
            self._is_withdrawn = True
            self._ended = work.sequences
        is_empty = self._is_withdrawn and self._is_quiet(work, over_s)
        report = DrainReport(
            DrainState.DRAINED if is_empty else DrainState.DRAINING,
            self.drain.since_s,
            work.for_peers + work.for_callers,
            work.sequences,
            work.jobs,
            len(kept),
            () if is_empty else _told([*(each.why for each in waiting), *_still(work)]),
            _told([each.why for each in blocking]),
            self._ended,
            self.drain.force,
        )
        if is_empty:
            self._drained = msgspec.structs.replace(report, requests=0)
            report = self._drained
        return Step(report, self._is_withdrawn, over_s >= 0)

    def _is_quiet(self, work: Work, over_s: float) -> bool:
        if over_s >= DRAIN_HAND_OVER_S:
            return True
        # Its models' requests are ended when the time is over; at its gateway others come without end.
        return work.jobs == 0 and work.for_peers == 0 and (work.for_callers == 0 or over_s >= 0)


def _still(work: Work) -> list[str]:
    counts = {
        "sequence(s) that began here and have not ended": work.sequences,
        "request(s) of other nodes' callers": work.for_peers,
        "request(s) at this node's own gateway": work.for_callers,
        "job(s) that other nodes do not have yet": work.jobs,
    }
    unknown = (
        "its own model folder, which was not looked through yet: the log says why if it cannot be read; mend "
        "that, or drain with --force"
    )
    first = [] if work.is_settled else [unknown]
    return first + [f"{count} {what}" for what, count in counts.items() if count]


def _told(sentences: list[str]) -> tuple[str, ...]:
    """Return as many of them, and as much of each, as a report has room for."""
    shown: list[str] = []
    room_bytes = MAX_DRAIN_REASONS_BYTES
    for each in sentences[:MAX_DRAIN_REASONS]:
        cut = each.encode()[: min(MAX_REASON_BYTES, room_bytes)].decode(errors="ignore")
        if not cut:
            break
        shown.append(cut)
        room_bytes -= len(cut.encode())
    return tuple(shown)


class Kept(NamedTuple):
    """A replica that keeps its node.

    Attributes:
        model: Its public name.
        version: Of it.
        why: A sentence.
        is_blocked: Whether waiting changes nothing.
    """

    model: str
    version: int
    why: str
    is_blocked: bool = False


class Successors(NamedTuple):
    """Who takes over a replica.

    Attributes:
        placement: Of its deployment, without the nodes that are drained; None if it is not deployed.
        ready: Nodes, not drained themselves, that serve the same files now.
        failed: Nodes that cannot load these files, and what they say of it.
    """

    placement: Placement | None
    ready: Collection[NodeId]
    failed: Mapping[NodeId, str]


def kept_replicas(
    own: Mapping[tuple[str, int], OwnReplica],
    successors: Callable[[str, int], Successors],
    name_of: Callable[[NodeId], str],
) -> list[Kept]:
    """Return what keeps a node, in the order of models and versions.

    Args:
        own: Its replicas by (model, version).
        successors: Who takes one over.
        name_of: A node's name.
    """
    found = (
        _kept(model, version, replica, successors(model, version), name_of)
        for (model, version), replica in sorted(own.items(), key=lambda each: each[0])
    )
    return [each for each in found if each is not None]


class Handover:
    """What of a node's replicas still has to go elsewhere before the node is empty."""

    def __init__(
        self,
        me: NodeId,
        *,
        own: Mapping[tuple[str, int], OwnReplica],
        deployments: Deployments,
        fleet: Fleet,
        directory: Directory,
        drains: Drains,
        name_of: Callable[[NodeId], str],
    ) -> None:
        """Look at live views.

        Args:
            me: The node.
            own: Its replicas by (model, version).
            deployments: What is wanted.
            fleet: Where it is placed.
            directory: Who serves it.
            drains: The nodes that are to be emptied.
            name_of: A node's name.
        """
        self._me = me
        self._own = own
        self._deployments = deployments
        self._fleet = fleet
        self._directory = directory
        self._drains = drains
        self._name_of = name_of

    def __repr__(self) -> str:
        return f"<Handover of {len(self._own)} replicas of {self._me[:8]}>"

    def kept(self) -> list[Kept]:
        """Return which of them keep the node, in the order of models and versions."""
        return kept_replicas(self._own, self._successors, self._name_of)

    def _successors(self, model: str, version: int) -> Successors:
        replica = self._own[model, version]
        known = self._deployments.get(model)
        variants = () if known is None else known.versions.get(version, ())
        digests = {replica.digest, *(each.digest for each in variants)}
        ready, failed = set[NodeId](), dict[NodeId, str]()
        for digest in digests:
            ready |= self._directory.ready(replica.manifest, digest)
            failed |= self._directory.failed(replica.manifest, digest)
        placement = None if known is None else self._fleet.placement_of(known, version)
        return Successors(placement, ready - {self._me} - self._drains.nodes, failed)


def _kept(
    model: str,
    version: int,
    replica: OwnReplica,
    successors: Successors,
    name_of: Callable[[NodeId], str],
) -> Kept | None:
    what = f"{model} version {version}"
    if replica.state is ReplicaState.FAILED:
        return None
    if replica.state is not ReplicaState.READY:
        return Kept(model, version, f"{what} is {replica.state}")
    if not replica.deployed:
        if successors.ready:
            return None
        return Kept(
            model,
            version,
            f"{what} lies in this node's own model folder, and no other node serves it; deploy it, or drain "
            "with --force",
            is_blocked=True,
        )
    placement = successors.placement
    if placement is None:
        return Kept(model, version, f"{what} is deployed no more, and is about to go")
    if not placement.nodes:
        return Kept(
            model,
            version,
            f"nobody can take over {what}: {describe(placement, name_of)}; let another node take it, or drain "
            "with --force",
            is_blocked=True,
        )
    failed = [node for node in placement.nodes if node in successors.failed]
    if failed:
        return Kept(
            model,
            version,
            f"{what} cannot be loaded on {', '.join(map(name_of, failed))}; mend that, let another node take it, or "
            f"drain with --force ({successors.failed[failed[0]]})",
            is_blocked=True,
        )
    missing = [name_of(node) for node in placement.nodes if node not in successors.ready]
    if missing:
        return Kept(model, version, f"{what} is not ready on {', '.join(missing)} yet")
    return Kept(model, version, f"{what} is ready elsewhere, and goes as soon as gateways know")
