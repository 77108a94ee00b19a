"""The nodes of a scenario, one by one: names, places, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.scenario.devices import device
from meshnode.sim.stage import Machine

if TYPE_CHECKING:
    from meshnode.sim.scenario.model import Nodes, Scenario


def names(nodes: Nodes) -> list[str]:
    """Return what the nodes of one entry are called: NAME-1, NAME-2 ..., one alone NAME."""
    stem = nodes.name or f"{nodes.region}-{nodes.device}"
    if nodes.count == 1:
        return [stem]
    return [f"{stem}-{number}" for number in range(1, nodes.count + 1)]


def crew(scenario: Scenario) -> tuple[Machine, ...]:
    """Return the machines of a scenario in the order of its file.

    Args:
        scenario: One without mistakes (`meshnode.sim.scenario.checks`).

    Returns:
        One machine per node; their names are all different.
    """
    machines = []
    for nodes in scenario.nodes:
        device_class = device(nodes.device, scenario.devices)
        assert device_class is not None, f"there is no device class {nodes.device}"
        machines += [
            Machine(name, nodes.region, nodes.device, device_class, nodes.gateway, nodes.nat)
            for name in names(nodes)
        ]
    return tuple(machines)
