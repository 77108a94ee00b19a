"""The verbs that concern the network, as rules on its paths: the same at all three depths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.sim.faults import (
    Bandwidth,
    Duplication,
    GossipDelay,
    Hold,
    Latency,
    Loss,
    NetworkFault,
    Partition,
    Reordering,
)
from meshnode.sim.impairments import Impairment, Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

BYTES_PER_S_OF_MBPS: Final = 125_000.0
"""A megabit is 10^6 bits."""


def rule_of(fault: NetworkFault, sources: Iterable[str], targets: Iterable[str], salt: str) -> Rule:
    """Return the rule that a fault lays on the network.

    Args:
        fault: The fault.
        sources: Keys of its `nodes` in the network.
        targets: Keys of its `others`; for a fault among all nodes the same as `sources`.
        salt: Decides the draw of a partial partition; take it from the seed and the fault.
    """
    if isinstance(fault, Partition):
        return Rule(
            _impairment(fault),
            sources,
            targets,
            both_ways=not fault.one_way,
            share=fault.share,
            salt=salt,
        )
    return Rule(_impairment(fault), sources, targets)


def _impairment(fault: NetworkFault) -> Impairment:
    match fault:
        case Partition(datagrams_only=True):
            return Impairment(blocked=True)
        case Partition():
            return Impairment(cut=True)
        case Hold():
            return Impairment(held=True)
        case Loss(share=share):
            return Impairment(loss=share)
        case Duplication(share=share):
            return Impairment(duplication=share)
        case Reordering(share=share, by_ms=by_ms):
            return Impairment(reordering=share, reorder_by_s=by_ms / 1000)
        case Latency(factor=factor, add_ms=add_ms, jitter=jitter):
            return Impairment(factor=factor, add_s=add_ms / 1000, jitter=jitter)
        case Bandwidth(mbps=mbps):
            return Impairment(bytes_per_s=mbps * BYTES_PER_S_OF_MBPS)
        case GossipDelay(add_ms=add_ms):
            return Impairment(gossip_s=add_ms / 1000)
        case _:
            raise AssertionError(f"{fault.verb} is not a fault of paths")
