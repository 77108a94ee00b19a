"""The oracles see the truth: what they foresee comes true, and nothing stays in it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.routing.request import RoutedRequest
from meshnode.routing.table import Replica
from meshnode.sim.mesh import SimMesh
from meshnode.sim.model_behaviour import ModelBehaviour
from meshnode.sim.network import NetworkConfig
from meshnode.sim.policies.catalogue import ALL_SEEING
from meshnode.sim.policies.oracles import (
    GlobalLeastRequest,
    Omniscient,
    Oracle,
    SizeBlind,
    Truth,
    Witness,
)
from meshnode.sim.policies.policy import Job, ProbeReply, key_of
from meshnode.sim.serving import sim_manifest
from meshnode.types import NodeId, ReplicaState

ASKED = RoutedRequest("digits")


if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.choice import Candidate, Candidates

ME = NodeId("me")
FAST, SLOW, FAR = (NodeId(name) for name in ("fast", "slow", "far"))


class Surroundings:
    """Three nodes: one ten times as fast as the others, one of these half a second away."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def speed_of(self, node: NodeId) -> float:
        return 10.0 if node == FAST else 1.0

    def failing_share(self, node: NodeId) -> float:
        return 0.0

    def mean_work_s(self, replica: Replica) -> float:
        return 1.0

    def rtt_s(self, node: NodeId, other: NodeId) -> float:
        return 0.5 if FAR in (node, other) else 0.0


def replica(node: NodeId, slots: int = 1) -> Replica:
    return Replica(node, node, "eu", "", "digits", 1, ReplicaState.READY, slots=slots)


@pytest.fixture
def truth() -> Truth:
    return Truth(Surroundings())


def fill(truth: Truth, node: NodeId, *works_s: float, slots: int = 1) -> list[Job]:
    """Let requests of this work be in a node's system; return them."""
    jobs = [Job(len(truth._of) + number, 1) for number in range(len(works_s))]
    for job, work_s in zip(jobs, works_s, strict=True):
        truth.sent(replica(node, slots), job, work_s, truth.surroundings.now())
        truth.arrived(job)
    return jobs


def chosen_by(
    oracle: Oracle, candidates: Candidates, *, work_s: float | None = None, draws: int = 20
) -> set[str]:
    oracle.facing(work_s)
    rng = random.Random(1)
    routes = [oracle.choose(candidates, ASKED, 0.0, rng) for _ in range(draws)]
    return {route.replica.node_name for route in routes if route is not None}


@pytest.fixture
def three(
    make_candidate: Callable[..., Candidate], make_candidates: Callable[..., Candidates]
) -> Candidates:
    """Candidates of which the gateway believes the opposite of the truth."""
    return make_candidates(
        make_candidate("fast", slots=1, reported=9, service_ms=9000.0),
        make_candidate("slow", slots=1),
        make_candidate("far", slots=1),
    )


def test_least_request_sees_all_requests_and_no_speed(truth: Truth, three: Candidates) -> None:
    oracle = GlobalLeastRequest(truth, ME)
    assert chosen_by(oracle, three) == {"fast", "slow", "far"}
    fill(truth, SLOW, 1.0)
    fill(truth, FAST, 0.001)
    assert chosen_by(oracle, three) == {"far"}


def test_the_size_blind_oracle_sees_speeds_and_counts_but_no_sizes(
    truth: Truth, three: Candidates
) -> None:
    oracle = SizeBlind(truth, ME)
    assert chosen_by(oracle, three) == {"fast"}
    fill(truth, FAST, *[0.0001] * 8)  # tiny, which it cannot see: (8 + 1) x 0.1 s < 1 s
    assert chosen_by(oracle, three) == {"fast"}
    fill(truth, FAST, *[0.0001] * 4)
    assert chosen_by(oracle, three) == {"slow"}


