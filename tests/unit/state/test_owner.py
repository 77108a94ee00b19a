from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.effects import Effect, Emit, SendNote, StartTimer
from meshnode.errors import TooLarge, UsageError
from meshnode.events import Leave, LinkDown, LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import MAX_MEMBERS, MAX_META_BYTES, MAX_OWNER_DIGESTS_PER_NOTE, MAX_OWNER_KEYS
from meshnode.state.config import OwnerConfig
from meshnode.state.owner import OwnerFlushDue, OwnerReapDue, OwnerStates, OwnerSyncDue
from meshnode.state.owner_copy import OwnerCopy
from meshnode.state.owner_messages import (
    OWNER,
    Mark,
    OwnerDelta,
    OwnerDeltas,
    OwnerDigests,
    OwnerEntry,
    OwnerRoot,
    OwnerWants,
    digest_notes,
    want_notes,
)
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from meshnode.wire.codec import Message

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
HERE = Address("10.0.0.1", 8471)


def states(me: NodeId = A, epoch: int = 1, *links: NodeId) -> OwnerStates:
    made = OwnerStates(me, epoch, OwnerConfig(), random.Random(0))
    for peer in links:
        made.handle(LinkUp(peer, HERE), 0.0)
    return made


def note(sender: NodeId, message: Message) -> NoteReceived:
    return NoteReceived(sender, OWNER.encode(message))


def sent(effects: list[Effect]) -> list[tuple[NodeId, Any]]:
    return [(e.to, OWNER.decode(e.payload)) for e in effects if isinstance(e, SendNote)]


def emitted(effects: list[Effect], kind: str) -> list[Emit]:
    return [e for e in effects if isinstance(e, Emit) and e.kind == kind]


def delta(
    owner: str, epoch: int, after: int, upto: int, *entries: OwnerEntry, collected: int = 0
) -> Message:
    return OwnerDeltas((OwnerDelta(owner, epoch, after, upto, collected, entries),))


# A node's own entries.


def test_changes_are_gathered_and_pushed_once_to_three_peers() -> None:
    core = states(A, 1, B, C, NodeId("d"), NodeId("e"))
    assert core.set("x", b"1", 0.0) == [
        StartTimer(OwnerFlushDue(1), 0.02),
        Emit("state.changed", A, "x"),
    ]
    assert core.set("y", b"2", 0.01) == [Emit("state.changed", A, "y")]
    notes = sent(core.handle(TimerFired(OwnerFlushDue(1)), 0.02))
    assert len({peer for peer, _ in notes}) == 3
    wanted = delta("a", 1, 0, 2, OwnerEntry("x", 1, b"1"), OwnerEntry("y", 2, b"2"))
    assert all(message == wanted for _, message in notes)
    core.delete("x", 1.0)
    _, message = sent(core.handle(TimerFired(OwnerFlushDue(1)), 1.02))[0]
    assert message == delta("a", 1, 2, 3, OwnerEntry("x", 3, None))


def test_writing_the_same_value_or_deleting_nothing_changes_nothing() -> None:
    core = states()
    core.set("x", b"1", 0.0)
    assert core.set("x", b"1", 0.0) == []
    assert core.delete("y", 0.0) == []
    assert core.get(A, "x") == b"1"
    assert core.get(B, "x") is None
    assert core.entries(B) == {}


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [("", b"", UsageError), ("k" * 257, b"", TooLarge), ("k", bytes(16 * 1024 + 1), TooLarge)],
)
def test_an_oversize_entry_is_refused_and_changes_nothing(
    key: str, value: bytes, error: type[Exception]
) -> None:
    core = states()
    with pytest.raises(error):
        core.set(key, value, 0.0)
    assert core.entries(A) == {}


def test_keys_per_owner_are_limited_but_old_ones_can_change() -> None:
    core = states()
    for i in range(MAX_OWNER_KEYS):
        core.set(f"k{i}", b"1", 0.0)
    with pytest.raises(TooLarge, match="4096 keys"):
        core.set("one more", b"1", 0.0)
    core.set("k0", b"2", 0.0)
    core.delete("k1", 0.0)
    core.set("one more", b"1", 0.0)


