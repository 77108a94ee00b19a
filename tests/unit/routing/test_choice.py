from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import InferenceFailed
from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.routing.breaker import BreakerState, Verdict
from meshnode.routing.breakers import Breakers
from meshnode.routing.choice import FEW_DRAWN, Candidate, Candidates, Terms, choose, drops
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import LinkState, Path, ReplicaLoad
from meshnode.routing.picking import pick
from meshnode.routing.request import RoutedRequest
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

ASKED = RoutedRequest("digits")

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
    breaker = Breakers(CONFIG, random.Random(1)).of(NodeId(name), "digits", 1)
    if opened_by:
        breaker.record(breaker.take(0.0), Verdict.FATAL, 0.0, opened_by)
    return Candidate(replica, load, Path(link, rtt_ms), breaker, unmeasured_rtt_ms=50.0)


def names(
    pool: list[Candidate], now: float = 0.0, *, draws: int = 200, **options: tuple[str, ...]
) -> Counter[str]:
    rng = random.Random(1)
    routes = [choose(Candidates(tuple(pool)), ASKED, now, rng, **options) for _ in range(draws)]  # type: ignore[arg-type]  # NodeIds are strings here
    return Counter(route.replica.node_name for route in routes if route is not None)


IDLE = Terms(
    rtt_ms=2.0,
    cold_ms=0.0,
    rho=1.0,
    wait_ms=0.0,
    service_ms=10.0,
    staleness=1.0,
    ramp=1.0,
    p_error=0.0,
    saved_ms=0.0,
)


@pytest.mark.parametrize(
    ("terms", "expected_ms"),
    [
        (IDLE, 12.0),  # round trip and service
        (IDLE._replace(wait_ms=2.5), 14.5),
        (IDLE._replace(rho=3.0), 32.0),  # rho does not slow the network
        (IDLE._replace(staleness=1.25), 15.0),
        (IDLE._replace(ramp=2.0), 24.0),
        (IDLE._replace(p_error=0.5), 24.0),
        (IDLE._replace(cold_ms=100.0, saved_ms=5.0), 107.0),
    ],
)
def test_the_score_is_the_formula(terms: Terms, expected_ms: float) -> None:
    assert terms.expected_ms == pytest.approx(expected_ms)


@pytest.mark.parametrize(
    ("age_s", "factor"),
    [
        (0.0, 1.0),
        (2.0, 1.0),  # gossip comes once in a second
        (4.5, 1.125),
        (7.0, 1.25),
        (1e6, 1.25),
    ],
)
def test_an_old_report_makes_the_score_worse(age_s: float, factor: float) -> None:
    """Word of a load is good for two seconds, and worth least after seven."""
    one = candidate("one", rtt_ms=2.0)
    assert one.expected_ms(ASKED, age_s) == pytest.approx(12.0 * factor)


@pytest.mark.parametrize(("queued", "wait_ms"), [(0, 0.0), (3, 0.0), (4, 2.5), (11, 20.0)])
def test_a_request_waits_for_its_share_of_what_is_before_it(queued: int, wait_ms: float) -> None:
    four = candidate("four", queued=queued, slots=4, service_ms=10.0)
    assert four.terms(ASKED, 0.0).wait_ms == pytest.approx(wait_ms)


def test_a_large_request_goes_to_the_device_that_large_ones_cost_least() -> None:
    pool = [candidate("laptop", service_ms=10.0), candidate("gpu", service_ms=12.0)]
    for number in range(100):
        rows = 1 + number % 64
        request = RoutedRequest("digits", rows=rows)
        pool[0].sizes.observe(request, rows / 3.2, 10.0)
        pool[1].sizes.observe(request, 12.0 + rows / 64, 12.0)
    chosen = {
        rows: choose(
            Candidates(tuple(pool)), RoutedRequest("digits", rows=rows), 0.0, random.Random(1)
        )
        for rows in (1, 64)
    }
    assert {rows: route and route.replica.node_name for rows, route in chosen.items()} == {
        1: "laptop", 64: "gpu",
    }  # fmt: skip


def test_the_lowest_expected_time_wins_and_the_route_says_so() -> None:
    pool = Candidates((candidate("slow", service_ms=100.0), candidate("fast", service_ms=1.0)))
    route = choose(pool, ASKED, 0.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason, route.candidates) == (
        "fast", "lowest-expected", 2,
    )  # fmt: skip
    assert route.expected_ms == pytest.approx(2.0)
    assert route.dropped == ()


def test_a_single_candidate_is_taken_as_it_is() -> None:
    route = choose(Candidates((candidate("only"),)), ASKED, 0.0, random.Random(1))
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
        for route in (choose(pool, ASKED, 0.0, rng) for _ in range(50))
        if route is not None
    }
    assert reasons == {("lowest", "lowest-expected"), ("near", "near-lowest")}


