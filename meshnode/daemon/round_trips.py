"""How long a message takes between two nodes and back: measured where this node can, else estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshnode.daemon.named import name_of, node_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.node import Node
    from meshnode.types import NodeId


class RoundTrips:
    """Round-trip times as one node knows them.

    What is measured on a link wins. For nodes without a link to this one, and between two others,
    there are the network coordinates that all nodes tell with their probes.
    """

    def __init__(
        self, node: Node, relay_of: Callable[[NodeId], NodeId | None] = lambda _peer: None
    ) -> None:
        """Read them off this node's cores; `relay_of` tells through whom the link to a peer goes."""
        self._node = node
        self._relay_of = relay_of

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
            "relay": self._relay_between(a, b),
        }

    def way(self, other: NodeId) -> dict[str, str | None]:
        """Describe this node's link to a node: `direct`, `relayed` (and through whom), or None without one."""
        member = self._node.membership.members.get(other)
        if other == self._node.me or member is None or not member.linked:
            return {"path": None, "relay": None}
        relay = self._relay_between(self._node.me, other)
        return {"path": "direct" if relay is None else "relayed", "relay": relay}

    def _relay_between(self, a: NodeId, b: NodeId) -> str | None:
        me = self._node.me
        if me not in (a, b) or a == b:
            return None
        relay = self._relay_of(b if a == me else a)
        return None if relay is None else name_of(self._node.membership.members, relay)

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
