from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InferenceFailed
from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.routing.breaker import Breaker, BreakerState, Verdict
from meshnode.routing.choice import Candidate, Candidates, choose, drops, score
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import LinkState, Path, ReplicaLoad
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

CONFIG = RoutingConfig(breaker_jitter=0.0)


def candidate(
    name: str,
    *,
    region: str = "eu",
    rtt_ms: float | None = 1.0,
    queued: int = 0,
    slots: int = 1,
    service_ms: float = 10.0,
    link: LinkState = LinkState.UP,
    opened_by: str = "",
) -> Candidate:
    """A replica whose load was reported at 0; `opened_by` opened its breaker at 0 for 1 s."""
    replica = Replica(NodeId(name), name, region, "", "digits", 1, ReplicaState.READY)
    load = ReplicaLoad(slots, service_ms)
    load.report(LoadReport(queued, slots, service_ms), 0.0, 0.0)
    breaker = Breaker(CONFIG, random.Random(1))
    if opened_by:
        breaker.record(breaker.take(0.0), Verdict.FATAL, 0.0, opened_by)
    return Candidate(replica, load, Path(link, rtt_ms), breaker, unmeasured_rtt_ms=50.0)


def names(
    pool: list[Candidate], now: float = 0.0, *, draws: int = 200, **options: tuple[str, ...]
) -> Counter[str]:
    rng = random.Random(1)
    routes = [choose(Candidates(tuple(pool)), now, rng, **options) for _ in range(draws)]  # type: ignore[arg-type]  # NodeIds are strings here
    return Counter(route.replica.node_name for route in routes if route is not None)


@pytest.mark.parametrize(
    ("fields", "expected_ms"),
    [
        # rtt, queued, slots, service, rho, age, p_error
        ((2.0, 0, 4, 10.0, 1.0, 0.0, 0.0), 12.0),  # idle: round trip and service
        ((2.0, 3, 4, 10.0, 1.0, 0.0, 0.0), 12.0),  # one slot is free
        ((2.0, 4, 4, 10.0, 1.0, 0.0, 0.0), 14.5),  # waits for a quarter
        ((2.0, 11, 4, 10.0, 1.0, 0.0, 0.0), 32.0),
        ((2.0, 0, 4, 10.0, 3.0, 0.0, 0.0), 32.0),  # rho does not slow the network
        ((2.0, 0, 4, 10.0, 1.0, 2.5, 0.0), 13.5),
        ((2.0, 0, 4, 10.0, 1.0, 5.0, 0.0), 15.0),
        ((2.0, 0, 4, 10.0, 1.0, math.inf, 0.0), 15.0),
        ((2.0, 0, 4, 10.0, 1.0, 0.0, 0.5), 24.0),
    ],
)
def test_the_score_is_the_formula(
    fields: tuple[float, int, int, float, float, float, float], expected_ms: float
) -> None:
    assert score(*fields) == pytest.approx(expected_ms)


def test_the_lowest_expected_time_wins_and_the_route_says_so() -> None:
    pool = Candidates((candidate("slow", service_ms=100.0), candidate("fast", service_ms=1.0)))
    route = choose(pool, 0.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason, route.candidates) == (
        "fast", "lowest-expected", 2,
    )  # fmt: skip
    assert route.expected_ms == pytest.approx(2.0)
    assert route.dropped == ()


def test_a_single_candidate_is_taken_as_it_is() -> None:
    route = choose(Candidates((candidate("only"),)), 0.0, random.Random(1))
    assert route is not None
    assert route.reason == "only-candidate"


def test_those_within_a_quarter_of_the_lowest_share_evenly_and_others_get_nothing() -> None:
    drawn = names(
        [
            candidate("lowest", service_ms=10.0, rtt_ms=0.0),
            candidate("near", service_ms=12.5, rtt_ms=0.0),
            candidate("far", service_ms=12.6, rtt_ms=0.0),
        ],
        draws=1000,
    )
    assert set(drawn) == {"lowest", "near"}
    assert drawn["near"] == pytest.approx(500, abs=60)


def test_a_pick_near_the_lowest_says_so() -> None:
    pool = Candidates((candidate("lowest", service_ms=10.0), candidate("near", service_ms=11.0)))
    rng = random.Random(1)
    reasons = {
        (route.replica.node_name, route.reason)
        for route in (choose(pool, 0.0, rng) for _ in range(50))
        if route is not None
    }
    assert reasons == {("lowest", "lowest-expected"), ("near", "near-lowest")}


def test_an_unmeasured_path_is_assumed_and_a_measured_one_believed() -> None:
    unmeasured = candidate("far", rtt_ms=None)
    assert (unmeasured.rtt_ms, unmeasured.expected_ms(0.0)) == (50.0, 60.0)
    unmeasured.path.rtt_ms = 0.0
    assert (unmeasured.rtt_ms, unmeasured.expected_ms(0.0)) == (0.0, 10.0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (candidate("other", link=LinkState.DOWN), "link down"),
        (candidate("other", link=LinkState.STALLED), "link stalled"),
        (candidate("other", link=LinkState.GOING_AWAY), "link going away"),
        (candidate("other", opened_by="link_lost"), "breaker open (link_lost) for 0.5 s"),
        (candidate("other", region="us"), "region us failed"),
        (candidate("tried"), "tried already"),
    ],
)
def test_each_drop_has_its_reason(other: Candidate, reason: str) -> None:
    pool = Candidates((other, candidate("good", service_ms=1e3)), (("third", "loading"),))
    options = {"tried": (NodeId("tried"),), "avoid_regions": ("us",)}
    route = choose(pool, 0.5, random.Random(1), explain=True, **options)  # type: ignore[arg-type]  # the values have different types
    assert route is not None
    assert route.replica.node_name == "good"
    assert route.dropped == (("third", "loading"), (other.replica.node_name, reason))