def test_an_unmeasured_path_is_assumed_and_a_measured_one_believed() -> None:
    unmeasured = candidate("far", rtt_ms=None)
    assert (unmeasured.rtt_ms, unmeasured.expected_ms(ASKED, 0.0)) == (50.0, 60.0)
    unmeasured.path.rtt_ms = 0.0
    assert (unmeasured.rtt_ms, unmeasured.expected_ms(ASKED, 0.0)) == (0.0, 10.0)


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
    route = choose(pool, ASKED, 0.5, random.Random(1), explain=True, **options)  # type: ignore[arg-type]  # the values have different types
    assert route is not None
    assert route.replica.node_name == "good"
    assert route.dropped == (("third", "loading"), (other.replica.node_name, reason))


def test_without_a_candidate_there_is_no_route() -> None:
    assert choose(Candidates(()), ASKED, 0.0, random.Random(1)) is None
    gone = Candidates((candidate("gone", opened_by="not_serving"),))
    assert choose(gone, ASKED, 0.0, random.Random(1)) is None


def test_a_node_whose_link_is_back_is_a_last_resort_before_its_breakers_time() -> None:
    lost = Candidates((candidate("lost", opened_by="link_lost"),))
    route = choose(lost, ASKED, 0.0, random.Random(1))
    assert route is not None
    assert route.reason == "last-resort"


def test_a_region_to_avoid_is_used_when_there_is_no_other() -> None:
    pool = [candidate("near", region="eu"), candidate("far", region="us", service_ms=1e3)]
    assert set(names(pool, avoid_regions=("eu",))) == {"far"}
    assert set(names(pool, avoid_regions=("eu", "us"))) == {"near"}
    assert set(names(pool[:1], avoid_regions=("eu",))) == {"near"}


def test_an_opened_breaker_turns_requests_away_until_its_time_then_takes_a_probe() -> None:
    broken, other = candidate("broken", opened_by="link_lost"), candidate("other", service_ms=1e3)
    assert set(names([broken, other], now=0.9)) == {"other"}
    route = choose(Candidates((broken, other)), ASKED, 1.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason) == ("broken", "probe")


def test_a_model_that_keeps_raising_is_a_last_resort() -> None:
    """One client's bad input opens the breaker; the others' good requests still go there."""
    raising = candidate("raising", opened_by=InferenceFailed.code)
    other = candidate("other", service_ms=1e3)
    assert set(names([raising, other])) == {"other"}
    other.path.link = LinkState.DOWN
    route = choose(Candidates((raising, other)), ASKED, 0.0, random.Random(1))
    assert route is not None
    assert (route.replica.node_name, route.reason, route.candidates) == (
        "raising", "last-resort", 1,
    )  # fmt: skip
    assert choose(Candidates((raising,)), ASKED, 0.0, random.Random(1), tried=("raising",)) is None  # type: ignore[arg-type]  # a NodeId is a string


def test_many_candidates_are_sampled_by_capacity() -> None:
    """Of 1,010 the ten that hold nearly all the capacity are always seen."""
    pool = [candidate(f"slow-{number}", service_ms=1000.0) for number in range(1000)]
    pool += [candidate(f"fast-{number}", service_ms=0.1, slots=8) for number in range(10)]
    sample = Candidates(tuple(pool)).sample(0.0, random.Random(1))
    assert len(sample) <= MAX_CANDIDATES_SCORED
    assert set(names(pool, draws=50)) <= {f"fast-{number}" for number in range(10)}


def test_of_many_only_those_to_which_there_is_a_link_are_looked_at() -> None:
    """In a large mesh a gateway has links to few of a model's replicas, and looks at all of those."""
    pool = [candidate(f"far-{number}", link=LinkState.DOWN) for number in range(1000)]
    pool += [candidate(f"linked-{number}") for number in range(MAX_CANDIDATES_SCORED)]
    candidates = Candidates(tuple(pool))
    rng = random.Random(1)
    assert candidates.sample(0.0, rng) == tuple(pool[1000:])
    pool[0].path.link = LinkState.UP
    assert pool[0] not in candidates.sample(0.9, rng)
    drawn = {each for _ in range(20) for each in candidates.sample(1.0, rng)}
    assert drawn == {pool[0], *pool[1000:]}


def test_capacities_are_summed_again_when_they_are_old() -> None:
    pool = tuple(candidate(str(number)) for number in range(MAX_CANDIDATES_SCORED + 1))
    candidates = Candidates(pool)
    rng = random.Random(1)
    candidates.sample(0.0, rng)
    pool[0].load.report(LoadReport(0, 1, 1e-3), 0.1, 0.0)
    assert len(candidates.sample(0.9, rng)) > 1 + FEW_DRAWN
    assert len(candidates.sample(1.0, rng)) <= 1 + FEW_DRAWN


def test_one_that_claims_all_the_capacity_is_not_all_that_is_looked_at() -> None:
    pool = tuple(candidate(str(number)) for number in range(MAX_CANDIDATES_SCORED + 1))
    pool[0].load.report(LoadReport(0, 10**6, 1.0), 0.0, 0.0)
    sample = Candidates(pool).sample(0.0, random.Random(1))
    assert len(sample) >= FEW_DRAWN // 2


