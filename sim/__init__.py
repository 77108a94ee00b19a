"""The simulator: whole meshes in virtual time, with every fault, replayable from a seed.

    from meshnode.sim import Model, Region, World, faults

`World` and what it takes are for tests of one's own (docs/simulator.md); scenario files, their player and
its reports are `meshnode sim` on the command line. Importing this package imports nothing else: each name
comes with its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshnode.sim import faults
    from meshnode.sim.api import World
    from meshnode.sim.asking import stand_in_inputs
    from meshnode.sim.core_world import NotReachedError
    from meshnode.sim.faults import Fault
    from meshnode.sim.invariants import InvariantBroken
    from meshnode.sim.pytest_plugin import Worlds
    from meshnode.sim.region import Region
    from meshnode.sim.scenario.model import (
        Device,
        Load,
        Model,
        NetworkPart,
        Nodes,
        Path,
        Scenario,
        ServiceTime,
    )
    from meshnode.sim.stage import Outcome

__all__ = [
    "Device",
    "Fault",
    "InvariantBroken",
    "Load",
    "Model",
    "NetworkPart",
    "Nodes",
    "NotReachedError",
    "Outcome",
    "Path",
    "Region",
    "Scenario",
    "ServiceTime",
    "World",
    "Worlds",
    "faults",
    "stand_in_inputs",
]

if not TYPE_CHECKING:  # for a type checker every name is here already, and no other exists
    _MODEL = "meshnode.sim.scenario.model"
    _HOMES = {
        "Fault": "meshnode.sim.faults",
        "InvariantBroken": "meshnode.sim.invariants",
        "NotReachedError": "meshnode.sim.core_world",
        "Outcome": "meshnode.sim.stage",
        "Region": "meshnode.sim.region",
        "World": "meshnode.sim.api",
        "Worlds": "meshnode.sim.pytest_plugin",
        "stand_in_inputs": "meshnode.sim.asking",
    }

    def __getattr__(name: str) -> object:
        """Import a public name on its first use."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        if name == "faults":
            return importlib.import_module("meshnode.sim.faults")
        value = getattr(importlib.import_module(_HOMES.get(name, _MODEL)), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return the public names, with those that are not imported yet."""
        return sorted(set(globals()) | set(__all__))