def test_without_a_candidate_there_is_no_route() -> None:
    assert choose(Candidates(()), 0.0, random.Random(1)) is None
    lost = Candidates((candidate("lost", opened_by="link_lost"),))
    assert choose(lost, 0.0, random.Random(1)) is None


def test_a_region_to_avoid_is_used_when_there_is_no_other() -> None:
    pool = [candidate("near", region="eu"), candidate("far", region="us", service_ms=1e3)]
    assert set(names(pool, avoid_regions=("eu",))) == {"far"}
    assert set(names(pool, avoid_regions=("eu", "us"))) == {"near"}
    assert set(names(pool[:1], avoid_regions=("eu",))) == {"near"}


def test_an_opened_breaker_turns_requests_away_until_its_time_then_takes_a_probe() -> None:
    broken, other = candidate("broken", opened_by="link_lost"), candidate("other", service_ms=1e3)
    assert set(names([broken, other], now=0.9)) == {"other"}
    route = choose(Candidates((broken, other)), 1.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason) == ("broken", "probe")


def test_a_model_that_keeps_raising_is_a_last_resort() -> None:
    """One client's bad input opens the breaker; the others' good requests still go there."""
    raising = candidate("raising", opened_by=InferenceFailed.code)
    other = candidate("other", service_ms=1e3)
    assert set(names([raising, other])) == {"other"}
    other.path.link = LinkState.DOWN
    route = choose(Candidates((raising, other)), 0.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason, route.candidates) == (
        "raising", "last-resort", 1,
    )  # fmt: skip
    assert choose(Candidates((raising,)), 0.0, random.Random(1), tried=("raising",)) is None  # type: ignore[arg-type]  # a NodeId is a string


def test_many_candidates_are_sampled_by_capacity() -> None:
    """Of 1,010 the ten that hold nearly all the capacity are always seen."""
    pool = [candidate(f"slow-{number}", service_ms=1000.0) for number in range(1000)]
    pool += [candidate(f"fast-{number}", service_ms=0.1, slots=8) for number in range(10)]
    sample = Candidates(tuple(pool)).sample(0.0, random.Random(1))
    assert len(sample) <= MAX_CANDIDATES_SCORED
    assert set(names(pool, draws=50)) <= {f"fast-{number}" for number in range(10)}


def test_capacities_are_summed_again_when_they_are_old() -> None:
    pool = tuple(candidate(str(number)) for number in range(MAX_CANDIDATES_SCORED + 1))
    candidates = Candidates(pool)
    rng = random.Random(1)
    candidates.sample(0.0, rng)
    pool[0].load.report(LoadReport(0, 1, 1e-3), 0.1, 0.0)
    assert len(candidates.sample(0.9, rng)) > 20
    assert len(candidates.sample(1.0, rng)) <= 3


def test_when_the_sample_holds_nobody_all_are_scanned() -> None:
    pool = [candidate(str(number), service_ms=1e-3, link=LinkState.DOWN) for number in range(100)]
    pool.append(candidate("good", service_ms=1e6))
    assert set(names(pool, draws=3)) == {"good"}


def test_reprs_tell_the_state() -> None:
    one = candidate("alpha")
    assert repr(one) == (
        "<Candidate alpha <ReplicaLoad 0/1 in system, 0 own, 10 ms, rho 1.00, errors 0.00> "
        "<Path up 1.0 ms> <Breaker closed  epoch 0>>"
    )
    assert repr(Candidates((one,))) == "<Candidates 1 ready, 0 not>"


pools = st.lists(
    st.builds(
        candidate,
        st.integers(0, 10**6).map(str),
        region=st.sampled_from(["eu", "us"]),
        rtt_ms=st.sampled_from([None, 0.0, 1.0, 100.0]),
        queued=st.integers(0, 100),
        slots=st.integers(1, 8),
        service_ms=st.floats(0.01, 1000),
        link=st.sampled_from([LinkState.UP] * 4 + list(LinkState)),
        opened_by=st.sampled_from(["", "", "", "link_lost", "inference_failed"]),
    ),
    max_size=80,
    unique_by=lambda each: each.replica.node,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pools, st.floats(0, 3), st.integers(0, 2**32), st.data())
def test_only_replicas_that_can_serve_are_chosen_and_the_same_seed_chooses_the_same(
    pool: list[Candidate], now: float, seed: int, data: st.DataObject
) -> None:
    nodes = [each.replica.node for each in pool]
    tried = tuple(data.draw(st.lists(st.sampled_from(nodes), max_size=2))) if nodes else ()
    candidates = Candidates(tuple(pool))
    route = choose(candidates, now, random.Random(seed), tried=tried, avoid_regions=("us",))
    again = choose(
        Candidates(tuple(pool)), now, random.Random(seed), tried=tried, avoid_regions=("us",)
    )
    assert route == again
    dropped = dict(drops(candidates, now, tried))
    if route is None:
        assert all(
            each.replica.node_name in dropped
            and not (
                each.breaker.yields and each.path.link == "up" and each.replica.node not in tried
            )
            for each in pool
        )
        return
    assert route.replica.node not in tried
    assert route.candidate.path.link is LinkState.UP
    if route.reason == "last-resort":
        assert len(dropped) == len(pool)
        assert route.candidate.breaker.state is not BreakerState.CLOSED
    else:
        assert route.replica.node_name not in dropped
    assert route.expected_ms == route.candidate.expected_ms(now)
