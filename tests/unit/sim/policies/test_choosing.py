"""What each policy does with what it sees."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from meshnode.errors import InferenceFailed, LinkLost, UsageError
from meshnode.routing.breaker import Verdict
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.sim.policies.catalogue import (
    MESH,
    ORACLES,
    POLICIES,
    WITHOUT_HOOKS,
    chooser,
    parse,
    regime,
)
from meshnode.sim.policies.peak_ewma import DECAY_S, PeakEwma
from meshnode.sim.policies.plain import (
    LeastLoaded,
    Random,
    RoundRobin,
    TwoChoices,
    WeightedRandom,
)
from meshnode.sim.policies.policy import Job, Policy
from meshnode.types import NodeId

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.breakers import Guard
    from meshnode.routing.choice import Candidate, Candidates
    from meshnode.routing.table import Replica

ASKED = RoutedRequest("digits")

ME = NodeId("me")
CHOOSING = [name for name in POLICIES if name != MESH]


class Still:
    """Surroundings in which nothing is different from anything, and no time passes."""

    def now(self) -> float:
        return 0.0

    def speed_of(self, node: NodeId) -> float:
        return 1.0

    def failing_share(self, node: NodeId) -> float:
        return 0.0

    def mean_work_s(self, replica: Replica) -> float:
        return 0.01

    def rtt_s(self, node: NodeId, other: NodeId) -> float:
        return 0.0


def policy_of(name: str) -> Policy:
    policy = regime(name, Still()).for_gateway(ME)
    assert policy is not None
    return policy


def picks(policy: Policy, candidates: Candidates, draws: int, now: float = 0.0) -> Counter[str]:
    """Return how often each replica is chosen; nothing is ever sent."""
    rng = random.Random(1)
    routes = [policy.choose(candidates, ASKED, now, rng) for _ in range(draws)]
    return Counter(route.replica.node_name for route in routes if route is not None)


# What all of them have in common.


@pytest.mark.parametrize("name", CHOOSING)
def test_nobody_is_chosen_who_cannot_take_a_request(
    name: str,
    make_candidate: Callable[..., Candidate],
    make_candidates: Callable[..., Candidates],
) -> None:
    broken = make_candidate("broken")
    broken.breaker.record(broken.breaker.take(0.0), Verdict.FATAL, 0.0, LinkLost.code)
    away = make_candidate("away", link=LinkState.DOWN)
    candidates = make_candidates(broken, away, "tried", "one", "other")
    rng, policy = random.Random(1), policy_of(name)
    routes = [
        policy.choose(candidates, ASKED, 0.0, rng, tried=(NodeId("tried"),)) for _ in range(60)
    ]
    chosen = {route.replica.node_name for route in routes if route is not None}
    assert chosen <= {"one", "other"}
    assert len([route for route in routes if route is not None]) == 60


@pytest.mark.parametrize("name", CHOOSING)
def test_regions_that_failed_are_avoided_while_there_is_another(
    name: str,
    make_candidate: Callable[..., Candidate],
    make_candidates: Callable[..., Candidates],
) -> None:
    rng, policy = random.Random(1), policy_of(name)
    both = make_candidates(
        make_candidate("here", region="eu"), make_candidate("there", region="us")
    )
    route = policy.choose(both, ASKED, 0.0, rng, avoid_regions=("eu",))
    assert route is not None
    assert (route.replica.node_name, route.reason) == ("there", "only-candidate")
    alone = make_candidates(make_candidate("here", region="eu"))
    assert policy.choose(alone, ASKED, 0.0, rng, avoid_regions=("eu",)) is not None
    assert policy.choose(make_candidates(), ASKED, 0.0, rng) is None


@pytest.mark.parametrize("name", CHOOSING)
def test_a_replica_whose_model_raised_is_the_last_resort(
    name: str, make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    def open_breaker(breaker: Guard) -> None:
        for _ in range(3):
            breaker.record(breaker.take(0.0), Verdict.FAILURE, 0.0, InferenceFailed.code)

    raising = make_candidate("raising")
    open_breaker(raising.breaker)
    policy, rng = policy_of(name), random.Random(1)
    assert policy.choose(make_candidates(raising), ASKED, 0.0, rng) is not None
    route = policy.choose(make_candidates(raising, "sound"), ASKED, 0.0, rng)
    assert route is not None
    assert route.replica.node_name == "sound"


def test_a_route_carries_the_meshs_own_estimate(make_candidates: Callable[..., Candidates]) -> None:
    """The time given to a first byte is made from it, so it must not depend on the policy."""
    candidates = make_candidates("one", "other")
    route = Random().choose(candidates, ASKED, 0.0, random.Random(1))
    assert route is not None
    assert route.expected_ms == route.candidate.expected_ms(ASKED, 0.0)
    assert route.candidates == 2


# The plain ones.


def test_random_takes_all_alike(make_candidates: Callable[..., Candidates]) -> None:
    counts = picks(Random(), make_candidates("a", "b", "c", "d"), 4000)
    assert all(abs(count - 1000) < 120 for count in counts.values())
    assert len(counts) == 4


def test_weighted_random_takes_each_by_its_capacity(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    fast = make_candidate("fast", service_ms=2.0)
    wide = make_candidate("wide", slots=8, service_ms=10.0)
    counts = picks(WeightedRandom(), make_candidates(fast, wide, "plain"), 4000)
    # 4 / 2 ms, 8 / 10 ms and 4 / 10 ms: 2.0, 0.8 and 0.4.
    assert abs(counts["fast"] - 2500) < 150
    assert abs(counts["wide"] - 1000) < 120
    assert abs(counts["plain"] - 500) < 100


def test_the_weights_of_a_random_split_do_not_follow_the_last_runs(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    lucky = make_candidate("lucky", service_ms=5.0, measured_ms=10.0)
    counts = picks(WeightedRandom(), make_candidates(lucky, "plain"), 4000)
    assert abs(counts["lucky"] - 2000) < 150


def test_round_robin_takes_turns(make_candidates: Callable[..., Candidates]) -> None:
    counts = picks(RoundRobin(), make_candidates("a", "b", "c"), 300)
    assert counts == {"a": 100, "b": 100, "c": 100}


def test_round_robin_begins_anywhere_so_that_gateways_are_not_in_step(
    make_candidates: Callable[..., Candidates],
) -> None:
    rng = random.Random(1)
    firsts = [
        RoundRobin().choose(make_candidates("a", "b", "c"), ASKED, 0.0, rng) for _ in range(30)
    ]
    assert len({route.replica.node_name for route in firsts if route is not None}) == 3


def test_least_loaded_counts_reported_and_own_requests_per_slot(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    wide = make_candidate("wide", reported=6, slots=16)
    busy = make_candidate("busy", reported=3)
    mine = make_candidate("mine", own=4)
    assert picks(LeastLoaded(), make_candidates(wide, busy, mine), 50) == {"wide": 50}
    equal = picks(LeastLoaded(), make_candidates("one", "other", busy), 400)
    assert set(equal) == {"one", "other"}
    assert abs(equal["one"] - 200) < 60


def test_two_choices_take_the_one_with_fewer_own_requests(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    """What others send there does not show; of three the busiest loses every comparison."""
    busy = make_candidate("busy", own=2)
    reported = make_candidate("reported", reported=50)
    counts = picks(TwoChoices(), make_candidates(busy, reported, "idle"), 600)
    assert set(counts) == {"reported", "idle"}


# Peak EWMA.


def ended(policy: Policy, candidate: Candidate, now: float, took_s: float) -> None:
    policy.ended(candidate.replica, Job(0, 1), now, took_s)


def test_peak_ewma_takes_the_quicker_of_two(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    policy, quick, slow = PeakEwma(), make_candidate("quick"), make_candidate("slow")
    ended(policy, quick, 0.0, 0.01)
    ended(policy, slow, 0.0, 0.05)
    assert picks(policy, make_candidates(quick, slow), 20) == {"quick": 20}
    for _ in range(5):  # 0.01 s times six is more than 0.05 s times one
        quick.load.start(0.0, 1.0)
    assert picks(policy, make_candidates(quick, slow), 20) == {"slow": 20}


def test_peak_ewma_believes_a_peak_at_once_and_forgets_it_slowly(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    policy, peak, even = PeakEwma(), make_candidate("peak"), make_candidate("even")
    ended(policy, even, 0.0, 0.05)
    ended(policy, peak, 0.0, 0.01)
    ended(policy, peak, 0.0, 1.0)
    both = make_candidates(peak, even)
    assert picks(policy, both, 10) == {"even": 10}
    # Good answers pull it down by e per time constant: after three it is at 0.01 + 0.05.
    for step in range(1, 61):
        ended(policy, even, step * DECAY_S / 20, 0.05)
    ended(policy, peak, 3 * DECAY_S, 0.01)
    assert picks(policy, both, 10, now=3 * DECAY_S) == {"even": 10}
    for step in range(61, 81):
        ended(policy, even, step * DECAY_S / 20, 0.05)
    ended(policy, peak, 4 * DECAY_S, 0.01)
    assert picks(policy, both, 10, now=4 * DECAY_S) == {"peak": 10}


def test_peak_ewma_tries_the_unknown_once_and_waits_for_its_answer(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> None:
    policy, known, unknown = PeakEwma(), make_candidate("known"), make_candidate("unknown")
    ended(policy, known, 0.0, 0.01)
    both = make_candidates(known, unknown)
    assert picks(policy, both, 10) == {"unknown": 10}
    unknown.load.start(0.0, 1.0)
    assert picks(policy, both, 10) == {"known": 10}


# The catalogue.


def test_oracle_stands_for_both_oracles() -> None:
    assert parse("mesh, oracle,mesh") == (MESH, *ORACLES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mesh,prequel", "did you mean 'prequal'?"),
        ("best", "the policies are random, weighted-random"),
        (" , ", "no policy was named"),
    ],
)
def test_a_policy_that_does_not_exist_is_refused_with_those_that_do(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="the policies are") as refused:
        parse(text)
    assert said in str(refused.value)


def test_whole_daemons_take_only_policies_that_need_nothing_but_to_be_asked() -> None:
    assert [type(chooser(name)).__name__ for name in WITHOUT_HOOKS] == [
        "Random",
        "WeightedRandom",
        "RoundRobin",
        "LeastLoaded",
        "TwoChoices",
    ]
    with pytest.raises(UsageError, match="only depth A"):
        chooser("prequal")