def test_slots_beyond_belief_do_not_draw_more_requests() -> None:
    pool = tuple(candidate(str(number)) for number in range(MAX_CANDIDATES_SCORED + 1))
    pool[0].load.report(LoadReport(0, 10**6, 10.0), 0.0, 0.0)
    others = [
        len(Candidates(pool).sample(0.0, random.Random(seed))) - FEW_DRAWN for seed in range(20)
    ]
    assert max(others) > 1  # were they believed, it would be the only one drawn by capacity


def test_a_replica_that_is_tried_again_saves_no_more_than_it_is_expected_to_take() -> None:
    """Slow for the time being, and due for a trial: the saving is of the time in the score."""
    pool = [candidate("a", rtt_ms=1.0), candidate("b", rtt_ms=1.0)]
    for second in range(7):
        pool[0].load.report(LoadReport(0, 1, 10.0), float(second), 0.0)
    pool[0].load.report(LoadReport(0, 1, 500.0), 7.0, 0.0)
    request = RoutedRequest("digits", saves={NodeId("a"): 0.4})
    assert pool[0].terms(request, 7.5).service_ms < 50.0
    assert pool[0].expected_ms(request, 7.5) >= 0.0
    assert choose(Candidates(tuple(pool)), request, 7.5, random.Random(1)) is not None


def test_scores_below_zero_have_a_lowest_one_as_others_do() -> None:
    pool = [candidate("a"), candidate("b")]
    assert pick([-10.0, 5.0], pool, ASKED, random.Random(1)) == (0, "lowest-expected")


def test_a_replica_without_memory_for_a_request_is_no_last_resort_either() -> None:
    one = candidate("one")
    one.conditions = NodeConditions(memory_free_bytes=1 << 20)
    assert choose(Candidates((one,)), ASKED, 0.0, random.Random(1)) is not None
    large = RoutedRequest("digits", size_bytes=8 << 20)
    assert choose(Candidates((one,)), large, 0.0, random.Random(1)) is None


def test_when_the_sample_holds_nobody_all_are_scanned() -> None:
    pool = [candidate(str(number), service_ms=1e-3, link=LinkState.DOWN) for number in range(100)]
    pool.append(candidate("good", service_ms=1e6))
    assert set(names(pool, draws=3)) == {"good"}


def test_reprs_tell_the_state() -> None:
    one = candidate("alpha")
    assert repr(one) == (
        "<Candidate alpha <ReplicaLoad 0/1 in system, 0 own, 10 ms, errors 0.00> "
        "<Path up 1.0 ms> <Guard <Breaker closed  epoch 0> of node <Breaker closed  epoch 0>>>"
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
    route = choose(candidates, ASKED, now, random.Random(seed), tried=tried, avoid_regions=("us",))
    again = choose(
        Candidates(tuple(pool)), ASKED, now, random.Random(seed), tried=tried, avoid_regions=("us",)
    )
    assert route == again
    dropped = dict(drops(candidates, ASKED, now, tried))
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
    assert route.expected_ms == route.candidate.expected_ms(ASKED, now)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(pools, st.floats(0, 30))
def test_the_terms_make_up_the_score(pool: list[Candidate], now: float) -> None:
    for each in pool:
        terms = each.terms(ASKED, now)
        assert terms.expected_ms == pytest.approx(each.expected_ms(ASKED, now))


@pytest.mark.parametrize("order", [1, -1])
def test_those_out_of_reach_are_spared_the_formula_and_no_pick_is_another_for_it(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    asked: list[Candidate] = []
    candidates = 0
    whole = Candidate.expected_ms

    def counted(self: Candidate, request: RoutedRequest, now: float) -> float:
        asked.append(self)
        return whole(self, request, now)

    for _ in range(50):
        pool = [
            candidate(f"n{number}", queued=rng.randrange(9), slots=4, service_ms=service_ms)
            for number, service_ms in enumerate((20.0, 100.0, 1000.0) * 5)
        ][::order]
        scores = [whole(each, ASKED, 0.1) for each in pool]
        seed = rng.getrandbits(32)
        index, how = pick(scores, pool, ASKED, random.Random(seed))
        with monkeypatch.context() as patch:
            patch.setattr(Candidate, "expected_ms", counted)
            route = choose(Candidates(tuple(pool)), ASKED, 0.1, random.Random(seed))
        assert route is not None
        assert (route.candidate, route.reason) == (pool[index], how)
        assert (route.expected_ms, route.candidates) == (scores[index], len(pool))
        candidates += len(pool)
    assert len(asked) < candidates / 2


def test_a_slow_replica_that_is_due_for_a_trial_is_not_out_of_reach() -> None:
    slow, other = candidate("slow", service_ms=10.0), candidate("other", service_ms=12.0)
    for second in range(1, 9):
        slow.load.report(LoadReport(0, 1, 10.0), float(second), 0.0)
    slow.load.report(LoadReport(0, 1, 100.0), 9.0, 0.0)
    assert slow.load.trials.slow_above_ms < 100.0
    assert names([other, slow], now=9.0)["slow"] > 0
