"""A goodbye, and what a node that said it still does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.effects import Emit, Persist, SendDatagram, SendNote
from meshnode.events import DialFailed, Leave, Start
from meshnode.membership import Incarnation, leave_bytes, read_members
from meshnode.membership.messages import (
    Ack,
    Digest,
    Gossip,
    Ping,
    PingRequest,
    RecordRequest,
    Rumour,
    Sync,
)
from meshnode.membership.timers import GossipRound, PersistDue, ProbePeriod
from meshnode.types import NodeState

if TYPE_CHECKING:
    from tests.unit.membership.conftest import Stage, Tools


def test_a_leave_goes_to_all_links_and_to_several_by_datagram_with_its_proof(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*(f"m{i}" for i in range(10)))
    for name in ("m1", "m2"):
        stage.link(name)
    effects = stage.tell(Leave())
    key = stage.core.record.public_key
    proof = tools.sign(key, leave_bytes(key, Incarnation(1, 0)))
    goodbye = Gossip((Rumour(tools.raw("me"), 1, 0, 3, b"", proof),))
    assert all(message == goodbye for _, message in tools.messages(effects))
    notes = [effect.to for effect in effects if isinstance(effect, SendNote)]
    datagrams = [effect.to for effect in effects if isinstance(effect, SendDatagram)]
    assert notes == [tools.id("m1"), tools.id("m2")]
    assert len(set(datagrams)) == 6
    assert effects[-1] == Emit("member.left", stage.id, "this node left")
    assert stage.state("me") is NodeState.LEFT


def test_after_its_leave_a_node_only_answers(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b")
    stage.link("a")
    stage.tell(Leave())
    own = stage.core.record
    rumour = Rumour(tools.raw("me"), 1, 0, 3, b"", b"")
    for event in (Leave(), Start(), DialFailed((), None, "nobody")):
        assert stage.tell(event) == []
    for timer in (ProbePeriod(), GossipRound()):
        assert stage.fire(timer) == []
    for ignored in (
        tools.records(tools.record("c")),
        Digest(b"", b"\xff" * 20, ()),
        Gossip((Rumour(tools.raw("a"), 1, 0, 2),)),
        PingRequest(1, tools.raw("a")),
    ):
        assert stage.note("a", ignored) == []
    assert stage.hear("me", NodeState.DEAD) == []
    assert stage.state("a") is NodeState.ALIVE
    assert stage.core.update_record(stage.now, region="us") == []
    assert stage.link("b") == []
    assert stage.unlink("b") == []
    assert stage.core.record == own

    ((_, ack),) = tools.messages(stage.datagram("a", Ping(5)))
    assert isinstance(ack, Ack)
    assert ack.rumours[0].subject == rumour.subject
    ((_, digest),) = tools.messages(stage.note("a", Sync(b"other")))
    assert isinstance(digest, Digest)
    ((_, records),) = tools.messages(stage.note("a", RecordRequest((tools.raw("me"),))))
    assert tools.carried(records) == (own,)
    assert records.rumours[0].proof


def test_a_node_alone_leaves_quietly(stage: Stage, tools: type[Tools]) -> None:
    assert tools.messages(stage.tell(Leave())) == []


def test_whom_it_has_just_learnt_of_is_on_disk_when_it_has_left(stage: Stage) -> None:
    stage.learn("a", "b")
    (written,) = (each for each in stage.tell(Leave()) if isinstance(each, Persist))
    assert written.key == "members"
    assert {record.name for record in read_members(written.value)} == {"a", "b"}


def test_a_leave_writes_nothing_that_is_on_disk_already(stage: Stage) -> None:
    stage.learn("a", "b")
    assert any(isinstance(each, Persist) for each in stage.fire(PersistDue(), 2.0))
    assert not any(isinstance(each, Persist) for each in stage.tell(Leave()))
