"""Anti-entropy between two nodes, and bytes that nobody should have sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.effects import Emit, SendNote
from meshnode.events import DatagramReceived, Event, NoteReceived, TimerFired
from meshnode.limits import MAX_META_BYTES
from meshnode.membership import antientropy
from meshnode.membership.member import MemberTable
from meshnode.membership.messages import (
    Ack,
    Digest,
    DigestEntry,
    Gossip,
    MemberList,
    Ping,
    RecordRequest,
    Records,
    Rumour,
    Sync,
)
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    from tests.unit.membership.conftest import Stage, Tools

NAMES = ("a", "b", "c", "d")
LAST = b"\xff" * 20

Statement = tuple[str, int, int, NodeState]

statements = st.lists(
    st.tuples(
        st.sampled_from(NAMES), st.integers(1, 2), st.integers(0, 1), st.sampled_from(NodeState)
    ),
    max_size=12,
)


def reconcile(tools: type[Tools], one: Stage, other: Stage) -> int:
    """Let two cores exchange notes from a Sync until they fall silent; count the notes."""
    stages = {one.id: one, other.id: other}
    queue = [(one, other.id, Sync(one.core._table.root()))]
    sent = 0
    while queue:
        sender, to, message = queue.pop(0)
        sent += 1
        assert sent < 50
        for receiver, answer in tools.messages(stages[to].note(sender.name, message)):
            if receiver in stages:
                queue.append((stages[to], receiver, answer))
    return sent


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_two_nodes_agree_after_anti_entropy_whatever_each_had_heard(
    tools: type[Tools], data: st.DataObject
) -> None:
    one, other = tools.stage("one"), tools.stage("other")
    for stage in (one, other):
        for name, epoch, counter, state in data.draw(statements):
            stage.learn(name, epoch=epoch, counter=counter)
            stage.hear(name, state, epoch=epoch, counter=counter)
    one.link("other")
    other.link("one")
    reconcile(tools, one, other)
    reconcile(tools, one, other)
    assert one.core._table.root() == other.core._table.root()
    for name in NAMES:
        # The dead that the other side never knew are not passed on; all else is the same.
        states = {one.state(name), other.state(name)}
        assert len(states) == 1 or states <= {None, NodeState.DEAD, NodeState.LEFT}
    assert reconcile(tools, one, other) == 1, "equal views cost one hash"


def test_the_greater_node_id_leaves_the_first_word_to_the_smaller(tools: type[Tools]) -> None:
    small, great = tools.sorted_names(2)
    ((to, message),) = tools.messages(tools.stage(small).link(great))
    assert to == tools.id(great)
    assert isinstance(message, Sync)
    assert tools.messages(tools.stage(great).link(small)) == []
    assert tools.stage(great).link(great) == [], "a link to oneself is none"


def test_a_digest_comes_in_pieces_that_each_fit_a_note(tools: type[Tools]) -> None:
    table = MemberTable(tools.record("me"), 0.0)
    for number in range(2050):
        record = tools.record(f"m{number}", epoch=2**63 - 1, counter=2**63 - 1, boot=2**64 - 1)
        table.put(record, NodeState.ALIVE, 0.0)
    notes = antientropy.digests(table)
    assert len(notes) == 3
    assert max(map(len, notes)) <= MAX_META_BYTES
    pieces = [tools.decode(note) for note in notes]
    assert (pieces[0].after, pieces[-1].upto) == (b"", LAST)
    assert [piece.upto for piece in pieces[:-1]] == [piece.after for piece in pieces[1:]]
    assert sum(len(piece.entries) for piece in pieces) == 2051
    # A piece speaks for its range only: a node with nothing else asks for just these.
    empty = MemberTable(tools.record("other"), 0.0)
    assert len(antientropy.compare(empty, pieces[1]).wanted) == 1000
    # Three pieces, each at least one note of requests of bounded length.
    wanted = [subject for piece in pieces for subject in antientropy.compare(empty, piece).wanted]
    requests = [tools.decode(note) for note in antientropy.requests(wanted)]
    assert [len(request.subjects) for request in requests] == [1024, 1024, 3]


def test_records_are_packed_into_as_few_notes_as_hold_them(tools: type[Tools]) -> None:
    records = [tools.record(f"m{number}", chain=b"x" * 16_000) for number in range(9)]
    rumours = [Rumour(tools.raw("a"), 1, 0, 1)] * 3
    notes = antientropy.pack(records, rumours)
    assert len(notes) == 3
    assert max(map(len, notes)) <= MAX_META_BYTES
    unpacked = [tools.decode(note) for note in notes]
    assert [record for note in unpacked for record in tools.carried(note)] == records
    assert unpacked[-1].rumours == tuple(rumours)
    assert antientropy.pack([], []) == []


def test_an_empty_digest_is_answered_with_all_that_live(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b", "c")
    stage.hear("b", NodeState.SUSPECT)
    stage.hear("c", NodeState.DEAD)
    ((_, records),) = tools.messages(stage.note("x", Digest(b"", LAST, ())))
    assert {record.name for record in tools.carried(records)} == {"me", "a", "b"}
    assert [rumour.subject for rumour in records.rumours] == [tools.raw("b")]


def test_a_state_of_a_later_version_is_skipped_and_the_rest_of_its_message_counts(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b")
    later, suspect = (Rumour(tools.raw(name), 1, 0, code) for name, code in (("a", 4), ("b", 1)))
    told = [
        message for _, message in tools.messages(stage.datagram("x", Ping(7, (later, suspect))))
    ]
    assert 7 in [each.sequence for each in told if isinstance(each, Ack)]
    assert (stage.state("a"), stage.state("b")) == (NodeState.ALIVE, NodeState.SUSPECT)
    stage.link("x")
    digest = Digest(b"", LAST, (DigestEntry(tools.raw("a"), 1, 0, 0, 255),))
    stage.note("x", digest)
    assert stage.state("a") is NodeState.ALIVE
    assert antientropy.compare(MemberTable(tools.record("z"), 0.0), digest).wanted == []


def test_a_peer_that_holds_this_node_dead_is_answered_by_a_refutation(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("x")
    entry = DigestEntry(tools.raw("me"), 1, 0, stage.core.record.boot, 2)
    effects = stage.note("x", Digest(b"", LAST, (entry,)))
    assert tools.emits(effects) == [("member.refuted", stage.id)]
    assert stage.core.record.counter == 1


@pytest.mark.parametrize("way", ["note", "datagram"])
def test_messages_that_do_not_travel_this_way_are_dropped_and_told(
    stage: Stage, tools: type[Tools], way: str
) -> None:
    wrong = {
        "datagram": [Sync(b""), Digest(b"", LAST, ()), RecordRequest(()), Records(())],
        "note": [],
    }[way]
    for message in (*wrong, tools.record("a"), MemberList(())):
        effects = getattr(stage, way)("x", message)
        assert tools.emits(effects) == [("member.dropped", tools.id("x"))]
        assert len(effects) == 1


def test_messages_of_a_newer_version_are_skipped_and_its_new_fields_ignored(
    stage: Stage, tools: type[Tools]
) -> None:
    sender = tools.id("x")
    assert stage.tell(NoteReceived(sender, msgspec.msgpack.encode([39, "new"]))) == []
    longer = msgspec.msgpack.encode([21, 5, [], [], "a field of tomorrow"])
    assert len(tools.messages(stage.tell(NoteReceived(sender, longer)))) == 1


def test_events_and_timers_of_others_change_nothing(stage: Stage) -> None:
    assert stage.tell(Event()) == []
    assert stage.tell(TimerFired("another core's")) == []


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_garbage_is_dropped_and_never_raises(tools: type[Tools], data: st.DataObject) -> None:
    stage = tools.stage()
    stage.link("a")
    stage.learn("a")
    whole = tools.encode(
        data.draw(
            st.sampled_from(
                [
                    Ping(1, (Rumour(tools.raw("a"), 1, 0, 2),)),
                    Gossip((Rumour(tools.raw("me"), 1, 0, 3, b"x" * 20, b"y" * 64),)),
                    Digest(b"", LAST, (DigestEntry(tools.raw("a"), 1, 0, 7, 2),)),
                    tools.records(tools.record("b")),
                    RecordRequest((tools.raw("a"),)),
                ]
            )
        )
    )
    changed = bytearray(whole)
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=4)
    ):
        changed[place] = value
    cut = data.draw(st.integers(0, len(whole)))
    for payload in (bytes(changed), whole[:cut], data.draw(st.binary(max_size=64))):
        for event in (NoteReceived, DatagramReceived):
            stage.tell(event(NodeId("x" * 32), payload))
    assert stage.state("me") is NodeState.ALIVE
    assert "b" not in stage.core.members or stage.state("b") is NodeState.ALIVE


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x92", b"\x91\x15", b"\xdc\x00"])
def test_bytes_that_are_no_message_are_told_to_people(
    stage: Stage, tools: type[Tools], payload: bytes
) -> None:
    (effect,) = stage.tell(DatagramReceived(tools.id("x"), payload))
    assert isinstance(effect, Emit)
    assert (effect.kind, effect.subject) == ("member.dropped", tools.id("x"))


def test_duplicates_change_nothing(stage: Stage, tools: type[Tools]) -> None:
    stage.link("a")
    messages = [
        tools.records(tools.record("a"), tools.record("b")),
        Gossip((Rumour(tools.raw("b"), 1, 0, 1),)),
        Records((), (Rumour(tools.raw("b"), 1, 0, 2),)),
    ]
    for message in messages:
        stage.note("a", message)
    before = dict(stage.core.members)
    for message in messages * 2:
        assert stage.note("a", message) == []
    assert dict(stage.core.members) == before


def test_answers_go_by_link(stage: Stage, tools: type[Tools]) -> None:
    effects = stage.note("x", Sync(b"other"))
    assert [type(effect) for effect in effects] == [SendNote]
    assert stage.note("x", Sync(stage.core._table.root())) == []
    assert tools.messages(effects)[0][1].entries[0].subject == tools.raw("me")
