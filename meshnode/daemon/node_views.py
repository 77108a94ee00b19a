"""The mesh's nodes as they are shown: who is there, how each fares, and how far away it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from meshnode import capabilities
from meshnode.advertisement import LOAD_KEY, decode_load
from meshnode.errors import MeshError
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from meshnode.daemon.draining import Draining
    from meshnode.daemon.round_trips import RoundTrips
    from meshnode.membership.member import Member
    from meshnode.node import Node


class NodeViews:
    """Describes members."""

    def __init__(self, node: Node, round_trips: RoundTrips, drains: Draining) -> None:
        """Describe what `node` knows, with the drains of nodes and the ways to them."""
        self._node = node
        self._round_trips = round_trips
        self._drains = drains

    def __repr__(self) -> str:
        return f"<NodeViews of {self._node.me[:8]}>"

    def all(self) -> list[dict[str, Any]]:
        """Describe every member that is known, this node first, then by name."""
        members = sorted(
            self._node.membership.members.values(),
            key=lambda member: (member.node_id != self._node.me, member.record.name),
        )
        return [self._view(member) for member in members]

    def rtt(self, one: str, other: str) -> dict[str, Any]:
        """Describe the round trip between two nodes, each by its name or id."""
        return self._round_trips.view(one, other)

    def _view(self, member: Member) -> dict[str, Any]:
        record = member.record
        me = member.node_id == self._node.me
        rtt_ms, is_estimated = self._round_trips.to(member.node_id)
        return {
            "id": member.node_id,
            "name": record.name,
            "region": record.region,
            "zone": record.zone,
            "state": str(member.state),
            "drain": self._drains.state_of(member.node_id),
            "self": me,
            "http": _url(record.http),
            "mesh": str(Address(*record.addresses[0])) if record.addresses else None,
            "labels": record.labels,
            "capabilities": capabilities.shown(record.capabilities),
            "load": self._load_view(member.node_id),
            "linked": me or member.linked,
            "rtt_ms": rtt_ms,
            "rtt_estimated": is_estimated,
            **self._round_trips.way(member.node_id),
        }

    def _load_view(self, node: NodeId) -> dict[str, Any]:
        value = self._node.owners.get(node, LOAD_KEY)
        if value is None:
            return {}
        try:
            load = decode_load(value)
        except MeshError:
            return {}
        return {
            "cpu": load.cpu,
            "memory_available_bytes": load.memory_available_bytes,
            "in_system": sum(each.in_system for each in load.models),
            "temperature_c": load.temperature_c,
            "battery_percent": load.battery_percent,
            "accelerators": [msgspec.structs.asdict(each) for each in load.accelerators],
            "models": [
                {
                    "name": each.model,
                    "version": each.version,
                    "in_system": each.in_system,
                    "slots": each.slots,
                    "service_ms": each.service_ms,
                }
                for each in load.models
            ],
        }


def _url(http: str) -> str | None:
    """Return a gateway's URL from its record, which has the scheme where it is not plain HTTP."""
    return http if "://" in http else f"http://{http}" if http else None
