from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from meshnode.sim.impairments import Impairment, Rule
from meshnode.sim.network import MAX_QUEUE_S, ROUTER_MEMORY_S, Network, NetworkConfig, PathConfig

A, B, C = "a", "b", "c"


def network(seed: int = 0, **settings: Any) -> Network:
    settings = {"rtt_s": {("eu", "us"): 0.1}} | settings
    made = Network(NetworkConfig(**settings), random.Random(seed))
    for node, region in ((A, "eu"), (B, "us"), (C, "asia")):
        made.place(node, region)
    return made


def arrived(paths: Network, source: str = A, target: str = B, count: int = 2000) -> list[float]:
    return [each for _ in range(count) for each in paths.arrivals(source, target, 100, 0.0)]


def test_round_trips_are_those_of_the_regions_in_either_order() -> None:
    paths = network()
    assert paths.rtt_s(A, B) == paths.rtt_s(B, A) == 0.1
    assert paths.rtt_s(A, A) == 0.0005
    assert paths.rtt_s(A, C) == 0.08


def test_a_path_of_its_own_counts_more_than_the_networks_figures() -> None:
    own = PathConfig(rtt_s=0.6, jitter=0.0, loss=1.0)
    paths = network(paths={("asia", "eu"): own, ("us", "us"): PathConfig(rtt_s=0.01)})
    assert paths.rtt_s(A, C) == paths.rtt_s(C, A) == 0.6
    assert paths.rtt_s(B, B) == 0.01
    assert paths.arrivals(A, C, 100, 0.0) == ()
    assert paths.rtt_s(A, B) == 0.1


def test_delays_scatter_around_half_the_round_trip() -> None:
    paths = network(jitter=0.2)
    for delays in (arrived(paths), [paths.stream_delay_s(A, B, 100, 0.0) for _ in range(2000)]):
        assert min(delays) >= 0.04
        assert max(delays) <= 0.06
        assert sum(delays) / len(delays) == pytest.approx(0.05, rel=0.02)
    assert network(jitter=0.0).arrivals(A, B, 100, 0.0) == (0.05,)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_losses_are_as_frequent_as_configured(share: float) -> None:
    paths = network(loss=share, note_loss=share)
    assert 2000 - len(arrived(paths)) == pytest.approx(2000 * share, rel=0.1)
    assert sum(paths.drops_note() for _ in range(2000)) == pytest.approx(2000 * share, rel=0.1)


def test_the_configuration_can_be_replaced_while_it_runs() -> None:
    paths = network()
    assert arrived(paths, count=1)
    paths.config = replace(paths.config, loss=1.0)
    assert not arrived(paths, count=1)


def test_cuts_and_holds_have_a_direction_and_end() -> None:
    paths = network()
    cut = paths.cut([A, B], [B, C])
    held = paths.hold([C], [A])
    assert paths.is_cut(A, B)
    assert not paths.is_cut(B, A)
    assert not paths.is_cut(B, B)
    assert paths.is_held(C, A)
    assert not paths.passes(C, A)
    assert paths.passes(B, A)
    assert repr(paths) == "<Network of 3 nodes, 2 rules>"
    paths.mend(cut)
    assert paths.passes(A, B)
    assert not paths.passes(C, A)
    paths.mend(held)
    paths.mend(held)  # once more changes nothing
    assert paths.passes(C, A)


def test_a_block_loses_datagrams_and_leaves_streams_alone() -> None:
    paths = network()
    paths.block([A], [B])
    assert paths.loses_datagrams(A, B)
    assert not paths.loses_datagrams(B, A)
    assert paths.arrivals(A, B, 100, 0.0) == ()
    assert paths.passes(A, B)
    paths.mend_all()
    assert not paths.loses_datagrams(A, B)


def test_faults_that_overlap_are_undone_each_by_itself() -> None:
    paths = network(jitter=0.0)
    slow = paths.impair(Impairment(factor=2.0, add_s=0.01), [A], [B])
    slower = paths.impair(Impairment(factor=3.0), [A, C], [B])
    first = paths.impair(Impairment(cut=True), [A], [B])
    second = paths.impair(Impairment(cut=True), [A], [B, C])
    assert paths.rtt_s(A, B) == pytest.approx(2 * (0.05 * 2 + 0.01) * 3)
    paths.mend(first)
    assert paths.is_cut(A, B)
    paths.mend(second)
    assert not paths.is_cut(A, B)
    paths.mend(slow)
    assert paths.rtt_s(A, B) == pytest.approx(0.3)
    paths.mend(slower)
    assert paths.rtt_s(A, B) == 0.1


def test_independent_losses_add_up_and_the_narrowest_bandwidth_counts() -> None:
    paths = network(jitter=0.0)
    paths.impair(Impairment(loss=0.5, bytes_per_s=1000.0), [A], [B])
    paths.impair(Impairment(loss=0.5, bytes_per_s=500.0), [A], [B])
    assert sum(bool(paths.arrivals(A, B, 0, 0.0)) for _ in range(4000)) == pytest.approx(1000, 0.1)
    assert paths.stream_delay_s(A, B, 500, 0.0) >= 1.05


