"""What must not be left over in a daemon that has come to rest: requests, tasks, timers, table rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.sim.virtual.daemon import work_of

if TYPE_CHECKING:
    from meshnode.daemon.assembly import Assembly
    from meshnode.sim.virtual.daemon import VirtualNode

TASKS_OF_A_LINK: Final = 4
"""Tasks that one more link, connection or transfer may keep for good."""

TIMERS_OF_A_LINK: Final = 8
"""Timers likewise: liveness, retirement, keep-alive of an idle connection, and cancelled ones' followers."""

SPARE: Final = 24
"""Tasks and timers that come and go in a daemon at rest: probes, gossip, its own looks at itself."""


class Usage(NamedTuple):
    """What a daemon holds.

    Attributes:
        boot: Which of its boots.
        tasks: Tasks that are not done.
        timers: Timers that are to come.
        connections: Links and HTTP connections.
    """

    boot: int = 0
    tasks: int = 0
    timers: int = 0
    connections: int = 0


class Leftover(NamedTuple):
    """Something that is left over: which invariant it breaks, and what it is."""

    invariant: str
    message: str


def usage_of(node: VirtualNode) -> Usage:
    """Return what a node holds now; nothing if it is not up."""
    if node.state != "up" or node.mesh is None:
        return Usage()
    process = node.host.process
    connections = sum(1 for _ in node.mesh.hub.peers()) + node.mesh.http_connections
    return Usage(node.boots, len(process.live_tasks()), len(process.live_timers()), connections)


def leftovers(node: VirtualNode, before: Usage | None) -> Leftover | None:
    """Return what a node at rest has left over, or None.

    Args:
        node: The node; no call is open.
        before: What it held when the load began; None if that is not known.
    """
    mesh, server = node.mesh, node.models
    if node.state != "up" or mesh is None or server is None:
        return None
    if mesh.busy:
        return Leftover(
            "in-flight-conserved", f"{node.name} still works on a request that nobody waits for"
        )
    routed = _outstanding(mesh)
    if routed:
        return Leftover(
            "in-flight-conserved", f"{node.name} counts {routed} requests of its own as in flight"
        )
    if (work := work_of(server)).in_system:
        return Leftover(
            "in-flight-conserved", f"{work.in_system} runs of {node.name} have not ended"
        )
    if before is None or before.boot != node.boots:
        return None
    now = usage_of(node)
    more = max(0, now.connections - before.connections)
    if now.tasks > before.tasks + TASKS_OF_A_LINK * more + SPARE:
        return Leftover(
            "no-leak", f"{node.name} has {now.tasks} tasks, {before.tasks} when it began"
        )
    if now.timers > before.timers + TIMERS_OF_A_LINK * more + SPARE:
        return Leftover(
            "no-leak", f"{node.name} has {now.timers} timers, {before.timers} when it began"
        )
    return None


def _outstanding(mesh: Assembly) -> int:
    """Return how many requests routing counts as in flight, to all replicas that it knows."""
    router = mesh.node.router
    return sum(
        router.book.load(replica.node, model, version).outstanding
        for model, versions in router.table.models().items()
        for version in versions
        for replica in router.table.replicas(model, version)
    )