def test_the_repr_tells_the_state() -> None:
    core = states(A, 3, B)
    core.set("x", b"1", 0.0)
    assert repr(core) == "<OwnerStates of a (3, 1): 1 own keys, 0 other owners, 1 links>"
    copy = OwnerCopy(A, 3)
    copy.write("x", None, 1.0)
    assert repr(copy) == "<OwnerCopy a epoch 3, complete to 1, 0 keys, 1 tombstones>"


# Others' entries.


def test_news_is_passed_on_once_and_never_to_its_owner_or_sender() -> None:
    core = states(A, 1, B, C, NodeId("d"))
    message = delta("b", 1, 0, 1, OwnerEntry("x", 1, b"1"))
    effects = core.handle(note(C, message), 0.0)
    assert emitted(effects, "state.changed") == [Emit("state.changed", B, "x")]
    assert sent(effects) == [(NodeId("d"), message)]
    assert core.handle(note(NodeId("d"), message), 0.0) == []


def test_a_gap_is_asked_for_at_the_sender() -> None:
    core = states(A, 1, C)
    effects = core.handle(note(C, delta("b", 1, 4, 5, OwnerEntry("x", 5, b"5"))), 0.0)
    assert core.get(B, "x") == b"5"
    assert sent(effects) == [(C, OwnerWants((Mark("b", 1, 0),)))]
    core.handle(
        note(C, delta("b", 1, 0, 5, OwnerEntry("w", 2, b"2"), OwnerEntry("x", 5, b"5"))), 0.0
    )
    assert core.entries(B) == {"w": b"2", "x": b"5"}


def test_older_epochs_and_versions_change_nothing() -> None:
    core = states()
    core.handle(note(B, delta("b", 2, 0, 3, OwnerEntry("x", 3, b"new"))), 0.0)
    core.handle(note(B, delta("b", 2, 0, 2, OwnerEntry("x", 2, b"old"))), 0.0)
    core.handle(note(B, delta("b", 1, 0, 9, OwnerEntry("x", 9, b"older"))), 0.0)
    core.handle(note(B, delta("b", 2, 5, 6, OwnerEntry("x", 6, b"newest"))), 0.0)
    core.handle(note(B, delta("b", 2, 5, 5, OwnerEntry("x", 5, b"late"))), 0.0)
    assert core.entries(B) == {"x": b"newest"}


def test_a_greater_epoch_replaces_everything_and_tells_what_changed() -> None:
    core = states()
    first = delta("b", 1, 0, 3, *(OwnerEntry(k, i, b"1") for i, k in enumerate("xyz", 1)))
    core.handle(note(B, first), 0.0)
    second = delta("b", 2, 0, 2, OwnerEntry("x", 1, b"1"), OwnerEntry("y", 2, b"2"))
    effects = core.handle(note(B, second), 0.0)
    assert [e.detail for e in emitted(effects, "state.changed")] == ["y", "z"]
    assert core.entries(B) == {"x": b"1", "y": b"2"}


def test_a_late_rumour_does_not_bring_a_collected_key_back() -> None:
    core = states()
    core.handle(note(B, delta("b", 1, 0, 5, OwnerEntry("x", 4, None))), 0.0)
    core.handle(TimerFired(OwnerReapDue(1)), 4000.0)
    core.handle(note(C, delta("b", 1, 2, 3, OwnerEntry("x", 3, b"dead"))), 4000.0)
    assert core.entries(B) == {}


def test_a_copy_too_old_for_the_tombstones_is_sent_a_snapshot() -> None:
    ahead, behind = states(A), states(B)
    ahead.set("gone", b"1", 0.0)
    ahead.set("kept", b"2", 0.0)
    ahead.handle(LinkUp(B, HERE), 0.0)
    [(_, first)] = sent(ahead.handle(TimerFired(OwnerFlushDue(1)), 0.02))
    behind.handle(note(A, first), 0.02)
    ahead.delete("gone", 1.0)
    ahead.handle(TimerFired(OwnerReapDue(1)), 5000.0)
    ahead.set("more", b"3", 5000.0)
    [(_, news)] = sent(ahead.handle(note(B, OwnerWants((Mark("a", 1, 2),))), 5000.0))
    assert news.deltas[0].after == 0
    effects = behind.handle(note(A, news), 5000.0)
    assert behind.entries(A) == {"kept": b"2", "more": b"3"}
    assert Emit("state.changed", A, "gone") in effects


