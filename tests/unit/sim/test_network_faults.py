from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.sim import faults
from meshnode.sim.impairments import Impairment
from meshnode.sim.network_faults import rule_of

if TYPE_CHECKING:
    from meshnode.sim.faults import NetworkFault

ALL = ("all",)


@pytest.mark.parametrize(
    ("fault", "impairment"),
    [
        (faults.Partition(nodes=ALL), Impairment(cut=True)),
        (faults.Partition(nodes=ALL, datagrams_only=True), Impairment(blocked=True)),
        (faults.Hold(nodes=ALL), Impairment(held=True)),
        (faults.Loss(nodes=ALL, share=0.1), Impairment(loss=0.1)),
        (faults.Duplication(nodes=ALL, share=0.2), Impairment(duplication=0.2)),
        (
            faults.Reordering(nodes=ALL, share=0.3, by_ms=40),
            Impairment(reordering=0.3, reorder_by_s=0.04),
        ),
        (
            faults.Latency(nodes=ALL, factor=2, add_ms=5, jitter=0.5),
            Impairment(factor=2, add_s=0.005, jitter=0.5),
        ),
        (faults.Bandwidth(nodes=ALL, mbps=8), Impairment(bytes_per_s=1_000_000)),
        (faults.GossipDelay(nodes=ALL, add_ms=300), Impairment(gossip_s=0.3)),
    ],
)
def test_each_verb_of_the_network_is_one_impairment(
    fault: NetworkFault, impairment: Impairment
) -> None:
    rule = rule_of(fault, ["a"], ["b"], "salt")
    assert rule.impairment == impairment
    assert rule.covers("a", "b")
    assert rule.covers("b", "a")


def test_every_verb_of_the_network_is_known() -> None:
    verbs = {name for name, verb in faults.VERBS.items() if issubclass(verb, faults.NetworkFault)}
    assert verbs == {
        "partition", "hold", "loss", "duplication", "reordering", "latency", "bandwidth",
        "gossip-delay",
    }  # fmt: skip


def test_a_one_way_partition_leaves_the_way_back() -> None:
    rule = rule_of(faults.Partition(nodes=ALL, one_way=True), ["a"], ["b"], "salt")
    assert rule.covers("a", "b")
    assert not rule.covers("b", "a")


def test_a_partial_partition_depends_on_the_salt_alone() -> None:
    nodes = [f"n{number}" for number in range(30)]

    def cut(salt: str) -> set[tuple[str, str]]:
        rule = rule_of(faults.Partition(nodes=ALL, share=0.5), nodes, nodes, salt)
        return {(a, b) for a in nodes for b in nodes if rule.covers(a, b)}

    assert cut("1") == cut("1") != cut("2")
