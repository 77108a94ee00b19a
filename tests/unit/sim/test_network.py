from __future__ import annotations

import random

import pytest

from meshnode.sim.network import Network, NetworkConfig
from meshnode.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def network(**settings: float) -> Network:
    made = Network(NetworkConfig(rtt_s={("eu", "us"): 0.1}, **settings), random.Random(0))
    for node, region in ((A, "eu"), (B, "us"), (C, "asia")):
        made.place(node, region)
    return made


def test_round_trips_are_those_of_the_regions_in_either_order() -> None:
    paths = network()
    assert paths.rtt_s(A, B) == paths.rtt_s(B, A) == 0.1
    assert paths.rtt_s(A, A) == 0.0005
    assert paths.rtt_s(A, C) == 0.08


def test_delays_scatter_around_half_the_round_trip() -> None:
    paths = network(jitter=0.2)
    delays = [paths.delay_s(A, B) for _ in range(1000)]
    assert min(delays) >= 0.04
    assert max(delays) <= 0.06
    assert sum(delays) / 1000 == pytest.approx(0.05, rel=0.02)
    assert network(jitter=0.0).delay_s(A, B) == 0.05


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_losses_are_as_frequent_as_configured(share: float) -> None:
    paths = network(loss=share, note_loss=share)
    assert sum(paths.loses_datagram() for _ in range(2000)) == pytest.approx(2000 * share, rel=0.1)
    assert sum(paths.drops_note() for _ in range(2000)) == pytest.approx(2000 * share, rel=0.1)


def test_cuts_and_holds_have_a_direction_and_end() -> None:
    paths = network()
    paths.cut([A, B], [B, C])
    paths.hold([C], [A])
    assert paths.is_cut(A, B)
    assert not paths.is_cut(B, A)
    assert not paths.is_cut(B, B)
    assert paths.is_held(C, A)
    assert not paths.passes(C, A)
    assert paths.passes(B, A)
    assert repr(paths) == "<Network of 3 nodes, 3 cuts, 1 holds>"
    paths.mend()
    paths.release()
    assert paths.passes(A, B)
    assert paths.passes(C, A)
