"""Network coordinates on made-up latencies, and points that are lies."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.limits import MAX_COORDINATE_S, MAX_MEMBERS
from meshnode.membership.coordinates import (
    DIMENSIONS,
    LEAST_STEP_S,
    MIN_HEIGHT_S,
    WORST_ERROR,
    Coordinate,
    Coordinates,
    from_wire,
)
from meshnode.types import NodeId

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")

# RTTs between five regions in seconds, as clouds publish them.
REGIONS = {
    ("eu", "us-east"): 0.085,
    ("eu", "us-west"): 0.145,
    ("eu", "asia"): 0.235,
    ("eu", "sydney"): 0.270,
    ("us-east", "us-west"): 0.062,
    ("us-east", "asia"): 0.210,
    ("us-east", "sydney"): 0.200,
    ("us-west", "asia"): 0.170,
    ("us-west", "sydney"): 0.140,
    ("asia", "sydney"): 0.095,
}
NAMES = ("eu", "us-east", "us-west", "asia", "sydney")


class Fleet:
    """Nodes in regions, each with an access link of its own, that probe each other in passes."""

    def __init__(self, count: int, seed: int, jitter: float = 0.05) -> None:
        self.rng = random.Random(seed)
        self.ids = [NodeId(f"n{i}") for i in range(count)]
        self.region = [NAMES[i % len(NAMES)] for i in range(count)]
        self.access_s = [self.rng.uniform(0.0005, 0.012) for _ in range(count)]
        self.jitter = jitter
        self.cores = [Coordinates(node, random.Random(f"{seed}/{node}")) for node in self.ids]

    def rtt_s(self, a: int, b: int) -> float:
        one, other = sorted((self.region[a], self.region[b]), key=NAMES.index)
        between_s = 0.001 if one == other else REGIONS[one, other]
        return between_s + self.access_s[a] + self.access_s[b]

    def probe(self, a: int, b: int) -> None:
        rtt_s = self.rtt_s(a, b) * (1 + abs(self.rng.gauss(0.0, self.jitter)))
        if self.rng.random() < 0.02:
            rtt_s += 0.5  # it queued behind something
        assert self.cores[b].hear(self.ids[a], self.cores[a].own.to_wire()) is None
        assert self.cores[a].hear(self.ids[b], self.cores[b].own.to_wire()) is None
        self.cores[a].measure(self.ids[b], rtt_s)

    def run(self, passes: int) -> None:
        count = len(self.ids)
        for _ in range(passes):
            orders = [self.rng.sample(range(count), count) for _ in range(count)]
            for turn in range(count):
                for a in range(count):
                    if orders[a][turn] != a:
                        self.probe(a, orders[a][turn])

    def error(self, skip: frozenset[int] = frozenset()) -> float:
        """Return the median relative error of a node's estimates, over all pairs."""
        judge = self.cores[0]
        errors = []
        honest = [i for i in range(len(self.ids)) if i not in skip]
        for a in honest:
            for b in honest:
                if a < b:
                    estimate_s = judge.rtt_s(self.ids[a], self.ids[b])
                    assert estimate_s is not None
                    errors.append(abs(estimate_s - self.rtt_s(a, b)) / self.rtt_s(a, b))
        return median(errors)