def test_more_deletions_than_can_be_remembered_still_reach_everybody() -> None:
    owner, other = states(A, 1, B), states(B)
    for i in range(MAX_OWNER_KEYS):
        owner.set(f"k{i}", b"1", 0.0)
    owner.handle(TimerFired(OwnerFlushDue(1)), 0.0)
    for _, message in sent(owner.handle(note(B, OwnerWants((Mark("a", 0, 0),))), 0.0)):
        other.handle(note(A, message), 0.0)
    assert len(other.entries(A)) == MAX_OWNER_KEYS
    for i in range(MAX_OWNER_KEYS):
        owner.delete(f"k{i}", 1.0)
    owner.set("again", b"1", 1.0)
    owner.delete("again", 1.0)  # one tombstone too many: the oldest goes
    for _, message in sent(owner.handle(TimerFired(OwnerFlushDue(1)), 1.0)):
        other.handle(note(A, message), 1.0)
    assert other.entries(A) == {}


def test_an_owner_with_too_many_keys_is_refused_beyond_the_limit() -> None:
    core = states()
    entries = [OwnerEntry(f"k{i}", i + 1, b"") for i in range(2 * MAX_OWNER_KEYS + 1)]
    effects: list[Effect] = []
    for start in range(0, len(entries), 1000):
        piece = entries[start : start + 1000]
        effects = core.handle(note(B, delta("b", 1, start, start + len(piece), *piece)), 0.0)
    assert len(core.entries(B)) == 2 * MAX_OWNER_KEYS
    assert "too many keys" in emitted(effects, "state.refused")[0].detail


def test_the_number_of_owners_is_limited() -> None:
    core = states()
    for start in range(0, MAX_MEMBERS, 256):
        piece = tuple(OwnerDelta(f"o{i}", 1, 0, 0, 0, ()) for i in range(start, start + 256))
        core.handle(note(B, OwnerDeltas(piece)), 0.0)
    assert len(core.owners()) == MAX_MEMBERS
    effects = core.handle(note(B, delta("one more", 1, 0, 0)), 0.0)
    assert effects == [Emit("state.refused", B, f"{MAX_MEMBERS} owners are known already")]


# Forgetting.


def test_a_forgotten_owner_is_not_brought_back_by_third_parties_for_a_while() -> None:
    core = states(A, 1, C)
    message = delta("b", 1, 0, 1, OwnerEntry("x", 1, b"1"))
    core.handle(note(C, message), 0.0)
    assert core.forget(B, 1.0) == [Emit("state.changed", B, "x")]
    assert core.forget(B, 1.0) == []
    assert core.forget(A, 1.0) == []
    assert core.handle(note(C, message), 2.0) == []
    assert (
        core.handle(note(C, OwnerDigests("a", "", (Mark("b", 1, 1),))), 2.0) == []
    )  # not asked for
    assert core.owners() == [A]
    core.handle(note(C, message), 122.0)
    assert core.owners() == [A, B]


@pytest.mark.parametrize("way", ["itself", "greater epoch", "welcome"])
def test_a_forgotten_owner_returns_by_itself_or_a_new_boot_or_welcome(way: str) -> None:
    core = states(A, 1, B, C)
    core.handle(note(C, delta("b", 1, 0, 1, OwnerEntry("x", 1, b"1"))), 0.0)
    core.forget(B, 1.0)
    if way == "welcome":
        core.welcome(B)
    epoch = 2 if way == "greater epoch" else 1
    sender = B if way == "itself" else C
    core.handle(note(sender, delta("b", epoch, 0, 1, OwnerEntry("x", 1, b"1"))), 2.0)
    assert core.get(B, "x") == b"1"


