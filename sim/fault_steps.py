"""What the trace's hash covers of a fault: its verb and fields, when it was done and undone, and to whom.

A fault may do nothing that a core notices (a clock is set on a node that looks at no date), and still two runs
with different timelines are different runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.sim.faults import NetworkFault, RegionDown
from meshnode.sim.scenario.selection import REGION, select, sides

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshnode.sim.faults import Fault
    from meshnode.sim.stage import Machine
    from meshnode.sim.trace import Trace

_NO_NODE: Final = 2**32 - 1  # a fault is nobody's step


def cover(
    trace: Trace, time_s: float, fault: Fault, machines: Sequence[Machine], *, undone: bool
) -> None:
    """Let a trace's hash cover that a fault was done or undone.

    Args:
        trace: The trace.
        time_s: When, in seconds of the stage.
        fault: What.
        machines: The crew, among which it finds its nodes.
        undone: Whether it was undone.
    """
    told = [b"undone" if undone else b"done", msgspec.json.encode(fault), *_whom(fault, machines)]
    trace.step(time_s, _NO_NODE, b"\0".join(told))


def _whom(fault: Fault, machines: Sequence[Machine]) -> list[bytes]:
    """Return the names of those to whom a fault is done, a list for each of its sides."""
    groups: tuple[tuple[Machine, ...], ...]
    if isinstance(fault, NetworkFault):
        groups = sides(fault, machines)
    elif isinstance(fault, RegionDown):
        groups = (select((REGION + fault.region,), machines),)
    else:
        groups = (select(getattr(fault, "nodes", ()), machines),)
    return [msgspec.json.encode([machine.name for machine in group]) for group in groups]
