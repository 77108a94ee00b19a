"""Meshes in which some nodes stall again and again, and who is taken for dead meanwhile.

The experiment is Lifeguard's (Dadgar et al., DSN 2018, section V): a few members' messages wait for a
while and then pass again, in turns, for two minutes, while their timers run on. What counts is how often
nodes that were never stalled are declared dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.sim.virtual_fleet import SimFleet


@dataclass(frozen=True, slots=True)
class Stall:
    """For how long messages wait, for how long they pass between, both in seconds, and in which way.

    `freezes`: the whole process stands still (SIGSTOP, swapping), rather than its messages alone.
    """

    waits_s: float
    passes_s: float
    freezes: bool = False

    def __str__(self) -> str:
        how = "frozen" if self.freezes else "stalled"
        return f"{how} {self.waits_s:g} s, then runs {self.passes_s:g} s"


STALLS: Final = (Stall(16.0, 0.1), Stall(8.0, 1.0), Stall(30.0, 4.0), Stall(8.0, 1.0, freezes=True))
"""From the paper's grid of durations (up to 32 s) and pauses (1 ms to 16 s)."""

OBSERVED_S: Final = 120.0
"""As long as the paper's runs."""


def false_deaths(
    fleet: SimFleet, count: int, stalled: int, stall: Stall, observed_s: float = OBSERVED_S
) -> int:
    """Return how often a node declared one dead that was never stalled.

    Args:
        fleet: Without nodes yet.
        count: Nodes to start.
        stalled: How many of them stall, all at the same times.
        stall: How.
        observed_s: For how long.
    """
    names = fleet.settled(count)
    victims = names[1 : 1 + stalled]
    end_s = fleet.now() + observed_s
    while fleet.now() < end_s:
        if stall.freezes:
            for name in victims:
                fleet.freeze(name)
        else:
            fleet.stall(victims)
        fleet.run_for(stall.waits_s)
        if stall.freezes:
            for name in victims:
                fleet.thaw(name)
        else:
            fleet.resume()
        fleet.run_for(stall.passes_s)
    fleet.run_for(30.0)
    return sum(event.subject not in victims for event in fleet.events("member.dead"))
