"""The parts of a simulated mesh by themselves, where a whole mesh seldom leads."""

from __future__ import annotations

import random

import msgspec
import pytest

from meshnode.effects import Effect, StartTimer
from meshnode.errors import NotServing, Saturated
from meshnode.membership.messages import MemberRecord, sign_record
from meshnode.node_events import ReplicaChanged, ReplicaGone
from meshnode.sim.mesh import SimMesh
from meshnode.sim.model_behaviour import Library, ModelBehaviour
from meshnode.sim.network import NetworkConfig
from meshnode.sim.requests import Request
from meshnode.sim.serving import (
    MAX_WAITING,
    UNLOAD_GRACE_S,
    Asked,
    Host,
    HostTimer,
    Reply,
    Told,
    sim_manifest,
)
from meshnode.sim.trust import Admissions, Papers
from meshnode.state.desired_messages import Entry
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.statements import admission_key
from meshnode.types import NodeId, ReplicaState, Role

WALL_S = 1_750_000_000.0
DIGITS = sim_manifest("digits")
ME, GATEWAY = NodeId("me"), NodeId("gateway")


class Bench:
    """A host that serves digits, and its timers in the order in which they were started."""

    def __init__(self, service_s: float = 0.02, slots: int = 2) -> None:
        self.library = Library(lambda _node: [])
        self.library.behaviours[DIGITS.digest] = ModelBehaviour(service_s, 0.0, slots)
        self.host = Host(ME, 2.0, {DIGITS.digest}, self.library, random.Random(1))
        self.timers: list[tuple[float, HostTimer]] = []
        self.told: list[object] = []
        self.answers: list[tuple[int, str]] = []
        self.do(self.host.load(DIGITS))
        self.fire()

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartTimer(HostTimer() as timer, delay_s):
                    self.timers.append((delay_s, timer))
                case Told(event):
                    self.told.append(event)
                case Reply(_, answered):
                    self.answers.append((answered.number, answered.code))
                case _:
                    raise AssertionError(effect)

    def fire(self) -> float:
        delay_s, timer = self.timers.pop(0)
        self.do(self.host.due(timer))
        return delay_s

    def ask(self, number: int, version: int = 1) -> None:
        self.do(self.host.ask(Asked(GATEWAY, number, 1, "digits", version)))


def test_a_host_runs_as_many_at_once_as_it_has_slots_and_the_rest_in_turn() -> None:
    bench = Bench(service_s=0.4, slots=2)
    for number in range(4):
        bench.ask(number)
    assert len(bench.timers) == 2
    assert [bench.fire() for _ in range(4)] == [0.2] * 4  # at speed 2
    assert bench.answers == [(0, ""), (1, ""), (2, ""), (3, "")]
    assert "digits" in repr(bench.host)


def test_a_host_refuses_what_it_does_not_serve_and_what_its_queue_cannot_hold() -> None:
    bench = Bench(slots=1)
    bench.ask(0, version=2)
    for number in range(1, MAX_WAITING + 3):
        bench.ask(number)
    assert bench.answers == [(0, NotServing.code), (MAX_WAITING + 2, Saturated.code)]
    (load,) = bench.host.load_now().models
    assert (load.in_system, load.slots) == (MAX_WAITING + 1, 1)


def test_a_withdrawn_request_leaves_the_queue_but_not_a_slot() -> None:
    bench = Bench(slots=1)
    for number in range(3):
        bench.ask(number)
    bench.host.cancel(1, 1)
    bench.host.cancel(2, 7)  # another attempt
    bench.host.cancel(0, 1)  # runs already
    bench.fire()
    bench.fire()
    assert bench.answers == [(0, ""), (2, "")]
    assert bench.timers == []


def test_a_host_answers_for_a_grace_and_finishes_what_it_has_before_a_replica_goes() -> None:
    bench = Bench(slots=1)
    bench.do(bench.host.unload("digits", 1))
    bench.ask(0)
    bench.ask(1)
    assert bench.timers.pop(0) == (UNLOAD_GRACE_S, HostTimer("unload", "digits", 1))
    bench.do(bench.host.due(HostTimer("unload", "digits", 1)))
    bench.ask(2)
    assert bench.answers == [(2, NotServing.code)]
    bench.fire()
    bench.fire()
    assert bench.answers[1:] == [(0, ""), (1, "")]
    assert bench.told[-1] == ReplicaGone("digits", 1)
    assert bench.host.serving() == []


def test_a_replica_that_failed_can_be_unloaded() -> None:
    bench = Bench()
    bench.host.files.clear()
    other = sim_manifest("other")
    bench.do(bench.host.load(other))
    failed = bench.told[-1]
    assert isinstance(failed, ReplicaChanged)
    assert (failed.state, failed.reason) == (ReplicaState.FAILED, "no node could send its files")
    bench.do(bench.host.unload("other", 1))
    bench.fire()
    assert bench.told[-1] == ReplicaGone("other", 1)
    assert repr(bench.library) == "<Library of 1 models, 1 hosts>"


