"""Which nodes a scenario means where it says `nodes`, `others`, `on` or `via`.

A selection is a tuple of words, and means every node that one of them means:

- `all`: every node;
- `region:NAME`, `device:CLASS`: those in a region, those of a class;
- a node's name, or a pattern of names with `*`, `?` and `[...]`; patterns are good for NAME and CLASS too.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.faults import NetworkFault
    from meshnode.sim.stage import Machine

ALL: Final = "all"
REGION: Final = "region:"
DEVICE: Final = "device:"


def means(word: str, machine: Machine) -> bool:
    """Whether a word of a selection means a machine."""
    if word == ALL:
        return True
    if word.startswith(REGION):
        return fnmatchcase(machine.region, word.removeprefix(REGION))
    if word.startswith(DEVICE):
        return fnmatchcase(machine.device_class, word.removeprefix(DEVICE))
    return fnmatchcase(machine.name, word)


def select(selection: Sequence[str], machines: Sequence[Machine]) -> tuple[Machine, ...]:
    """Return the machines that a selection means, in the crew's order, each once; empty means none."""
    if ALL in selection:
        return tuple(machines)
    return tuple(machine for machine in machines if any(means(word, machine) for word in selection))


def sides(
    fault: NetworkFault, machines: Sequence[Machine]
) -> tuple[tuple[Machine, ...], tuple[Machine, ...]]:
    """Return the two sides of a fault of the network.

    Where `others` is empty the second side is everybody else; where nobody else is left, everybody:
    then it is about every pair of nodes.
    """
    nodes = select(fault.nodes, machines)
    if fault.others:
        return nodes, select(fault.others, machines)
    named = {machine.name for machine in nodes}
    others = tuple(machine for machine in machines if machine.name not in named)
    return nodes, others or nodes