def test_what_is_remembered_of_the_forgotten_is_bounded_and_fades() -> None:
    core = states()
    for i in range(MAX_MEMBERS + 1):
        owner = NodeId(f"o{i}")
        core.handle(note(owner, delta(owner, 1, 0, 0)), 0.0)
        core.forget(owner, 0.0)
    assert len(core._forgotten) == MAX_MEMBERS
    core.handle(TimerFired(OwnerReapDue(1)), 200.0)
    assert core._forgotten == {}


# Being overtaken.


@pytest.mark.parametrize("how", ["digests", "wants"])
def test_an_owner_overtakes_a_newer_state_of_its_own(how: str) -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    core.set("gone", b"1", 0.0)
    core.delete("gone", 0.0)
    core.handle(TimerFired(OwnerFlushDue(1)), 0.02)
    marks = (Mark("a", 1, 9), Mark("b", 1, 0))
    heard = OwnerDigests("", "", marks) if how == "digests" else OwnerWants(marks[:1])
    effects = core.handle(note(B, heard), 1.0)
    assert "identity runs twice" in emitted(effects, "state.overtaken")[0].detail
    assert (B, delta("a", 1, 0, 11, OwnerEntry("x", 11, b"1"), collected=10)) in sent(effects)
    assert core.handle(note(B, OwnerWants((Mark("a", 2, 0),))), 1.1) == []  # once per interval
    effects = core.handle(note(B, OwnerWants((Mark("a", 2, 0),))), 9.0)
    assert emitted(effects, "state.overtaken") != []
    # Even a peer that knew all of the other state drops what only the other had.
    peer = states(B)
    peer.handle(note(C, delta("a", 1, 0, 9, OwnerEntry("theirs", 9, b"1"))), 0.0)
    peer.handle(note(A, delta("a", 1, 0, 11, OwnerEntry("x", 11, b"1"), collected=10)), 1.0)
    assert peer.entries(A) == {"x": b"1"}


def test_an_owner_that_lost_its_state_learns_so_and_is_not_sent_it() -> None:
    core = states(B, 1, A)
    core.handle(note(C, delta("a", 1, 0, 9, OwnerEntry("x", 9, b"1"))), 0.0)
    effects = core.handle(note(A, OwnerDigests("", "", (Mark("a", 1, 2), Mark("b", 1, 0)))), 1.0)
    assert sent(effects) == [(A, OwnerWants((Mark("a", 1, 9),)))]


def test_news_of_a_nodes_own_state_from_others_is_ignored() -> None:
    core = states()
    assert core.handle(note(B, delta("a", 9, 0, 1, OwnerEntry("x", 1, b"forged"))), 0.0) == []
    assert core.entries(A) == {}


# Comparing.


def test_one_side_of_a_new_link_begins() -> None:
    assert [type(m) for _, m in sent(states(A).handle(LinkUp(B, HERE), 0.0))] == [OwnerRoot]
    assert states(B).handle(LinkUp(A, HERE), 0.0) == []


def test_equal_roots_are_met_with_silence_and_others_with_digests() -> None:
    core = states(A, 1, B)
    core.handle(note(B, delta("b", 1, 0, 0)), 0.0)
    [(_, root)] = sent(core.handle(TimerFired(OwnerSyncDue(1)), 2.0))
    assert core.handle(note(B, root), 2.0) == []
    core.set("x", b"1", 2.0)
    assert sent(core.handle(note(B, root), 2.0)) == [
        (B, OwnerDigests("", "", (Mark("a", 1, 1), Mark("b", 1, 0))))
    ]


def test_digests_are_answered_with_what_each_side_lacks() -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    core.handle(note(B, delta("c", 1, 0, 2, OwnerEntry("c", 2, b"2"))), 0.0)
    core.handle(note(B, delta("e", 1, 0, 1, OwnerEntry("e", 1, b"1"))), 0.0)
    core.handle(note(B, delta("z", 1, 0, 1, OwnerEntry("z", 1, b"1"))), 0.0)
    digests = OwnerDigests(
        "", "e", (Mark("a", 1, 0), Mark("c", 1, 1), Mark("d", 1, 1), Mark("e", 1, 3))
    )
    notes = sent(core.handle(note(B, digests), 0.0))
    assert notes[0][1].deltas[0].owner == "c"  # newer here
    assert [d.owner for d in notes[0][1].deltas] == ["c", "a"]  # z is beyond the range
    assert notes[1] == (B, OwnerWants((Mark("d", 0, 0), Mark("e", 1, 1))))


