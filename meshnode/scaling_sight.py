"""What a deployment's steward sees of it: capacities, load and requests, from what nodes say of themselves.

Capacity is what a replica's node measured as it warmed the model up: requests at once over the time of one. A
node that has not served the model counts as the median of those of its class of devices that have, or else as one
unit. The *unit* is the median of all nodes that are known this way, so that it is the deployment's usual device,
and does not change with who of them happens to serve.

Requests are counted where they come in: each gateway tells how many there were since it started, so that no
note that is lost is missed, and what a full replica refuses counts as well.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY
from meshnode.capabilities import memory_of
from meshnode.errors import ProtocolError
from meshnode.routing.demand import ReplicaSight, Sight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.advertisement import NodeLoad
    from meshnode.membership.member import Member
    from meshnode.routing.table import Replica, ReplicaTable
    from meshnode.state.owner import OwnerStates
    from meshnode.types import NodeId

MOST_UNITS: Final = 100.0
"""A node's capacity, in units, at most; a hundredth at least. The fastest devices that people join are some fifty
times as fast as the usual one, and a node that claims more would be left to serve everything alone."""

START_GAIN: Final = 0.5
"""Share of the newest start in the average of how long starts take."""


class Loads:
    """The loads that nodes told last, decoded once each."""

    def __init__(self, owners: OwnerStates) -> None:
        """Read what nodes say of themselves."""
        self._owners = owners
        self._read: dict[NodeId, tuple[bytes, NodeLoad | None]] = {}  # bounded by the live members

    def __repr__(self) -> str:
        return f"<Loads of {len(self._read)} nodes>"

    def of(self, node: NodeId) -> NodeLoad | None:
        """Return what a node told last, or None if that is nothing or no load."""
        value = self._owners.get(node, LOAD_KEY)
        if value is None:
            self._read.pop(node, None)
            return None
        known = self._read.get(node)
        if known is None or known[0] is not value:
            known = self._read[node] = (value, _decoded(value))
        return known[1]

    def keep_only(self, nodes: Mapping[NodeId, Member]) -> None:
        """Forget those of nodes that are members no more."""
        if len(self._read) > len(nodes):
            self._read = {node: each for node, each in self._read.items() if node in nodes}


class ScalingSight:
    """One deployment, looked at regularly by its steward.

    Attributes:
        start_s: Seconds from wanting a replica to having it, lately; 0 if unknown.
    """

    def __init__(
        self,
        model: str,
        *,
        members: Mapping[NodeId, Member],
        table: ReplicaTable,
        loads: Loads,
        start_s: float,
        now: float,
    ) -> None:
        """Begin to look.

        Args:
            model: The deployment's public name.
            members: All members; a live view.
            table: Who serves it.
            loads: What nodes told of their load.
            start_s: As the steward before knew it.
            now: Monotonic seconds.
        """
        self.start_s = start_s
        self._model = model
        self._members = members
        self._table = table
        self._loads = loads
        self._looked_at = now
        self._asked: dict[NodeId, int] = {}  # by gateway: requests since it started
        self._per_s: dict[NodeId, float] = {}  # by node that has served it: what it can do
        self._wanted_at: dict[NodeId, float] = {}  # nodes that are to serve it and do not yet
        self._slots = 1.0

    def __repr__(self) -> str:
        return f"<ScalingSight of {self._model}: {len(self._per_s)} capacities known>"

    def look(
        self, ranking: Sequence[NodeId], placed: Sequence[NodeId], waiting: int, now: float
    ) -> Sight:
        """Return what is seen now.

        Args:
            ranking: All nodes that may serve it, in the order of placement.
            placed: Those that are to serve it now.
            waiting: Requests that wait for it at gateways.
            now: Monotonic seconds.
        """
        ready = self._ready()
        for node, replica in ready.items():
            if replica.service_ms > 0:
                self._per_s[node] = 1000 * replica.slots / replica.service_ms
        for node in [node for node in self._per_s if node not in self._members]:
            del self._per_s[node]
        if ready:
            self._slots = float(median(replica.slots for replica in ready.values()))
        units = self._units([*ranking, *(node for node in ready if node not in ranking)])
        over_s, self._looked_at = now - self._looked_at, now
        self._follow_starts(placed, ready, now)
        return Sight(
            tuple(units[node] for node in ranking),
            self._slots,
            tuple(self._sight_of(node, units[node], replica) for node, replica in ready.items()),
            self._newly_asked(),
            over_s,
            waiting,
            self.start_s,
        )

    def _ready(self) -> dict[NodeId, Replica]:
        """Return the nodes that serve it, each with the newest version that it serves."""
        found: dict[NodeId, Replica] = {}
        for version in self._table.versions(self._model):
            group = self._table.group(self._model, version)
            if group is not None:
                found.update((replica.node, replica) for replica in group.ready)
        return found

    def _units(self, nodes: Sequence[NodeId]) -> dict[NodeId, float]:
        classes: dict[str, list[float]] = {}
        for node, per_s in self._per_s.items():
            classes.setdefault(self._table.conditions(node).device, []).append(per_s)
        usual = {device: median(found) for device, found in classes.items()}
        per_s_of = {
            node: self._per_s.get(node) or usual.get(self._table.conditions(node).device)
            for node in nodes
        }
        known = [each for each in per_s_of.values() if each is not None]
        unit = median(known) if known else 1.0
        return {
            node: 1.0 if each is None else min(MOST_UNITS, max(1 / MOST_UNITS, each / unit))
            for node, each in per_s_of.items()
        }

    def _sight_of(self, node: NodeId, units: float, replica: Replica) -> ReplicaSight:
        load = self._loads.of(node)
        if load is None:
            return ReplicaSight(units, replica.slots, 0)
        mine = [each for each in load.models if each.model == self._model]
        newest = max(mine, key=lambda each: each.version, default=None)
        total_bytes = memory_of(self._members[node].record.capabilities)
        free_bytes = load.memory_available_bytes
        busiest = max((each.utilisation for each in load.accelerators), default=None)
        return ReplicaSight(
            units,
            replica.slots,
            sum(max(0, each.in_system) for each in mine),
            0.0 if newest is None else max(0.0, newest.service_ms) / 1000,
            min(1.0, max(0.0, load.cpu)),
            busiest,
            # Neither counts where it is not told.
            1 - min(free_bytes, total_bytes) / total_bytes if total_bytes and free_bytes else None,
        )

    def _newly_asked(self) -> int:
        """Return how many requests gateways have told of since the last look."""
        newly = 0
        for node, member in self._members.items():
            load = self._loads.of(node) if member.live else None
            if load is None:
                continue
            count = next((n for model, n in load.demand if model == self._model), 0)
            # One that is heard of for the first time says nothing of when its requests came.
            before = self._asked.get(node, count)
            newly += count - before if count >= before else count  # it has started anew
            self._asked[node] = count
        for node in [node for node in self._asked if node not in self._members]:
            del self._asked[node]
        return newly

    def _follow_starts(
        self, placed: Sequence[NodeId], ready: Mapping[NodeId, Replica], now: float
    ) -> None:
        """Time how long replicas take to start."""
        for node in [*self._wanted_at]:
            since = self._wanted_at[node]
            if node in ready:
                took_s = now - since
                gain = START_GAIN if self.start_s else 1.0
                self.start_s += gain * (took_s - self.start_s)
            if node in ready or node not in placed:
                del self._wanted_at[node]
        for node in placed:
            if node not in ready:
                self._wanted_at.setdefault(node, now)


def _decoded(value: bytes) -> NodeLoad | None:
    try:
        return advertisement.decode_load(value)
    except ProtocolError:
        return None
