from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.packing import Claim, pack
from meshnode.routing.placement import Option, Placement, rendezvous_score
from meshnode.types import NodeId

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable


class Node(NamedTuple):
    node_id: NodeId
    region: str
    weight: float = 1.0
    eligible: bool = True


def placement(deployment: str, replicas: int, nodes: Iterable[Node], standby: int = 0) -> Placement:
    """Place one deployment on nodes that have room for everything."""
    options = [
        Option(rendezvous_score(deployment, node.node_id, node.weight), node.node_id, node.region)
        for node in nodes
        if node.eligible
    ]
    unfit = sorted((node.node_id, "no") for node in nodes if not node.eligible)
    return pack([Claim(deployment, replicas, options, standby, unfit)], {})[deployment]


def fleet(count: int, regions: int = 1, weight: float = 1.0) -> list[Node]:
    return [
        Node(NodeId(f"node-{number:03}"), f"region-{number % regions}", weight)
        for number in range(count)
    ]


fleets = st.builds(
    lambda picks: [
        Node(NodeId(f"node-{number}"), region, weight, eligible)
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
    result = placement("digits", 3, fleet(6, regions=2))
    assert result.ranking == EXPECTED
    assert result.nodes == EXPECTED[:3]


def test_standbys_are_the_next_in_the_ranking_so_that_the_first_of_them_takes_over_for_good() -> (
    None
):
    nodes = fleet(6, regions=2)
    result = placement("digits", 2, nodes, standby=2)
    assert (result.nodes, result.standby) == (EXPECTED[:2], EXPECTED[2:4])
    assert result.hosts == EXPECTED[:4]
    lost_region = [node for node in nodes if node.region == "region-0"]
    assert {result.nodes[0], result.standby[0]} <= {node.node_id for node in lost_region}


def test_a_standby_is_in_a_region_without_a_replica_where_there_is_one() -> None:
    nodes = fleet(12, regions=3)
    regions = {node.node_id: node.region for node in nodes}
    for number in range(50):
        result = placement(f"m{number}", 1, nodes, standby=2)
        assert len({regions[node] for node in result.hosts}) == 3
        # The whole region of the replica is lost: the first on standby is next.
        rest = [node for node in nodes if node.region != regions[result.nodes[0]]]
        assert placement(f"m{number}", 1, rest, standby=2).nodes == result.standby[:1]


def test_standbys_that_no_node_is_left_for_are_told() -> None:
    result = placement("digits", 2, fleet(3), standby=2)
    assert (len(result.standby), result.missing, result.missing_standby) == (1, 0, 1)


def test_a_hash_at_either_end_still_gives_a_finite_positive_score() -> None:
    scores = [rendezvous_score("digits", NodeId(str(number)), 1.0) for number in range(10_000)]
    assert all(0 < score < math.inf for score in scores)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fleets, st.integers(0, 6), st.randoms(use_true_random=False))
def test_order_does_not_matter_and_only_eligible_nodes_are_used(
    nodes: list[Node], replicas: int, rng: random.Random
) -> None:
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    result = placement("digits", replicas, nodes)
    assert placement("digits", replicas, shuffled) == result
    eligible = {node.node_id for node in nodes if node.eligible}
    assert set(result.ranking) == eligible
    assert len(result.nodes) == min(replicas, len(eligible))
    assert result.missing == replicas - len(result.nodes)
    assert {node for node, _ in result.ineligible} == {node.node_id for node in nodes} - eligible


@settings(max_examples=80, deadline=None, derandomize=True)
@given(fleets, st.integers(1, 6))
def test_no_region_gets_a_second_replica_before_each_has_one(
    nodes: list[Node], replicas: int
) -> None:
    chosen = placement("digits", replicas, nodes).nodes
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
    nodes: list[Node], replicas: int, index: int
) -> None:
    """Read backwards: a node that comes takes at most one replica of a deployment."""
    before = set(placement("digits", replicas, nodes).nodes)
    gone = nodes[index % len(nodes)].node_id if nodes else None
    rest = [node for node in nodes if node.node_id != gone]
    after = set(placement("digits", replicas, rest).nodes)
    assert before - after == before & {gone}


def test_over_many_deployments_a_new_node_takes_its_share_and_five_percent_at_most() -> None:
    nodes = fleet(20, regions=3)
    moved = 0
    for number in range(500):
        before = placement(f"model-{number}", 2, nodes[:-1]).nodes
        after = placement(f"model-{number}", 2, nodes).nodes
        moved += len(set(after) - set(before))
    # One of three regions with six or seven nodes each: a share of 1 in 20 on average, and what
    # the spread over uneven regions adds.
    assert moved / 1000 <= 1 / 20 + 0.05


def test_shares_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 10.0, "c": 50.0}
    nodes = [Node(NodeId(name), "eu", weight) for name, weight in weights.items()]
    total = 6000
    counts = dict.fromkeys(weights, 0)
    for number in range(total):
        counts[placement(f"model-{number}", 1, nodes).nodes[0]] += 1
    for name, weight in weights.items():
        share = weight / 61
        tolerance = 4 * math.sqrt(share * (1 - share) / total)
        assert counts[name] / total == pytest.approx(share, abs=tolerance)
