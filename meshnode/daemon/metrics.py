"""What the daemon counts beside the gateway, read off the parts when somebody asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.metrics import Counter, Gauge, Metric
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshnode.daemon.driver import Driver
    from meshnode.net.links import LinkHub
    from meshnode.node import Node


class DaemonMetrics:
    """Counters and gauges of membership, links and datagrams."""

    def __init__(self, node: Node, driver: Driver, hub: LinkHub) -> None:
        """Read off these."""
        self._node = node
        self._driver = driver
        self._hub = hub

    def __repr__(self) -> str:
        return f"<DaemonMetrics of {self._node!r}>"

    def collect(self) -> Iterable[Metric]:
        """Return all of them with their present values."""
        members = Gauge("meshnode_members", "Members that this node knows, by state.", ("state",))
        for state in NodeState:
            members.set((str(state),), 0.0)
        for member in self._node.membership.members.values():
            members.set((str(member.state),), members.get((str(member.state),)) + 1)
        links = Gauge("meshnode_links", "Peers that a link stands to.")
        links.set((), float(len(tuple(self._hub.peers()))))
        replicas = Gauge("meshnode_replicas", "Model versions on this node, by state.", ("state",))
        for replica in self._node.own.values():
            labels = (str(replica.state),)
            replicas.set(labels, replicas.get(labels) + 1)
        yield members
        yield links
        yield replicas
        yield _counter(
            "meshnode_datagrams_dropped",
            "Datagrams that were refused or could not be sent, by reason.",
            "reason",
            self._driver.dropped,
        )
        yield _counter(
            "meshnode_events", "What happened to members and state.", "kind", self._driver.events
        )
        refused = Counter("meshnode_links_refused", "Incoming links that failed their hello.")
        refused.add((), float(self._hub.refused))
        yield refused


def _counter(name: str, help_text: str, label: str, values: Mapping[str, int]) -> Counter:
    counter = Counter(name, help_text, (label,))
    for value, count in values.items():
        counter.add((value,), float(count))
    return counter
