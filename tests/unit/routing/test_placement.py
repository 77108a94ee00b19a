from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.placement import PlacementNode, placement, rendezvous_score
from meshnode.types import NodeId

if TYPE_CHECKING:
    import random


def fleet(count: int, regions: int = 1, weight: float = 1.0) -> list[PlacementNode]:
    return [
        PlacementNode(NodeId(f"node-{number:03}"), f"region-{number % regions}", weight)
        for number in range(count)
    ]


fleets = st.builds(
    lambda picks: [
        PlacementNode(NodeId(f"node-{number}"), region, weight, eligible)
        for number, (region, weight, eligible) in enumerate(picks)
    ],
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from([1.0, 2.0, 50.0]),
            st.sampled_from([True] * 3 + [False]),
        ),
        max_size=12,
    ),
)


EXPECTED = ("node-002", "node-001", "node-000", "node-003", "node-004", "node-005")


def test_the_answer_is_this_one_on_every_node_and_platform() -> None:
    """A fixed answer, so that a change of the hash (which would move every replica) is noticed."""
    result = placement("digits", 3, (), fleet(6, regions=2))
    assert result.ranking == EXPECTED
    assert result.nodes == EXPECTED[:3]


def test_without_a_count_there_is_one_replica_or_one_on_each_pinned_node() -> None:
    nodes = fleet(5)
    assert len(placement("digits", None, (), nodes).nodes) == 1
    pins = [NodeId("node-001"), NodeId("node-004")]
    assert set(placement("digits", None, pins, nodes).nodes) == set(pins)


def test_pins_restrict_and_unknown_ones_are_reported() -> None:
    pins = [NodeId("node-001"), NodeId("gone")]
    result = placement("digits", 2, pins, fleet(3))
    assert result.nodes == ("node-001",)
    assert result.missing == 1
    assert result.ineligible == (
        ("gone", "not a node of this mesh"),
        ("node-000", "not one of the nodes that the deployment is pinned to"),
        ("node-002", "not one of the nodes that the deployment is pinned to"),
    )


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_nodes_without_capacity_get_nothing(weight: float) -> None:
    result = placement("digits", 1, (), [PlacementNode(NodeId("a"), "eu", weight)])
    assert (result.nodes, result.ranking, result.missing) == ((), (), 1)
    assert result.ineligible == (("a", "has no capacity"),)


def test_ineligible_nodes_keep_their_reason() -> None:
    nodes = [
        PlacementNode(NodeId("a"), "eu", eligible=False, reason="node dead"),
        PlacementNode(NodeId("b"), "eu", eligible=False),
    ]
    assert placement("digits", 0, (), nodes).ineligible == (
        ("a", "node dead"),
        ("b", "does not satisfy the constraints"),
    )


def test_a_hash_at_either_end_still_gives_a_finite_positive_score() -> None:
    scores = [rendezvous_score("digits", NodeId(str(number)), 1.0) for number in range(10_000)]
    assert all(0 < score < math.inf for score in scores)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fleets, st.integers(0, 6), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_only_eligible_nodes_are_used(
    nodes: list[PlacementNode], replicas: int, rng: random.Random
) -> None:
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    result = placement("digits", replicas, (), nodes)
    assert placement("digits", replicas, (), shuffled) == result
    eligible = {node.node_id for node in nodes if node.eligible}
    assert set(result.ranking) == eligible
    assert len(result.nodes) == min(replicas, len(eligible))
    assert result.missing == replicas - len(result.nodes)
    assert {node for node, _ in result.ineligible} == {node.node_id for node in nodes} - eligible


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fleets, st.integers(1, 6))
def test_no_region_gets_a_second_replica_before_each_has_one(
    nodes: list[PlacementNode], replicas: int
) -> None:
    chosen = placement("digits", replicas, (), nodes).nodes
    regions = {node.node_id: node.region for node in nodes}
    room = {
        region: sum(node.eligible and node.region == region for node in nodes)
        for region in set(regions.values())
    }
    used = {region: sum(regions[node] == region for node in chosen) for region in room}
    for region, count in used.items():
        for other, other_count in used.items():
            assert count <= other_count + 1 or other_count == room[other], (region, other)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fleets, st.integers(1, 6), st.integers(0, 11))
def test_a_node_that_goes_moves_its_own_replica_only(
    nodes: list[PlacementNode], replicas: int, index: int
) -> None:
    """Read backwards: a node that comes takes at most one replica of a deployment."""
    before = set(placement("digits", replicas, (), nodes).nodes)
    gone = nodes[index % len(nodes)].node_id if nodes else None
    rest = [node for node in nodes if node.node_id != gone]
    after = set(placement("digits", replicas, (), rest).nodes)
    assert before - after == before & {gone}


def test_over_many_deployments_a_new_node_takes_its_share_and_five_percent_at_most() -> None:
    nodes = fleet(20, regions=3)
    moved = 0
    for number in range(500):
        before = placement(f"model-{number}", 2, (), nodes[:-1]).nodes
        after = placement(f"model-{number}", 2, (), nodes).nodes
        moved += len(set(after) - set(before))
    # One of three regions with six or seven nodes each: a share of 1 in 20 on average, and what
    # the spread over uneven regions adds.
    assert moved / 1000 <= 1 / 20 + 0.05


def test_shares_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 10.0, "c": 50.0}
    nodes = [PlacementNode(NodeId(name), "eu", weight) for name, weight in weights.items()]
    total = 6000
    counts = dict.fromkeys(weights, 0)
    for number in range(total):
        counts[placement(f"model-{number}", 1, (), nodes).nodes[0]] += 1
    for name, weight in weights.items():
        share = weight / 61
        tolerance = 4 * math.sqrt(share * (1 - share) / total)
        assert counts[name] / total == pytest.approx(share, abs=tolerance)