def test_the_omniscient_oracle_sees_the_work_of_each_request(
    truth: Truth, three: Candidates
) -> None:
    oracle = Omniscient(truth, ME)
    fill(truth, FAST, *[0.0001] * 50)
    assert chosen_by(oracle, three, work_s=1.0) == {"fast"}
    fill(truth, FAST, 5.0)  # half a second of work
    assert chosen_by(oracle, three, work_s=0.1) == {"slow"}
    assert chosen_by(oracle, three, work_s=3.0) == {"fast"}
    assert chosen_by(oracle, three) == {"fast"}  # not known: 1 s, as on average


def test_the_omniscient_oracle_sends_nothing_that_would_be_late(
    truth: Truth, three: Candidates
) -> None:
    oracle = Omniscient(truth, ME)
    fill(truth, FAST, 5.0)  # half a second of work
    fill(truth, SLOW, 0.7)
    fill(truth, FAR, 0.7)
    rng = random.Random(1)
    oracle.facing(0.3, good_until=0.6)
    assert oracle.choose(three, ASKED, 0.0, rng) is not None  # at the fast one: 0.5 s + 0.03 s
    oracle.facing(1.1, good_until=0.6)
    assert oracle.choose(three, ASKED, 0.0, rng) is None
    oracle.facing(1.1)
    assert oracle.choose(three, ASKED, 0.0, rng) is not None  # no deadline


def test_the_omniscient_oracle_declines_an_only_replica_too(
    truth: Truth,
    make_candidate: Callable[..., Candidate],
    make_candidates: Callable[..., Candidates],
) -> None:
    only = make_candidates(make_candidate("far", slots=1))
    oracle = Omniscient(truth, ME)
    rng = random.Random(1)
    oracle.facing(0.1, good_until=0.5)  # half a second there and back
    assert oracle.choose(only, ASKED, 0.0, rng) is None
    oracle.facing(0.1, good_until=0.7)  # and a little to spare
    assert oracle.choose(only, ASKED, 0.0, rng) is None
    oracle.facing(0.1, good_until=0.8)
    assert oracle.choose(only, ASKED, 0.0, rng) is not None


def test_the_omniscient_oracle_avoids_who_fails_unless_the_others_are_late(
    truth: Truth, three: Candidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Surroundings, "failing_share", lambda _, node: 0.5 * (node == FAST))
    oracle = Omniscient(truth, ME)
    assert chosen_by(oracle, three, work_s=0.1) == {"slow"}
    rng = random.Random(1)
    oracle.facing(2.0, good_until=0.5)
    route = oracle.choose(three, ASKED, 0.0, rng)
    assert route is not None
    assert route.replica.node == FAST


def test_requests_on_their_way_count_in_the_order_in_which_they_arrive(truth: Truth) -> None:
    here, there = replica(SLOW), replica(FAR)
    truth.sent(here, Job(1, 1), 1.0, arrives_at=0.4)
    assert truth.finishes_at(here, 0.1, arrives_at=0.1) == pytest.approx(0.2)
    assert truth.finishes_at(here, 0.1, arrives_at=0.5) == pytest.approx(1.5)
    assert truth.finishes_at(there, 0.1, arrives_at=0.25) == pytest.approx(0.35)
    assert truth.in_system(here) == 1


def test_what_is_over_counts_no_more(truth: Truth) -> None:
    here = replica(SLOW)
    running, waiting, withdrawn = fill(truth, SLOW, 1.0, 1.0, 1.0)
    coming = Job(99, 1)
    truth.sent(here, coming, 1.0, arrives_at=0.2)
    truth.withdrawn(withdrawn)  # from the queue
    truth.withdrawn(running)  # it runs to its end for nobody
    truth.given_up(coming)
    truth.given_up(waiting)  # it is there: the server will say when it goes
    truth.arrived(coming)  # and what was given up is unknown from then on
    truth.ended(coming)
    assert truth.in_system(here) == 2
    truth.ended(running)
    assert truth.finishes_at(here, 1.0, arrives_at=0.0) == pytest.approx(2.0)
    truth.ended(waiting)
    assert truth.in_system(here) == 0
    assert not truth._of


