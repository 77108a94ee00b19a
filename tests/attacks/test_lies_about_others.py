"""A member that lies about what others serve, how busy they are, and where the network is.

It was admitted, so its links and datagrams are good: what it says is heard, and must not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode import advertisement
from meshnode.advertisement import LOAD_KEY, ModelLoad, NodeLoad, replica_key
from meshnode.effects import SendDatagram, SendNote
from meshnode.membership.coordinates import Coordinate
from meshnode.membership.messages import CODEC, Ping
from meshnode.sim.mesh import SimMesh
from meshnode.sim.network import NetworkConfig
from meshnode.sim.serving import sim_manifest
from meshnode.state.owner_copy import OwnerCopy
from meshnode.state.owner_messages import (
    OWNER,
    Hint,
    Mark,
    OwnerDelta,
    OwnerDeltas,
    OwnerDigests,
    OwnerHints,
)
from meshnode.suitability import SUITABILITY_KEY
from meshnode.types import ReplicaState

if TYPE_CHECKING:
    from meshnode.types import NodeId
    from meshnode.wire.codec import Message

DIGITS = sim_manifest("digits")
SERVED = advertisement.encode(
    advertisement.advert(DIGITS, ReplicaState.READY, digest=DIGITS.digest, deployed=True)
)
KEY = replica_key("digits", 1)
NETWORK = NetworkConfig(rtt_s={("eu", "us"): 0.09})


@pytest.fixture
def mesh() -> SimMesh:
    mesh = SimMesh(5, NETWORK)
    for name, region in (("a", "eu"), ("victim", "us"), ("rogue", "eu"), ("b", "us")):
        mesh.add(name, region)
    mesh.run_for(10.0)
    return mesh


def say(mesh: SimMesh, message: Message, to: str = "a") -> None:
    """Let the rogue send a note, and let it be heard."""
    effects = [SendNote(mesh.world.id_of(to), OWNER.encode(message))]
    mesh.world.act("rogue", lambda _now, _wall_s: [*effects])
    mesh.run_for(1.0)


def forged(mesh: SimMesh, epoch: int = 1, **values: bytes) -> tuple[OwnerDelta, ...]:
    """Return a state of the victim as the rogue would have it, signed by the rogue."""
    copy = OwnerCopy(mesh.world.id_of("victim"), epoch)
    for key, value in values.items():
        copy.write({"digits": KEY}.get(key, key), value, 1e9)
    copy.seal(mesh.admissions.papers[mesh.world.id_of("rogue")].identity.sign)
    return tuple(copy.deltas_since(0, 0))


def refused(mesh: SimMesh, by: str = "a") -> int:
    return len([*mesh.world.trace.find("state.refused", node=by, subject="rogue")])


def known(mesh: SimMesh, node: str, owner: NodeId) -> dict[str, bytes]:
    """What a node knows of another, but for the files on its disk, which outlive what it served."""
    entries = mesh.node(node).owners.entries(owner)
    return {key: value for key, value in entries.items() if key != SUITABILITY_KEY}


@pytest.mark.parametrize("epoch", [1, 2, 2**53])
def test_a_capability_of_another_node_cannot_be_forged(mesh: SimMesh, epoch: int) -> None:
    victim = mesh.world.id_of("victim")
    say(mesh, OwnerDeltas(forged(mesh, epoch, digits=SERVED)))
    assert refused(mesh) == 1
    for name in ("a", "b"):
        assert known(mesh, name, victim) == {}
        assert mesh.seen_from(name, "digits") == []
    mesh.deploy("a", DIGITS, on=["victim"])
    mesh.run_until(
        lambda: all(mesh.seen_from(name, "digits") == ["victim"] for name in ("a", "b")),
        limit_s=20.0,
    )


def test_a_replica_of_another_node_cannot_be_taken_away(mesh: SimMesh) -> None:
    mesh.deploy("a", DIGITS, on=["victim"])
    mesh.run_until(lambda: mesh.seen_from("a", "digits") == ["victim"], limit_s=20.0)
    mesh.run_for(5.0)
    victim = mesh.world.id_of("victim")
    true = mesh.node("a").owners._copies[victim]
    lies = [
        forged(mesh, 1, other=b"1", more=b"2", most=b"3", last=b"4", fifth=b"5"),
        (OwnerDelta(victim, 1, true.complete, true.complete + 1, true.complete, ()),),
        (OwnerDelta(victim, 1, 0, true.complete + 9, 0, (), true.digest(), true.signature),),
        (OwnerDelta(victim, 9, 0, 0, 0, (), b"", bytes(64)),),
    ]
    for lie in lies:
        say(mesh, OwnerDeltas(lie))
        assert mesh.seen_from("a", "digits") == ["victim"]
    mesh.run_for(10.0)
    assert mesh.seen_from("b", "digits") == ["victim"]


def test_what_a_node_said_in_an_earlier_life_cannot_be_replayed(mesh: SimMesh) -> None:
    mesh.deploy("a", DIGITS, on=["victim"])
    mesh.run_until(lambda: mesh.seen_from("rogue", "digits") == ["victim"], limit_s=20.0)
    mesh.run_for(5.0)
    victim = mesh.world.id_of("victim")
    recorded = tuple(mesh.node("rogue").owners._copies[victim].deltas_since(0, 0))
    mesh.undeploy("a", "digits")
    mesh.run_until(lambda: known(mesh, "a", victim) == {}, limit_s=20.0)
    say(mesh, OwnerDeltas(recorded))
    assert mesh.seen_from("a", "digits") == []
    mesh.world.crash("victim")
    mesh.run_until(lambda: victim not in mesh.node("a").owners.owners(), limit_s=60.0)
    say(mesh, OwnerDeltas(recorded))  # of a dead node
    assert victim not in mesh.node("a").owners.owners()
    mesh.world.restart("victim")
    mesh.run_until(
        lambda: mesh.node("a").membership.members[victim].record.epoch == 2, limit_s=20.0
    )
    say(mesh, OwnerDeltas(recorded))
    mesh.run_for(5.0)
    assert known(mesh, "a", victim) == {}
    assert mesh.seen_from("a", "digits") == []


def test_claims_to_know_more_cost_a_question_each_and_no_state(mesh: SimMesh) -> None:
    marks = (
        Mark(mesh.world.id_of("victim"), 2**53, 2**53),
        Mark(mesh.world.id_of("a"), 2**53, 2**53),
        *(Mark(f"nobody{i}", 1, 1) for i in range(100)),
    )
    before = mesh.node("a").owners.owners()
    for _ in range(5):
        say(mesh, OwnerDigests("", "", marks))
    assert mesh.node("a").owners.owners() == before
    assert [*mesh.world.trace.find("state.overtaken")] == []


def test_a_lying_load_lasts_until_its_owner_speaks(mesh: SimMesh) -> None:
    mesh.deploy("a", DIGITS, on=["victim"])
    mesh.run_until(lambda: mesh.seen_from("a", "digits") == ["victim"], limit_s=20.0)
    mesh.run_for(2.0)
    victim = mesh.world.id_of("victim")
    true = mesh.node("a").owners.get(victim, LOAD_KEY)
    busy = advertisement.encode(NodeLoad(1.0, 0, (ModelLoad("digits", 1, 10**6, 1, 1e9),)))
    say(mesh, OwnerHints((Hint(victim, 1, 2**53, LOAD_KEY, busy),)))
    assert mesh.node("a").owners.get(victim, LOAD_KEY) != true
    request = mesh.request("a", "digits")  # the only replica is asked all the same
    mesh.run_for(5.0)
    assert request.ok
    load = mesh.load(["b"], "digits", rate_per_s=20.0, duration_s=20.0)
    mesh.run_for(25.0)
    assert load.failed == []
    assert mesh.node("a").owners.get(victim, LOAD_KEY) != busy
    mesh.finish()


def test_a_hint_is_no_way_around_a_signature(mesh: SimMesh) -> None:
    say(mesh, OwnerHints((Hint(mesh.world.id_of("victim"), 1, 2**53, KEY, SERVED),)))
    assert refused(mesh) == 1
    assert mesh.seen_from("a", "digits") == []


def test_a_rogue_coordinate_is_counted_or_does_little(mesh: SimMesh) -> None:
    mesh.run_for(120.0)
    a, b, victim = (mesh.world.id_of(name) for name in ("a", "b", "victim"))
    before = mesh.node("a").membership.rtt_s(a, victim)
    assert before == pytest.approx(0.09, rel=0.25)

    def ping(*numbers: float) -> None:
        payload = CODEC.encode(Ping(1, (), numbers))
        mesh.world.act("rogue", lambda _now, _wall_s: [SendDatagram(a, payload)])
        mesh.run_for(1.0)

    ping(*[float("nan")] * 11)
    ping(*[1e300] * 11)
    ping(1.0)
    assert len([*mesh.world.trace.find("member.dropped", node="a", subject="rogue")]) == 3
    lie = Coordinate((9.0, *[-9.0] * 7), 9.0, 9.0, 0.0).to_wire()
    for _ in range(60):
        ping(*lie)
    for one, other in ((a, victim), (b, a)):
        assert mesh.node("a").membership.rtt_s(one, other) == pytest.approx(0.09, rel=0.35)
