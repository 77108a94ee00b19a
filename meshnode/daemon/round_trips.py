"""How long a message takes between two nodes and back: measured where this node can, else estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.daemon.named import name_of, node_named

if TYPE_CHECKING:
    from meshnode.node import Node
    from meshnode.types import NodeId


class RoundTrips:
    """Round-trip times as one node knows them.

    What is measured on a link wins. For nodes without a link to this one, and between two others,
    there are the network coordinates that all nodes tell with their probes.
    """

    def __init__(self, node: Node) -> None:
        """Read them off this node's cores."""
        self._node = node

    def __repr__(self) -> str:
        return f"<RoundTrips of {self._node!r}>"

    def to(self, other: NodeId) -> tuple[float | None, bool]:
        """Return the round trip to a node in milliseconds, or None, and whether it is an estimate."""
        return self._between(self._node.me, other)

    def view(self, one: str, other: str) -> dict[str, Any]:
        """Describe the round trip between two nodes that are named by name or id.

        Raises:
            InvalidRequest: if a name fits none or several.
        """
        members = self._node.membership.members
        a, b = node_named(members, one), node_named(members, other)
        rtt_ms, is_estimated = self._between(a, b)
        return {
            "from": {"id": a, "name": name_of(members, a)},
            "to": {"id": b, "name": name_of(members, b)},
            "rtt_ms": rtt_ms,
            "rtt_estimated": is_estimated,
        }

    def _between(self, a: NodeId, b: NodeId) -> tuple[float | None, bool]:
        me = self._node.me
        if a == b:
            return 0.0, False
        if me in (a, b):
            peer = b if a == me else a
            measured_ms = self._node.router.book.path(peer).rtt_ms
            member = self._node.membership.members.get(peer)
            if measured_ms is not None and member is not None and member.linked:
                return measured_ms, False
        estimate_s = self._node.membership.rtt_s(a, b)
        return (None, False) if estimate_s is None else (estimate_s * 1000, True)