def test_wants_for_the_unknown_and_the_known_are_not_answered() -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    wants = OwnerWants((Mark("nobody", 0, 0), Mark("a", 1, 1), Mark("b", 0, 0)))
    assert core.handle(note(B, wants), 0.0) == []


def test_large_digests_and_wants_are_split_and_cover_everybody() -> None:
    marks = [
        Mark("é" * 27 + f"{i:010}", 2**50, 2**50) for i in range(2 * MAX_OWNER_DIGESTS_PER_NOTE + 1)
    ]
    notes = list(digest_notes(marks))
    assert len(notes) == 3
    assert all(len(OWNER.encode(message)) <= MAX_META_BYTES for message in notes)
    for mark in marks:
        assert sum(message.covers(mark.owner) for message in notes) == 1
    assert sum(len(message.marks) for message in want_notes(marks)) == len(marks)
    [empty] = digest_notes([])
    assert empty.covers("anybody")


# Robustness.


def test_timers_of_an_earlier_boot_and_foreign_events_do_nothing() -> None:
    core = states(A, 2, B)
    assert core.handle(TimerFired(OwnerSyncDue(1)), 0.0) == []
    assert core.handle(TimerFired("another core's"), 0.0) == []
    assert core.handle(Leave(), 0.0) == []
    assert core.handle(NoteReceived(B, msgspec.msgpack.encode([99, 1])), 0.0) == []
    core.handle(LinkDown(B, "gone"), 0.0)
    core.handle(LinkDown(C, "never up"), 0.0)
    assert sent(core.handle(TimerFired(OwnerSyncDue(2)), 0.0)) == []


def test_start_begins_the_sync_and_the_reaping() -> None:
    sync, reap = states(A, 4).handle(Start(), 0.0)
    assert isinstance(sync, StartTimer)
    assert sync.timer == OwnerSyncDue(4)
    assert 0 <= sync.delay_s <= 2.0
    assert reap == StartTimer(OwnerReapDue(4), 60.0)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\x92\x28", b"\x94\x29", b"\x92\x2a", b"\x92\x2b\x91"]),
)
def test_garbage_never_raises_and_changes_nothing(data: bytes, front: bytes) -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    core.handle(NoteReceived(B, front + data), 0.0)
    assert core.entries(A) == {"x": b"1"}


@pytest.mark.parametrize(
    "message",
    [
        delta("b", 1, 0, 1, OwnerEntry("x", -1, b"")),
        delta("b", 2**60, 0, 1),
        delta("", 1, 0, 1),
        delta("b", 1, 0, 1, OwnerEntry("x", 1, bytes(16 * 1024 + 1))),
        OwnerRoot(b"short"),
    ],
)
def test_fields_out_of_range_are_refused(message: Message) -> None:
    [emit] = states().handle(note(B, message), 0.0)
    assert isinstance(emit, Emit)
    assert (emit.kind, emit.subject) == ("state.refused", B)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.binary(max_size=2)), max_size=12),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2**30)), max_size=20),
)
def test_copies_fed_in_any_order_never_differ_from_the_owner_once_complete(
    writes: list[tuple[str, bytes | None]], feeds: list[tuple[int, int]]
) -> None:
    owner = OwnerCopy(A, 1)
    told: list[OwnerDelta] = []
    for key, value in writes:
        before = owner.complete
        owner.write(key, value, 10.0)
        told += owner.deltas_since(1, before)
    copy = OwnerCopy(A, 0)
    for index, _ in feeds:
        if told:
            copy.merge(told[index % len(told)], 10.0)
    if feeds and feeds[0][1] % 2:
        owner.reap(20.0)
    for piece in owner.deltas_since(*copy.version):
        copy.merge(piece, 30.0)
    assert dict(copy.values) == dict(owner.values)
    assert copy.version == owner.version
