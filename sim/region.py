"""Regions as tests name them: a place and its nodes in one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from meshnode.sim.scenario.model import Nodes


@dataclass(frozen=True, slots=True)
class Region:
    """A place with nodes, which are called NAME-1, NAME-2 ..., or NAME if there is one.

    Attributes:
        name: Its name; if that is a built-in data centre's (`eu-west`, `tokyo`), it is there.
        nodes: How many; 0 where only clients are.
        device: Their class: a built-in one or one of the world's `devices`.
        place: The data centre whose place it has, where its name is none.
        at: Latitude and longitude instead.
        gateway: Whether its nodes answer clients.
        nat: Whether a router lets nobody dial them.
    """

    name: str
    _: KW_ONLY
    nodes: int = 1
    device: str = "mini-pc"
    place: str | None = None
    at: tuple[float, float] | None = None
    gateway: bool = True
    nat: bool = False


def nodes_of(region: Region) -> Nodes:
    """Return the nodes of a region as a scenario has them."""
    return Nodes(
        region=region.name,
        device=region.device,
        count=region.nodes,
        name=region.name,
        gateway=region.gateway,
        nat=region.nat,
    )
