"""The space between nodes: who reaches whom, how late, and what is lost on the way.

`Network` is a pure model. It knows regions and cuts, and answers how long something takes from one
node to another or that it does not arrive; `links` and `world` act on the answers.

A *cut* loses what is sent in one direction; a *hold* keeps it until it is released; a *block* loses
datagrams only, as a firewall does. All are lists of directed pairs, so a one-way partition is a cut of
one direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping

    from meshnode.types import NodeId


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """How the virtual network behaves.

    Attributes:
        rtt_s: Mean round-trip seconds between two regions, under their names in either order. 0.0001
            (one switch) to 0.6 (a satellite).
        near_rtt_s: Between two nodes of one region.
        far_rtt_s: Between two regions that `rtt_s` does not name.
        jitter: Greatest relative deviation of one delay from its mean, 0 to 1. It reorders
            datagrams, never what travels on a link.
        loss: Probability that a datagram is lost, 0 to 1. What is lost on a link is sent again.
        retransmit_s: How much later a link delivers what was lost once: TCP's least timeout, 0.2.
        note_loss: Probability that a note is dropped before it is sent, as a driver does whose link
            has no room, 0 to 1.
        dial_timeout_s: Seconds after which a dial that nobody answers fails. 1 to 30.
        dead_after_s: Seconds without a sign of life after which both ends give a link up. Above
            several RTTs and a loop's worst stall: 2 to 60.
        leave_grace_s: Seconds that a leaving node keeps running to say goodbye. 0 to 5.
    """

    rtt_s: Mapping[tuple[str, str], float] = field(default_factory=dict)
    near_rtt_s: float = 0.0005
    far_rtt_s: float = 0.08
    jitter: float = 0.1
    loss: float = 0.0
    retransmit_s: float = 0.2
    note_loss: float = 0.0
    dial_timeout_s: float = 5.0
    dead_after_s: float = 8.0
    leave_grace_s: float = 0.5


class Network:
    """Paths between nodes, by node id."""

    def __init__(self, config: NetworkConfig, rng: random.Random) -> None:
        """Connect everybody to everybody; `rng` draws jitter and loss."""
        self.config = config
        self._rng = rng
        self._regions: dict[NodeId, str] = {}
        self._cut: set[tuple[NodeId, NodeId]] = set()
        self._held: set[tuple[NodeId, NodeId]] = set()
        self._blocked: set[tuple[NodeId, NodeId]] = set()
        self._one_way_s: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<Network of {len(self._regions)} nodes, {len(self._cut)} cuts, {len(self._held)} holds>"

    def place(self, node: NodeId, region: str) -> None:
        """Put a node into a region."""
        self._regions[node] = region

    def rtt_s(self, a: NodeId, b: NodeId) -> float:
        """Return the mean round-trip time between two nodes in seconds."""
        pair = (self._regions[a], self._regions[b])
        known = self._one_way_s.get(pair)
        if known is None:
            known = self._one_way_s[pair] = self._mean_rtt_s(*pair) / 2
        return 2 * known

    def _mean_rtt_s(self, one: str, other: str) -> float:
        config = self.config
        given = config.rtt_s.get((one, other), config.rtt_s.get((other, one)))
        if given is not None:
            return given
        return config.near_rtt_s if one == other else config.far_rtt_s

    def delay_s(self, source: NodeId, target: NodeId) -> float:
        """Draw the seconds that something takes from one node to another."""
        mean_s = self.rtt_s(source, target) / 2
        jitter = self.config.jitter
        return mean_s * (1 + jitter * (2 * self._rng.random() - 1)) if jitter else mean_s

    def loses_datagram(self) -> bool:
        """Draw whether a datagram is lost."""
        return self.config.loss > 0 and self._rng.random() < self.config.loss

    def drops_note(self) -> bool:
        """Draw whether a note is dropped before it is sent."""
        return self.config.note_loss > 0 and self._rng.random() < self.config.note_loss

    # Faults.

    def cut(self, sources: Iterable[NodeId], targets: Iterable[NodeId]) -> None:
        """Lose everything from any of the sources to any of the targets."""
        self._cut |= _pairs(sources, targets)

    def hold(self, sources: Iterable[NodeId], targets: Iterable[NodeId]) -> None:
        """Keep everything from any of the sources to any of the targets back."""
        self._held |= _pairs(sources, targets)

    def block(self, sources: Iterable[NodeId], targets: Iterable[NodeId]) -> None:
        """Lose datagrams from any of the sources to any of the targets; links stay open."""
        self._blocked |= _pairs(sources, targets)

    def mend(self) -> None:
        """Undo all cuts."""
        self._cut.clear()

    def unblock(self) -> None:
        """Undo all blocks."""
        self._blocked.clear()

    def release(self) -> None:
        """Undo all holds."""
        self._held.clear()

    def is_cut(self, source: NodeId, target: NodeId) -> bool:
        """Whether what is sent this way is lost."""
        return (source, target) in self._cut

    def loses_datagrams(self, source: NodeId, target: NodeId) -> bool:
        """Whether no datagram that is sent this way arrives."""
        return (source, target) in self._cut or (source, target) in self._blocked

    def is_held(self, source: NodeId, target: NodeId) -> bool:
        """Whether what is sent this way is kept back."""
        return (source, target) in self._held

    def passes(self, source: NodeId, target: NodeId) -> bool:
        """Whether what is sent this way is on its way at once."""
        return (source, target) not in self._cut and (source, target) not in self._held


def _pairs(sources: Iterable[NodeId], targets: Iterable[NodeId]) -> set[tuple[NodeId, NodeId]]:
    ends = [*targets]
    return {(source, target) for source in sources for target in ends if source != target}