def test_a_rule_one_way_leaves_the_way_back_alone() -> None:
    paths = network(jitter=0.0)
    paths.impair(Impairment(add_s=1.0, gossip_s=2.0), [A], [B], both_ways=False)
    assert paths.arrivals(A, B, 100, 0.0) == (3.05,)
    assert paths.stream_delay_s(A, B, 100, 0.0) == 1.05
    assert paths.extra_gossip_s(A, B) == 2.0
    assert paths.arrivals(B, A, 100, 0.0) == (0.05,)
    assert paths.extra_gossip_s(B, A) == 0.0


def test_jitter_is_replaced_by_the_last_rule_that_has_one() -> None:
    paths = network(jitter=0.0)
    rule = paths.impair(Impairment(jitter=0.5), [A], [B])
    assert max(arrived(paths)) > 0.07
    paths.mend(rule)
    assert set(arrived(paths)) == {0.05}


def test_datagrams_are_doubled_and_reordered_as_often_as_asked() -> None:
    paths = network(jitter=0.0)
    paths.impair(Impairment(duplication=0.2), [A], [B])
    assert len(arrived(paths)) == pytest.approx(2400, rel=0.03)
    paths.mend_all()
    paths.impair(Impairment(reordering=0.25, reorder_by_s=0.4), [A], [B])
    late = [each for each in arrived(paths) if each > 0.05]
    assert len(late) == pytest.approx(500, rel=0.1)
    assert 0.4 < max(late) < 0.45


def test_bytes_queue_before_a_limited_bandwidth() -> None:
    paths = network(jitter=0.0, paths={("eu", "us"): PathConfig(rtt_s=0.1, bytes_per_s=1000.0)})
    assert paths.stream_delay_s(A, B, 200, 0.0) == pytest.approx(0.25)
    assert paths.stream_delay_s(A, B, 200, 0.1) == pytest.approx(0.1 + 0.2 + 0.05)
    assert [*paths.arrivals(A, B, 100, 0.1)] == [pytest.approx(0.3 + 0.1 + 0.05)]
    assert paths.stream_delay_s(A, B, 200, 9.0) == pytest.approx(0.25)  # empty again
    assert paths.stream_delay_s(B, A, 200, 0.0) == pytest.approx(0.25)  # a queue of its own


def test_datagrams_that_would_queue_too_long_are_lost() -> None:
    paths = network(jitter=0.0, paths={("eu", "us"): PathConfig(rtt_s=0.1, bytes_per_s=1000.0)})
    paths.stream_delay_s(A, B, int(1000 * MAX_QUEUE_S) + 1, 0.0)
    assert paths.arrivals(A, B, 10, 0.0) == ()
    assert paths.arrivals(A, B, 10, 0.1) != ()


def test_what_is_lost_on_a_stream_comes_later_and_larger_bodies_lose_more() -> None:
    paths = network(jitter=0.0, loss=0.01)
    small = [paths.stream_delay_s(A, B, 100, 0.0) for _ in range(4000)]
    large = [paths.stream_delay_s(A, B, 146_000, 0.0) for _ in range(4000)]
    assert sum(each > 0.05 for each in small) == pytest.approx(40, abs=20)
    assert sum(each > 0.05 for each in large) == pytest.approx(4000 * (1 - 0.99**100), rel=0.1)
    assert {round(each, 6) for each in small} <= {0.05, 0.25, 0.65}


def test_partial_partitions_cut_the_same_pairs_in_both_directions_in_any_order() -> None:
    nodes = [f"n{number}" for number in range(60)]
    rule = Rule(Impairment(cut=True), nodes, nodes, share=0.3, salt="7/fault/1")
    cut = {(a, b) for a in nodes for b in nodes if rule.covers(a, b)}
    assert len(cut) == pytest.approx(0.3 * 60 * 59, rel=0.1)
    assert {(b, a) for a, b in cut} == cut
    other = Rule(Impairment(cut=True), nodes, nodes, share=0.3, salt="8/fault/1")
    assert {(a, b) for a in nodes for b in nodes if other.covers(a, b)} != cut


def test_whoever_waits_is_told_of_each_change() -> None:
    paths = network()
    changes: list[bool] = []
    paths.on_change(lambda: changes.append(paths.is_held(A, B)))
    rule = paths.hold([A], [B])
    paths.mend(rule)
    paths.mend(rule)
    paths.mend_all()
    assert changes == [True, False]


def test_a_router_lets_in_only_answers() -> None:
    paths = network()
    paths.put_behind_router(B)
    assert not paths.may_dial(A, B)
    assert paths.may_dial(B, A)
    assert paths.arrivals(A, B, 100, 0.0) == ()
    assert paths.arrivals(B, A, 100, 1.0) != ()
    assert paths.arrivals(A, B, 100, 2.0) != ()
    assert paths.arrivals(C, B, 100, 2.0) == ()
    assert paths.arrivals(A, B, 100, 1.1 + ROUTER_MEMORY_S) == ()


def test_the_same_seed_draws_the_same() -> None:
    def draws(seed: int) -> list[tuple[float, ...]]:
        paths = network(seed, loss=0.1)
        paths.impair(Impairment(duplication=0.2, reordering=0.2, reorder_by_s=1.0), [A], [B])
        return [paths.arrivals(A, B, 100, 0.0) for _ in range(100)]

    assert draws(1) == draws(1) != draws(2)
