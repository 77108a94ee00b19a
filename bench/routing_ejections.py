"""For how long a gateway's breakers keep out a node that comes back again and again.

Requests cannot show that: a node that is back has to load its model first, and starts slowly beside others. So the
breakers are looked at, half a second after each return of the node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Final

from meshnode.sim.core_stage import CoreStage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshnode.sim.scenario.model import Scenario

LOOK_AFTER_S: Final = 0.5
"""Until then the links to a node are there again that is back."""


@dataclass(slots=True)
class Ejections:
    """What the breakers of all other gateways said after one return of a node.

    Attributes:
        set_s: For how long each was open the last time, before chance makes it up to a fifth more or less.
        left_s: How long after the return each lets a request through.
    """

    set_s: list[float] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)


class EjectionStage(CoreStage):
    """A stage that looks at what gateways' breakers think of one node.

    Attributes:
        seen: Of each return, in their order.
    """

    def __init__(
        self, scenario: Scenario, seed: int, policy: str, node: str, returns_s: Sequence[float]
    ) -> None:
        """Look at `node`, which comes back at these seconds of the load."""
        super().__init__(scenario, seed, policy=policy)
        self.seen = [Ejections() for _ in returns_s]
        self._node = node
        self._returns_s = returns_s

    def start(self, progress: Callable[[str], None]) -> None:
        """Start as any stage; the load begins now."""
        super().start(progress)
        began_s = self.now()
        for each, returned_s in zip(self.seen, self._returns_s, strict=True):
            at_s = began_s + returned_s
            self.at(at_s + LOOK_AFTER_S, self._look, each, at_s)

    def _look(self, found: Ejections, returned_s: float) -> None:
        node = self.world.id_of(self._node)
        for machine in self.machines:
            if machine.gateway and machine.name != self._node:
                breaker = self.mesh.node(machine.name).router.breakers.of_node(node)
                found.set_s.append(breaker.open_s)
                found.left_s.append(max(0.0, breaker.retry_at - returned_s))


def growth(seen: Sequence[Ejections]) -> float:
    """Return by how much the time was multiplied from one opening to the next, where it was least, at any gateway."""
    return min(
        after / before if before > 0 else 0.0
        for one, other in pairwise(seen)
        for before, after in zip(one.set_s, other.set_s, strict=True)
    )


def last_by_second(seen: Sequence[Ejections]) -> float:
    """Return how many times longer the node was left out after its last return than after its second."""
    second_s = fmean(seen[1].left_s)
    return fmean(seen[-1].left_s) / second_s if second_s > 0 else 0.0