def test_a_node_that_is_gone_takes_its_requests_with_it(truth: Truth) -> None:
    fill(truth, SLOW, 1.0, 1.0)
    fill(truth, FAST, 1.0)
    Witness(truth, SLOW).closed()
    assert [truth.in_system(replica(node)) for node in (SLOW, FAST)] == [0, 1]


def test_oracles_send_no_probes(truth: Truth) -> None:
    assert list(SizeBlind(truth, ME).to_probe(random.Random(1))) == []
    assert Witness(truth, ME).probe(key_of(replica(ME))) == ProbeReply(0, 0.0)


# In a mesh.

DIGITS = sim_manifest("digits")
STEADY = NetworkConfig(rtt_s={("eu", "us"): 0.08}, jitter=0.0)


def mesh_of(policy: str, seed: int = 3) -> SimMesh:
    """Return a mesh of six nodes in two regions, of speeds 1, 3 and 9, that serve digits."""
    mesh = SimMesh(seed, STEADY, policy=policy)
    mesh.behave(DIGITS, ModelBehaviour(service_s=0.1, spread=1.0, slots=2))
    for number, speed in enumerate((1.0, 1.0, 3.0, 3.0, 9.0, 9.0)):
        mesh.add(f"n{number}", ("eu", "us")[number % 2], speed=speed, folder=[DIGITS])
    mesh.run_for(8.0)
    return mesh


def send(mesh: SimMesh, gateways: list[str], count: int, rate_per_s: float) -> None:
    """Let requests of known work come in at random times."""
    rng = random.Random("application")
    at_s = mesh.world.now()
    for _ in range(count):
        at_s += rng.expovariate(rate_per_s)
        gateway, work_s = rng.choice(gateways), rng.expovariate(10.0)
        mesh.world.scheduler.at(
            at_s, lambda g=gateway, w=work_s: mesh.request(g, "digits", work_s=w)
        )


def truth_of(mesh: SimMesh) -> Truth:
    policy = mesh.regime.for_gateway(ME)
    assert isinstance(policy, Oracle)
    return policy.truth


def test_what_the_omniscient_oracle_foresees_comes_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through one gateway nothing overtakes, so each request takes exactly as long as was said."""
    foreseen: list[float] = []

    def choose(self: Omniscient, *args: object, **options: object) -> object:
        route = Oracle.choose(self, *args, **options)  # type: ignore[arg-type]  # handed on
        assert route is not None
        foreseen.append(self.cost(route.replica, self.truth.surroundings.now()))
        return route

    monkeypatch.setattr(Omniscient, "choose", choose)
    mesh = mesh_of("omniscient")
    send(mesh, ["n0"], 600, rate_per_s=250.0)
    mesh.run_for(3.0)
    mesh.finish()
    took = [request.latency_s for request in mesh.requests]
    assert len(took) == len(foreseen) == 600
    assert max(took) > 0.1
    assert took == pytest.approx(foreseen, abs=1e-6)


@pytest.mark.parametrize("policy", ALL_SEEING)
def test_nothing_stays_in_the_truth_whatever_happens_to_nodes(policy: str) -> None:
    mesh = mesh_of(policy)
    send(mesh, ["n0", "n1", "n2"], 500, rate_per_s=100.0)
    mesh.run_for(1.0)
    mesh.crash("n4")
    mesh.run_for(1.0)
    mesh.world.partition(["n5"], ["n0", "n1", "n2", "n3"])
    mesh.crash("n2")
    mesh.run_for(1.0)
    mesh.world.heal()
    mesh.world.restart("n4")
    mesh.run_for(4.0)
    mesh.finish()
    mesh.run_for(30.0)  # what was sent to be run for nobody has run
    assert sum(request.ok for request in mesh.requests) > 350
    assert not truth_of(mesh)._of
    assert "0 requests" in repr(truth_of(mesh))
