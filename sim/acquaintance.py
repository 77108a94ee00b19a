"""Lets the nodes of a large mesh begin as acquaintances, as if they had met before.

A mesh of 5,000 that meets for the first time exchanges 25 million records, each checked by each node;
that takes an hour of computing and shows nothing about what a scenario is for. So each node is given the
views that it would have ended with: the same members, with the same records, in the same tables. Those
of one node are copies of one pattern, and the values in them are shared by all, so that the square of
5,000 entries takes a few gigabytes. Links are not given: each node dials its own neighbours then.

This is the one place that writes into the cores' tables without asking them. What it writes is what
`Beliefs.accept` does for a record, which `tests/unit/sim/test_acquaintance.py` compares.
"""

from __future__ import annotations

from functools import reduce
from operator import xor
from typing import TYPE_CHECKING

from meshnode.fleet import Fleet
from meshnode.membership.linking import rank
from meshnode.membership.member import MemberTable
from meshnode.state.owner_copy import OwnerCopy
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.effects import Effect
    from meshnode.membership.messages import MemberRecord
    from meshnode.node import Node
    from meshnode.sim.mesh import SimMesh
    from meshnode.sim.mesh_daemon import Daemon
    from meshnode.types import NodeId


class _Pattern:
    """What all nodes know once all know all."""

    def __init__(self, mesh: SimMesh, names: Sequence[str], now: float) -> None:
        nodes = [mesh.node(name) for name in names]
        records = {node.me: node.membership.record for node in nodes}
        self.table = _table(records, now)
        self.ids = dict.fromkeys(records)
        self.fleet = Fleet()
        self.fleet.update(self.table)
        self.faces = {
            node_id: (record.name, record.region, record.zone)
            for node_id, record in records.items()
        }
        self.conditions = {node.me: node.router.table.conditions(node.me) for node in nodes}
        self.states: dict[str, OwnerCopy] = {node.me: _copy(node) for node in nodes}
        self.root = reduce(xor, (copy.hash() for copy in self.states.values()))
        papers = mesh.admissions.papers
        self.members = {node_id: papers[node_id].member for node_id in records}

    def give(self, daemon: Daemon, now: float) -> list[Effect]:
        """Let one node know it all; return what it wants done then: links to its neighbours."""
        node = daemon.node
        me, membership = node.me, node.membership
        mine, given = membership._table, self.table
        mine._members.update(given._members)
        mine._live.update(self.ids)
        del mine._live[me]
        mine._live_now = None
        for own, bucket in zip(mine._buckets, given._buckets, strict=True):
            own.update(bucket)
        mine._sums = [*given._sums]
        linking = membership._linking
        linking._ranked = sorted(mine._live, key=lambda other: (rank(me, other), other))
        linking._nearest = None
        node._fleet._nodes.update(self.fleet._nodes)
        node._directory._routed.update(self.faces)
        node.router.table._conditions.update(self.conditions)
        owners = node.owners
        owners._copies.update(self.states)
        owners._copies[me] = owners._own
        owners._root = self.root
        roster = node._authority.roster
        roster._members.update({**self.members, me: roster._members[me]})
        effects = [*membership._beliefs._persist_soon(), *membership._dialler.fill(now)]
        return node._settle(effects, now)


def acquaint(mesh: SimMesh, names: Sequence[str]) -> None:
    """Let these nodes, which have just started, know each other.

    Args:
        mesh: Theirs.
        names: All of its nodes. They have seen their `Start`, and nothing else has happened to them.
    """
    pattern = _Pattern(mesh, names, mesh.world.now())
    for name in names:
        daemon = mesh.daemon(name)

        def act(now: float, wall_s: float, daemon: Daemon = daemon) -> list[Effect]:
            return daemon.carry_out(pattern.give(daemon, now), now, wall_s)

        mesh.world.act(name, act)


def _copy(node: Node) -> OwnerCopy:
    """Return what others know of a node's state that has said nothing about itself so far."""
    own = node.owners._own
    assert own.complete == 0, f"{own} has been written"
    own.seal(node.owners._trust.sign)
    copy = OwnerCopy(own.owner, own.epoch)
    copy.signature = own.signature
    return copy


def _table(records: dict[NodeId, MemberRecord], now: float) -> MemberTable:
    """Return a table in which all are alive; whose it is does not show in what is taken of it."""
    first, *others = records.values()
    table = MemberTable(first, now)
    for record in others:
        table.put(record, NodeState.ALIVE, now)
    return table
