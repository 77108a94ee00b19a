"""What a relay gives away: places and bytes, in virtual time."""

from __future__ import annotations

import pytest

from meshnode.errors import Saturated
from meshnode.limits import MAX_RELAYED_LINKS, MAX_RELAYED_LINKS_PER_NODE, MIB, RELAY_BURST_S
from meshnode.net.relay_budget import Rate, RelayBudget
from meshnode.types import NodeId


def node(number: int) -> NodeId:
    return NodeId(f"{number:032}")


def test_what_is_within_the_burst_costs_nothing_and_what_is_above_its_time() -> None:
    rate = Rate(1000.0, 0.25)
    assert rate.take(250, 10.0) == 0.0
    assert rate.take(500, 10.0) == pytest.approx(0.5)
    assert rate.take(100, 10.75) == pytest.approx(0.1 - 0.25 + 0.25, abs=0.1)


def test_a_sender_that_heeds_its_waits_gets_the_rate_and_no_more() -> None:
    budget = RelayBudget(pair_bytes_per_s=MIB, bytes_per_s=10 * MIB)
    budget.begin("pair", node(1), node(2))
    now, sent = 0.0, 0
    while now < 60:
        sent += 64 * 1024
        now += max(0.001, budget.take("pair", 64 * 1024, now))
    assert 59 * MIB < sent < (60 + RELAY_BURST_S) * MIB + 2 * 64 * 1024
    assert budget.bytes == sent


def test_all_pairs_together_stay_within_the_rate_of_the_node() -> None:
    budget = RelayBudget(pair_bytes_per_s=MIB, bytes_per_s=2 * MIB)
    pairs = range(8)
    for pair in pairs:
        budget.begin(pair, node(2 * pair), node(2 * pair + 1))
    free_at, sent = dict.fromkeys(pairs, 0.0), 0
    for step in range(30_000):
        now = step / 1000
        for pair in pairs:
            if free_at[pair] <= now:
                sent += 16 * 1024
                free_at[pair] = now + budget.take(pair, 16 * 1024, now)
    assert 58 * MIB < sent < 63 * MIB


def test_pairs_are_bounded_and_a_place_that_ends_is_free() -> None:
    budget = RelayBudget()
    for pair in range(MAX_RELAYED_LINKS):
        budget.begin(pair, node(2 * pair), node(2 * pair + 1))
    with pytest.raises(Saturated, match="ask another"):
        budget.begin("more", node(998), node(999))
    budget.end(0)
    budget.end(0)
    budget.begin("more", node(998), node(999))
    assert budget.pairs == MAX_RELAYED_LINKS


def test_one_node_gets_a_share_of_the_places_whichever_end_it_is() -> None:
    budget = RelayBudget()
    for pair in range(MAX_RELAYED_LINKS_PER_NODE):
        ends = (node(1), node(100 + pair)) if pair % 2 else (node(100 + pair), node(1))
        budget.begin(pair, *ends)
    with pytest.raises(Saturated):
        budget.begin("more", node(1), node(999))
    with pytest.raises(Saturated):
        budget.begin("more", node(999), node(1))
    budget.begin("others", node(998), node(999))