def test_a_request_to_a_node_that_has_just_died_is_tried_elsewhere() -> None:
    """The gateway has not heard of it yet, but its link is gone."""
    mesh = SimMesh(1, NetworkConfig(far_rtt_s=0.5))
    for name, region in (("gateway", "eu"), ("near", "eu"), ("far", "us")):
        mesh.add(name, region)
    mesh.run_for(10.0)
    mesh.deploy("gateway", DIGITS, replicas=2, on=["near", "far"])
    mesh.run_until(lambda: len(mesh.serving("digits")) == 2, limit_s=10.0)
    mesh.run_for(2.0)
    mesh.crash("near")
    request = mesh.request("gateway", "digits")
    mesh.finish()
    assert request.ok
    assert request.tried == (("near", "link_lost"),)
    assert mesh.name_of(request.served_by) == "far"


def test_a_node_that_crashes_while_it_leaves_and_comes_back_stays() -> None:
    mesh = SimMesh(1)
    mesh.add("a", "eu")
    mesh.run_for(1.0)
    mesh.leave("a")
    mesh.crash("a")
    mesh.world.restart("a")
    mesh.run_for(5.0)
    assert mesh.request("a", "digits").outcome == "not_found"


def test_a_request_ends_once() -> None:
    request = Request(0, "a", "digits", None, 1.0, 5.0)
    request.end("ok", 7.0)
    assert request.latency_s == 2.0
    with pytest.raises(AssertionError, match="ended a second time, with deadline"):
        request.end("deadline", 8.0)
    assert request.ok


def test_parts_tell_their_state() -> None:
    mesh = SimMesh(1)
    mesh.add("a", "eu")
    daemon = mesh.daemon("a")
    assert repr(daemon).startswith("<Daemon of <Node ")
    assert repr(daemon.gateway).endswith(": 0 open, 0 wait>")
    assert repr(mesh).endswith(", 0 requests>")
    assert repr(mesh.admissions) == "<Admissions from seed 1: 1 members>"
    assert ", admin, " in repr(mesh.admissions.papers[daemon.node.me])


@pytest.fixture
def people() -> tuple[Papers, Papers, Papers]:
    admissions = Admissions(1)
    roles = {"founder": Role.ADMIN, "operator": Role.OPERATOR, "lent": Role.MEMBER}
    founder, operator, lent = (admissions.admit(*each, WALL_S) for each in roles.items())
    return founder, operator, lent


def record_of(papers: Papers, chain: bytes) -> MemberRecord:
    key = papers.identity.public_key
    unsigned = MemberRecord(key, "n", "eu", "", {}, (), "", 1, 0, 1, {}, chain)
    return sign_record(unsigned, papers.identity.sign)


def test_records_are_taken_with_the_subjects_own_admission_and_signature_only(
    people: tuple[Papers, Papers, Papers],
) -> None:
    founder, operator, lent = people
    good = record_of(operator, operator.member.chain)
    assert founder.authority.verify_record(good) is None
    assert founder.authority.verify_record(good) is None  # known now
    forged = msgspec.structs.replace(good, name="other")
    assert founder.authority.verify_record(forged) == "its signature does not fit"
    stolen = record_of(lent, operator.member.chain)
    assert founder.authority.verify_record(stolen) == (
        "its admission does not hold: it is another node's"
    )


def test_entries_are_taken_from_known_operators_only(
    people: tuple[Papers, Papers, Papers],
) -> None:
    founder, operator, lent = people

    def signed(papers: Papers, key: str, value: bytes) -> Entry:
        unsigned = Entry(key, Stamp(int(WALL_S * 1000), 0), papers.identity.node_id, value)
        signature = papers.identity.sign(papers.authority.bound(unsigned.signed_bytes))
        return msgspec.structs.replace(unsigned, signature=signature)

    def entry_of(papers: Papers) -> Entry:
        return signed(papers, "deployment/m", b"v")

    def admission_of(papers: Papers, chain: bytes, subject: Papers | None = None) -> Entry:
        return signed(papers, admission_key((subject or papers).identity.node_id), chain)

    entry = entry_of(operator)
    assert founder.authority.verify_entry(entry) == "its author is not known here"
    other_chain = admission_of(operator, founder.member.chain)
    another = "its admission does not hold: it is another node's"
    assert founder.authority.verify_entry(other_chain) == another
    garbage = admission_of(operator, b"no chain")
    assert str(founder.authority.verify_entry(garbage)).startswith("its admission does not hold")
    about = admission_of(operator, operator.member.chain, subject=founder)
    assert founder.authority.verify_entry(about) == another
    assert operator.identity.node_id not in founder.roster
    introduced = admission_of(operator, operator.member.chain)
    assert founder.authority.verify_entry(introduced) is None
    founder.authority.take(introduced)
    assert operator.identity.node_id in founder.roster
    for other in (operator, lent):
        founder.authority.learn(other.member)
        founder.authority.learn(other.member)
    assert founder.authority.verify_entry(entry) is None
    forged = msgspec.structs.replace(entry, value=b"w")
    assert founder.authority.verify_entry(forged) == "its signature does not fit"
    assert founder.authority.verify_entry(entry_of(lent)) == (
        "its author is a member and may not change that"
    )
