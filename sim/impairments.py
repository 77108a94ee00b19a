"""What a fault does to the paths between nodes: rules that are laid on them, and their sum.

An `Impairment` says what changes on a path; a `Rule` says on which paths, by two sets of nodes. Any
number of rules may lie on one path: their losses combine as independent ones do, their delays add up,
the narrowest bandwidth counts. Each is taken off by itself, so faults that overlap are undone rightly.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_DRAW_RANGE: Final = 2**64


@dataclass(frozen=True, slots=True)
class Impairment:
    """What a rule changes on a path, in one direction.

    Attributes:
        cut: Nothing gets through.
        blocked: No datagram gets through, as behind a firewall.
        held: What is sent waits until the rule is taken off.
        loss: Share of packets that are lost; on a stream they come later.
        duplication: Share of datagrams that arrive twice.
        reordering: Share of datagrams that arrive late.
        reorder_by_s: By how much at most.
        factor: The mean delay is multiplied by this.
        add_s: Then this is added to it, each way.
        jitter: Replaces the greatest relative deviation of one delay; None leaves it.
        bytes_per_s: What one node can send one other; None for no limit.
        gossip_s: Added to the delay of datagrams and notes only.
    """

    cut: bool = False
    blocked: bool = False
    held: bool = False
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    reorder_by_s: float = 0.0
    factor: float = 1.0
    add_s: float = 0.0
    jitter: float | None = None
    bytes_per_s: float | None = None
    gossip_s: float = 0.0


class Rule:
    """An impairment on the paths from some nodes to others; compared by identity."""

    __slots__ = ("both_ways", "impairment", "salt", "share", "sources", "targets")

    def __init__(
        self,
        impairment: Impairment,
        sources: Iterable[str],
        targets: Iterable[str],
        *,
        both_ways: bool = True,
        share: float = 1.0,
        salt: str = "",
    ) -> None:
        """Lay an impairment on paths; never on the one from a node to itself.

        Args:
            impairment: What.
            sources: Keys of the nodes that send.
            targets: Keys of the nodes that are sent to.
            both_ways: Also on what the targets send to the sources.
            share: Of the pairs of nodes that are impaired, 0 to 1, drawn for each pair.
            salt: What the draw depends on, besides the pair.
        """
        self.impairment = impairment
        self.sources = frozenset(sources)
        self.targets = frozenset(targets)
        self.both_ways = both_ways
        self.share = share
        self.salt = salt

    def __repr__(self) -> str:
        way = "<->" if self.both_ways else "->"
        return f"<Rule {len(self.sources)} {way} {len(self.targets)}: {self.impairment}>"

    def covers(self, source: str, target: str) -> bool:
        """Whether the rule lies on the path from one node to another."""
        if source == target:
            return False
        if not (source in self.sources and target in self.targets) and not (
            self.both_ways and target in self.sources and source in self.targets
        ):
            return False
        return self.share >= 1 or self._draws(source, target)

    def _draws(self, source: str, target: str) -> bool:
        """Draw for a pair from its names alone: alike in both directions, whoever is asked first."""
        one, other = sorted((source, target))
        drawn = hashlib.blake2b(f"{self.salt}\0{one}\0{other}".encode(), digest_size=8).digest()
        return int.from_bytes(drawn, "big") < self.share * _DRAW_RANGE


@dataclass(frozen=True, slots=True)
class Condition:
    """How one direction of a path is now: its own figures and all rules on it.

    Attributes:
        mean_s: Mean seconds of one way.
        jitter: Greatest relative deviation of one delay from the mean.
        loss: Share of packets that are lost.
        bytes_per_s: What one node can send the other; None for no limit.
        cut: Nothing gets through.
        blocked: No datagram gets through.
        held: What is sent waits.
        duplication: Share of datagrams that arrive twice.
        reordering: Share of datagrams that arrive late.
        reorder_by_s: By how much at most.
        gossip_s: Added to the delay of datagrams and notes.
        is_plain: Only delay, jitter and loss are to be drawn.
    """

    mean_s: float
    jitter: float
    loss: float
    bytes_per_s: float | None = None
    cut: bool = False
    blocked: bool = False
    held: bool = False
    duplication: float = 0.0
    reordering: float = 0.0
    reorder_by_s: float = 0.0
    gossip_s: float = 0.0
    is_plain: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        """Note once what is asked for each packet."""
        special = (
            self.cut or self.blocked or self.held or self.duplication > 0 or self.reordering > 0
            or self.gossip_s > 0 or self.bytes_per_s is not None
        )  # fmt: skip
        object.__setattr__(self, "is_plain", not special)

    def eases(self, before: Condition) -> bool:
        """Whether what is on its way on a stream may come sooner than it would have come before."""
        return (
            self.mean_s < before.mean_s
            or self.jitter < before.jitter
            or self.loss < before.loss
            or self.gossip_s < before.gossip_s
            or _rate(self.bytes_per_s) > _rate(before.bytes_per_s)
        )


def _rate(bytes_per_s: float | None) -> float:
    return math.inf if bytes_per_s is None else bytes_per_s


def impaired(path: Condition, impairments: Iterable[Impairment]) -> Condition:
    """Return how a path is with all these on it, in the order in which they were laid."""
    passing = 1 - path.loss
    once = 1 - path.duplication
    timely = 1 - path.reordering
    mean_s, jitter, gossip_s = path.mean_s, path.jitter, path.gossip_s
    reorder_by_s = path.reorder_by_s
    limits = [] if path.bytes_per_s is None else [path.bytes_per_s]
    cut, blocked, held = path.cut, path.blocked, path.held
    for each in impairments:
        passing *= 1 - each.loss
        once *= 1 - each.duplication
        timely *= 1 - each.reordering
        reorder_by_s = max(reorder_by_s, each.reorder_by_s)
        mean_s = mean_s * each.factor + each.add_s
        jitter = jitter if each.jitter is None else each.jitter
        gossip_s += each.gossip_s
        if each.bytes_per_s is not None:
            limits.append(each.bytes_per_s)
        cut, blocked, held = cut or each.cut, blocked or each.blocked, held or each.held
    return Condition(
        mean_s=mean_s,
        jitter=jitter,
        loss=1 - passing,
        bytes_per_s=min(limits, default=None),
        cut=cut,
        blocked=blocked,
        held=held,
        duplication=1 - once,
        reordering=1 - timely,
        reorder_by_s=reorder_by_s,
        gossip_s=gossip_s,
    )