@pytest.mark.parametrize("seed", range(4))
def test_any_two_nodes_of_five_regions_are_estimated_within_15_percent(seed: int) -> None:
    fleet = Fleet(30, seed)
    fleet.run(20)
    assert fleet.error() <= 0.15


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(12, 40), st.floats(0.0, 0.15))
def test_estimates_settle_whatever_the_seed_size_and_jitter(
    seed: int, count: int, jitter: float
) -> None:
    fleet = Fleet(count, seed, jitter)
    fleet.run(600 // count)
    assert fleet.error() <= 0.15 + jitter / 2


def test_estimates_follow_when_a_node_moves() -> None:
    fleet = Fleet(25, seed=9)
    fleet.run(20)
    fleet.region[5] = "sydney" if fleet.region[5] != "sydney" else "eu"
    fleet.run(20)
    errors = [
        abs((fleet.cores[0].rtt_s(fleet.ids[5], fleet.ids[b]) or 0.0) - fleet.rtt_s(5, b))
        / fleet.rtt_s(5, b)
        for b in range(25)
        if b != 5
    ]
    assert median(errors) <= 0.2


def test_three_liars_of_thirty_do_not_spoil_the_others() -> None:
    """They claim to be certain of a place ten seconds away, each time another one."""
    fleet = Fleet(30, seed=3)
    fleet.run(20)
    liars = frozenset({4, 11, 22})
    lie = random.Random(1)
    for _ in range(20):
        for a in range(30):
            for liar in liars:
                place = [lie.uniform(-9.9, 9.9) for _ in range(DIMENSIONS)]
                claim = Coordinate(tuple(place), 1.0, 1.0, 0.0).to_wire()
                assert fleet.cores[a].hear(fleet.ids[liar], claim) is None
                fleet.cores[a].measure(fleet.ids[liar], fleet.rtt_s(a, liar))
        fleet.run(1)
    assert fleet.error(liars) <= 0.3


def test_one_sample_moves_a_node_no_farther_than_its_round_trip_time() -> None:
    core = Coordinates(A, random.Random(0))
    for claim in (
        Coordinate((9.0, *[0.0] * 7), 9.0, 9.0, 0.0),
        Coordinate((-9.0, *[9.0] * 7), 0.0, -9.0, 0.0),
    ):
        for rtt_s in (0.0, 0.001, 0.2, 1.0):
            core.hear(B, claim.to_wire())
            before = core.own
            core.forget(B)  # its earlier samples
            core.hear(B, claim.to_wire())
            core.measure(B, rtt_s)
            moved_s = math.dist(before.vector, core.own.vector)
            assert moved_s <= max(rtt_s, LEAST_STEP_S) + 0.02  # gravity's share


def test_a_sample_that_queued_for_long_moves_nothing() -> None:
    core, twin = (Coordinates(A, random.Random(0)) for _ in range(2))
    for each in (core, twin):
        each.hear(B, Coordinate((0.1, *[0.0] * 7), 0.001, 0.0, 0.3).to_wire())
        for _ in range(3):
            each.measure(B, 0.1)
    core.measure(B, 5.0)
    twin.measure(B, 0.1)
    assert core.own == twin.own


@pytest.mark.parametrize(
    "numbers",
    [
        (1.0,) * 10,
        (1.0,) * 12,
        (float("nan"), *[0.0] * 10),
        (*[0.0] * 8, float("inf"), 0.0, 0.0),
        (*[0.0] * 8, float("-inf"), 0.0, 0.0),
        (1e300, *[0.0] * 10),
        (*[0.0] * 8, -1.0, 0.0, 0.0),
        (*[0.0] * 10, -1.0),
        (*[0.0] * 10, 1e6 * WORST_ERROR + 1),
        (1e6 * MAX_COORDINATE_S + 1, *[0.0] * 10),
    ],
)
def test_what_is_no_point_is_refused_and_changes_nothing(numbers: tuple[float, ...]) -> None:
    core = Coordinates(A, random.Random(0))
    refused = core.hear(B, numbers)
    assert refused is not None
    assert "coordinate" in refused
    core.measure(C, 0.1)
    assert core.rtt_s(A, B) is None


def test_a_node_without_coordinates_is_no_fault_and_has_no_estimate() -> None:
    core = Coordinates(A, random.Random(0))
    assert core.hear(B, ()) is None
    assert core.rtt_s(A, B) is None
    assert core.rtt_s(A, A) == 0.0


def test_a_point_that_was_never_measured_gives_no_estimate() -> None:
    core = Coordinates(A, random.Random(0))
    core.hear(B, Coordinate().to_wire())
    core.hear(C, Coordinate(error=0.2).to_wire())
    assert core.rtt_s(B, C) is None
    core.measure(C, 0.05)
    assert core.rtt_s(A, C) is not None
    assert core.rtt_s(A, B) is None
    core.forget(C)
    assert core.rtt_s(A, C) is None


def test_nobody_tells_a_point_before_it_means_something() -> None:
    one, other = Coordinates(A, random.Random(0)), Coordinates(B, random.Random(1))
    assert one.wire == ()
    for _ in range(40):  # so the first of them has to begin without one of the other's
        one.hear(B, other.wire)
        one.measure(B, 0.08)
        other.hear(A, one.wire)
        other.measure(A, 0.08)
    assert len(one.wire) == 11
    assert one.rtt_s(A, B) == pytest.approx(0.08, rel=0.05)
    assert other.rtt_s(A, B) == pytest.approx(0.08, rel=0.05)


def test_samples_out_of_range_move_nothing() -> None:
    core = Coordinates(A, random.Random(0))
    core.hear(B, Coordinate(error=0.5).to_wire())
    for rtt_s in (float("nan"), float("inf"), -1.0, MAX_COORDINATE_S + 1):
        core.measure(B, rtt_s)
    assert core.own == Coordinate()


def test_what_is_heard_is_bounded() -> None:
    core = Coordinates(A, random.Random(0))
    claim = Coordinate(error=0.5).to_wire()
    for i in range(MAX_MEMBERS + 10):
        core.hear(NodeId(f"n{i}"), claim)
    assert core.rtt_s(NodeId("n0"), NodeId(f"n{MAX_MEMBERS - 1}")) is not None
    assert core.rtt_s(NodeId("n0"), NodeId(f"n{MAX_MEMBERS}")) is None
    assert repr(core) == "<Coordinates of a: error 1.50, 8192 others>"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(-12, 12), min_size=11, max_size=11), st.floats(-1, 12)),
        max_size=40,
    )
)
def test_no_sequence_of_claims_and_samples_makes_a_point_that_others_refuse(
    samples: list[tuple[list[float], float]],
) -> None:
    core = Coordinates(A, random.Random(0))
    for numbers, rtt_s in samples:
        core.hear(B, tuple(number * 1e6 for number in numbers))
        core.measure(B, rtt_s)
        assert isinstance(from_wire(core.own.to_wire()), Coordinate)
        assert core.own.height_s >= MIN_HEIGHT_S


def test_the_wire_keeps_microseconds() -> None:
    point = Coordinate(tuple(i * 0.012345 for i in range(8)), 0.0042, -0.0007, 0.31)
    read = from_wire(point.to_wire())
    assert isinstance(read, Coordinate)
    assert read.distance_s(Coordinate()) == pytest.approx(point.distance_s(Coordinate()), abs=1e-5)
