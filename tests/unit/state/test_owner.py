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
from meshnode.limits import (
    MAX_MEMBERS,
    MAX_META_BYTES,
    MAX_OWNER_DIGESTS_PER_NOTE,
    MAX_OWNER_KEYS,
    MAX_OWNER_STATE_BYTES,
)
from meshnode.state.config import OwnerConfig
from meshnode.state.owner import OwnerFlushDue, OwnerReapDue, OwnerStates, OwnerSyncDue
from meshnode.state.owner_copy import Gathering, OwnerCopy
from meshnode.state.owner_hints import OwnerHintsDue
from meshnode.state.owner_messages import (
    OWNER,
    Hint,
    Mark,
    OwnerDelta,
    OwnerDeltas,
    OwnerDigests,
    OwnerEntry,
    OwnerHints,
    OwnerRoot,
    OwnerWants,
    digest_notes,
    want_notes,
)
from meshnode.types import Address, NodeId
from tests.unit.state.conftest import owner_trust, sign_as

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshnode.wire.codec import Message

A, B, C, D, G = map(NodeId, "abcdg")
HERE = Address("10.0.0.1", 8471)


def states(
    me: NodeId = A,
    epoch: int = 1,
    *links: NodeId,
    epoch_of: Callable[[NodeId], int | None] = lambda _: 0,
    hints: frozenset[str] = frozenset(),
) -> OwnerStates:
    trust = owner_trust(me, epoch_of)
    made = OwnerStates(me, epoch, OwnerConfig(), random.Random(0), trust, hints)
    for peer in links:
        made.handle(LinkUp(peer, HERE), 0.0)
    return made


def note(sender: NodeId, message: Message) -> NoteReceived:
    return NoteReceived(sender, OWNER.encode(message))


def sent(effects: list[Effect]) -> list[tuple[NodeId, Any]]:
    return [(e.to, OWNER.decode(e.payload)) for e in effects if isinstance(e, SendNote)]


def emitted(effects: list[Effect], kind: str) -> list[Emit]:
    return [e for e in effects if isinstance(e, Emit) and e.kind == kind]


class Author:
    """An owner that is not this node: writes, and says what it wrote."""

    def __init__(self, owner: str, epoch: int = 1, **values: bytes) -> None:
        self.copy = OwnerCopy(NodeId(owner), epoch)
        for key, value in values.items():
            self.write(key, value)

    def write(self, key: str, value: bytes | None, reap_at: float = 1e9) -> Author:
        self.copy.write(key, value, reap_at)
        return self

    def deltas(self, after: int = 0, epoch: int | None = None) -> list[OwnerDelta]:
        self.copy.seal(sign_as(self.copy.owner))
        return [*self.copy.deltas_since(self.copy.epoch if epoch is None else epoch, after)]

    def say(self, after: int = 0) -> OwnerDeltas:
        return OwnerDeltas(tuple(self.deltas(after)))


def feed(core: OwnerStates, sender: NodeId, deltas: Iterable[OwnerDelta]) -> list[Effect]:
    """Let a peer send deltas, each in a note of its own."""
    effects: list[Effect] = []
    for delta in deltas:
        effects += core.handle(note(sender, OwnerDeltas((delta,))), 0.0)
    return effects


def changed(delta: OwnerDelta, **fields: Any) -> OwnerDeltas:
    return OwnerDeltas((msgspec.structs.replace(delta, **fields),))


# A node's own entries.


def test_changes_are_gathered_and_pushed_once_to_five_peers() -> None:
    core = states(A, 1, *map(NodeId, "bcdefg"))
    assert core.set("x", b"1", 0.0) == [
        StartTimer(OwnerFlushDue(1), 0.02),
        Emit("state.changed", A, "x"),
    ]
    assert core.set("y", b"2", 0.01) == [Emit("state.changed", A, "y")]
    notes = sent(core.handle(TimerFired(OwnerFlushDue(1)), 0.02))
    assert len({peer for peer, _ in notes}) == 5
    author = Author("a", x=b"1", y=b"2")
    assert all(message == author.say() for _, message in notes)
    core.delete("x", 1.0)
    _, message = sent(core.handle(TimerFired(OwnerFlushDue(1)), 1.02))[0]
    assert message == author.write("x", None).say(after=2)
    assert message.deltas[0].entries == (OwnerEntry("x", 3, None),)


def test_what_all_are_to_know_at_once_is_pushed_to_every_linked_peer_and_the_next_word_is_not() -> (
    None
):
    core = states(A, 1, *map(NodeId, "bcdefghi"))
    core.set("word", b"turn", 0.0, to_all=True)
    core.set("y", b"2", 0.01)
    notes = sent(core.handle(TimerFired(OwnerFlushDue(1)), 0.02))
    assert sorted(peer for peer, _ in notes) == [*"bcdefghi"]
    core.set("word", b"as usual", 1.0)
    assert len(sent(core.handle(TimerFired(OwnerFlushDue(1)), 1.02))) == 5


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


def test_all_that_an_owner_says_is_limited_too() -> None:
    core = states()
    count = MAX_OWNER_STATE_BYTES // (16 * 1024 + 27)
    for i in range(count):
        core.set(f"k{i:03}", bytes(16 * 1024), 0.0)
    with pytest.raises(TooLarge, match="all that this node says"):
        core.set("last", bytes(16 * 1024), 0.0)
    assert core.get(A, "last") is None
    core.set("k000", b"small", 0.0)
    core.set("last", bytes(16 * 1024), 0.0)


def test_the_repr_tells_the_state() -> None:
    core = states(A, 3, B)
    core.set("x", b"1", 0.0)
    assert repr(core) == "<OwnerStates of a (3, 1): 1 own keys, 0 other owners, 1 links>"
    copy = OwnerCopy(A, 3)
    copy.write("x", None, 1.0)
    assert repr(copy) == "<OwnerCopy a epoch 3, complete to 1, 0 keys, 1 tombstones>"


# Others' entries.


def test_news_is_passed_on_once_and_never_to_its_owner_or_sender() -> None:
    core = states(A, 1, B, C, D)
    message = Author("b", x=b"1").say()
    effects = core.handle(note(C, message), 0.0)
    assert emitted(effects, "state.changed") == [Emit("state.changed", B, "x")]
    assert sent(effects) == [(D, message)]
    assert core.handle(note(D, message), 0.0) == []


def test_a_gap_is_asked_for_at_the_sender_and_nothing_counts_until_it_is_filled() -> None:
    core = states(A, 1, C)
    author = Author("b", w=b"2")
    core.handle(note(C, author.say()), 0.0)
    author.write("x", b"4").write("x", b"5")
    effects = core.handle(note(C, author.say(after=2)), 0.0)
    assert core.entries(B) == {"w": b"2"}
    assert sent(effects) == [(C, OwnerWants((Mark("b", 1, 1),)))]
    core.handle(note(C, author.say(after=1)), 0.0)
    assert core.entries(B) == {"w": b"2", "x": b"5"}


def test_a_delta_that_tells_what_is_known_too_brings_only_what_is_new() -> None:
    core = states(A, 1, C)
    author = Author("b", x=b"1", y=b"2")
    core.handle(note(C, author.say()), 0.0)
    effects = core.handle(note(C, author.write("z", b"3").say(after=1)), 0.0)
    assert effects[:1] == [Emit("state.changed", B, "z")]
    assert core.entries(B) == {"x": b"1", "y": b"2", "z": b"3"}


def test_older_epochs_and_versions_change_nothing() -> None:
    core = states()
    older = Author("b", 1, x=b"1", y=b"2", z=b"3", v=b"4").say()
    author = Author("b", 2, x=b"old")
    old = author.say()
    core.handle(note(B, author.write("x", b"new").say()), 0.0)
    assert core.handle(note(B, old), 0.0) == []
    assert core.handle(note(C, older), 0.0) == []
    assert core.entries(B) == {"x": b"new"}


def test_a_greater_epoch_replaces_everything_and_tells_what_changed() -> None:
    core = states()
    core.handle(note(B, Author("b", 1, x=b"1", y=b"1", z=b"1").say()), 0.0)
    effects = core.handle(note(B, Author("b", 2, x=b"1", y=b"2").say()), 0.0)
    assert [e.detail for e in emitted(effects, "state.changed")] == ["y", "z"]
    assert core.entries(B) == {"x": b"1", "y": b"2"}


def test_a_late_rumour_does_not_bring_a_collected_key_back() -> None:
    core = states()
    author = Author("b", x=b"1")
    late = author.say()
    core.handle(note(B, author.write("x", None).say()), 0.0)
    core.handle(TimerFired(OwnerReapDue(1)), 4000.0)
    core.handle(note(C, late), 4000.0)
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


def test_an_owner_with_too_many_keys_is_refused() -> None:
    core = states()
    author = Author("b")
    for i in range(MAX_OWNER_KEYS + 1):
        author.write(f"k{i}", b"")
    [emit] = feed(core, B, author.deltas())
    assert isinstance(emit, Emit)
    assert (emit.kind, emit.subject) == ("state.refused", B)
    assert "more keys or bytes than an owner may have" in emit.detail
    assert core.owners() == [A]


def test_the_number_of_owners_is_limited() -> None:
    core = states()
    for i in range(MAX_MEMBERS - 1):
        core.handle(note(B, Author(f"o{i}").say()), 0.0)
    assert len(core.owners()) == MAX_MEMBERS
    [emit] = core.handle(note(B, Author("one more").say()), 0.0)
    assert isinstance(emit, Emit)
    assert f"{MAX_MEMBERS} owners are known already" in emit.detail


# States larger than a note.


def large(owner: str) -> Author:
    author = Author(owner)
    for i in range(12):
        author.write(f"k{i:02}", bytes([i]) * 16_000)
    return author


def test_pieces_of_a_state_count_together_or_not_at_all() -> None:
    core = states(A, 1, B, C)
    pieces = large("d").deltas()
    assert len(pieces) == 3
    assert feed(core, B, pieces[:2]) == []
    assert feed(core, C, pieces[1:]) == [
        SendNote(C, OWNER.encode(OwnerWants((Mark("d", 0, 0),))))  # C's row begins in the middle
    ]
    assert core.entries(D) == {}
    effects = feed(core, B, pieces[2:])
    assert len(core.entries(D)) == 12
    assert [m for to, m in sent(effects) if to == C] == [OwnerDeltas((p,)) for p in pieces]


def test_a_row_that_is_broken_off_is_forgotten() -> None:
    core = states(A, 1, B)
    pieces = large("d").deltas()
    feed(core, B, pieces[:1])
    core.handle(LinkDown(B, "gone"), 0.0)
    feed(core, B, pieces[1:])
    assert core.entries(D) == {}
    feed(core, B, [pieces[0], *large("e").deltas()[:1], *pieces[1:]])  # another's comes between
    assert core.entries(D) == {}
    feed(core, B, pieces)
    assert len(core.entries(D)) == 12


def test_pieces_that_never_end_take_bounded_memory() -> None:
    gathering = Gathering(limit_bytes=100_000)
    piece = large("d").deltas()[0]
    for i in range(10):
        assert gathering.take(NodeId(f"n{i}"), piece) is None
    assert repr(gathering) == f"<Gathering {piece.size_bytes} bytes from 1 peers>"
    gathering = Gathering(limit_bytes=10**9)
    for after in range(400):  # 25 MB from one peer
        endless = msgspec.structs.replace(piece, after=after, upto=after + 1)
        assert gathering.take(B, endless) is None
    assert sum(gathering._sizes.values()) < 2 * MAX_OWNER_STATE_BYTES


# Lies.


def test_what_a_relay_makes_of_a_state_is_refused_whatever_it_changes() -> None:
    author = Author("b", gone=b"1", x=b"1", y=b"2")
    author.write("gone", None)
    [true] = author.deltas()
    [forged] = Author("b", 9, x=b"evil").deltas()
    other = changed(forged, signature=sign_as("c")(b"anything"))
    lies = [
        changed(true, entries=(OwnerEntry("x", 2, b"evil"), *true.entries[1:])),
        changed(true, entries=true.entries[1:]),  # something left out
        changed(true, entries=(*true.entries, OwnerEntry("z", 3, b"added"))),
        changed(true, entries=(OwnerEntry("x", 3, b"1"), *true.entries[1:])),
        changed(true, epoch=2),
        changed(true, upto=9),
        changed(true, owner="d"),
        changed(true, signature=bytes(64)),
        other,
    ]
    for lie in lies:
        core = states(A, 1, C)
        effects = core.handle(note(C, lie), 0.0)
        [refused] = emitted(effects, "state.refused")
        assert refused.subject == C
        assert core.owners() == [A]
        core.handle(note(C, OwnerDeltas((true,))), 0.0)
        assert core.entries(B) == {"x": b"1", "y": b"2"}  # and the truth still counts


def test_a_deletion_that_the_owner_never_made_is_refused() -> None:
    """A relay says that tombstones were collected, or makes one up."""
    author = Author("b", x=b"1", y=b"2")
    [true] = author.deltas()
    author.write("z", b"3")
    [news] = author.deltas(after=2)
    for lie in (
        changed(news, entries=(OwnerEntry("y", 3, None), *news.entries)),
        changed(news, after=0, collected=3),
    ):
        core = states(A, 1, C)
        core.handle(note(C, OwnerDeltas((true,))), 0.0)
        core.handle(note(C, lie), 0.0)
        assert core.entries(B) == {"x": b"1", "y": b"2"}
        core.handle(note(D, OwnerDeltas((news,))), 0.0)
        assert core.entries(B) == {"x": b"1", "y": b"2", "z": b"3"}


def test_an_increment_that_does_not_fit_leads_to_the_whole_state() -> None:
    """Its sender had forgotten a tombstone that this node never got."""
    core = states(A, 1, C)
    author = Author("b", x=b"1", y=b"2")
    core.handle(note(C, author.say()), 0.0)
    author.write("x", None).write("z", b"3")
    [delta] = author.deltas(after=2)
    effects = core.handle(note(C, changed(delta, entries=delta.entries[1:])), 0.0)
    assert sent(effects) == [(C, OwnerWants((Mark("b", 0, 0),)))]
    core.handle(note(C, author.say()), 0.0)
    assert core.entries(B) == {"y": b"2", "z": b"3"}


def test_marks_that_lie_lead_to_a_question_and_no_more() -> None:
    core = states(A, 1, B, C)
    core.set("x", b"1", 0.0)
    core.handle(TimerFired(OwnerFlushDue(1)), 0.02)
    huge = 2**53
    marks = (Mark("a", huge, huge), Mark("b", huge, huge))
    for message in (OwnerDigests("", "", marks), OwnerWants(marks)):
        for _, answer in sent(core.handle(note(C, message), 1.0)):
            assert isinstance(answer, OwnerWants)
    assert core.entries(A) == {"x": b"1"}


# Who counts.


def test_what_cannot_be_checked_is_not_kept_but_asked_for_once_it_can_be() -> None:
    epochs: dict[NodeId, int] = {}
    core = states(A, 1, C, epoch_of=epochs.get)
    message = Author("b", x=b"1").say()
    assert core.handle(note(C, message), 0.0) == []
    assert core.handle(note(C, OwnerDigests("a", "", (Mark("b", 1, 1),))), 0.0) == []
    assert core.owners() == [A]
    epochs[B] = 1
    assert sent(core.welcome(B)) == [(C, OwnerWants((Mark("b", 0, 0),)))]
    assert core.welcome(B) == []
    core.handle(note(C, message), 0.0)
    assert core.entries(B) == {"x": b"1"}


def test_nobody_is_asked_whose_link_is_gone() -> None:
    epochs: dict[NodeId, int] = {}
    core = states(A, 1, C, epoch_of=epochs.get)
    core.handle(note(C, Author("b", x=b"1").say()), 0.0)
    core.handle(LinkDown(C, "gone"), 0.0)
    epochs[B] = 1
    assert core.welcome(B) == []


def test_how_many_states_are_awaited_is_bounded() -> None:
    core = states(A, 1, C, epoch_of=lambda _: None)
    for i in range(MAX_MEMBERS + 1):
        core.handle(note(C, Author(f"o{i}").say()), 0.0)
    assert sent(core.welcome(NodeId(f"o{MAX_MEMBERS - 1}"))) != []
    assert core.welcome(NodeId(f"o{MAX_MEMBERS}")) == []


def test_a_forgotten_owner_is_not_brought_back_by_those_who_still_know_it() -> None:
    live = {B: 1, C: 1}
    core = states(A, 1, C, epoch_of=live.get)
    message = Author("b", x=b"1").say()
    core.handle(note(C, message), 0.0)
    del live[B]
    assert core.forget(B) == [Emit("state.changed", B, "x")]
    assert core.forget(B) == []
    assert core.forget(A) == []
    for sender in (C, B):
        assert core.handle(note(sender, message), 2.0) == []
    assert core.owners() == [A]
    live[B] = 1
    core.handle(note(C, message), 3.0)
    assert core.owners() == [A, B]


def test_a_state_of_an_earlier_life_does_not_count_nor_is_it_asked_for() -> None:
    core = states(A, 1, C, epoch_of={B: 3}.get)
    assert core.handle(note(C, Author("b", 2, x=b"1").say()), 0.0) == []
    assert core.handle(note(C, OwnerDigests("a", "", (Mark("b", 2, 1),))), 0.0) == []
    assert core.owners() == [A]
    core.handle(note(C, Author("b", 3, x=b"2").say()), 0.0)
    assert core.entries(B) == {"x": b"2"}


# Being overtaken.


@pytest.mark.parametrize("how", ["digests", "wants"])
def test_an_owner_overtakes_a_newer_state_of_its_own_that_it_has_signed(how: str) -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    core.set("gone", b"1", 0.0)
    core.delete("gone", 0.0)
    core.handle(TimerFired(OwnerFlushDue(1)), 0.02)
    marks = (Mark("a", 1, 9), Mark("b", 1, 0))
    heard = OwnerDigests("", "", marks) if how == "digests" else OwnerWants(marks[:1])
    effects = core.handle(note(B, heard), 1.0)
    assert (B, OwnerWants((Mark("a", 1, 3),))) in sent(effects)
    assert core.handle(note(B, OwnerWants(marks[:1])), 1.1) == []  # once per interval
    theirs = Author("a")
    for _ in range(9):
        theirs.write("theirs", b"1")
    effects = core.handle(note(B, theirs.say()), 1.2)
    assert "identity runs twice" in emitted(effects, "state.overtaken")[0].detail
    effects = core.handle(TimerFired(OwnerFlushDue(1)), 1.3)
    [(_, news)] = sent(effects)
    assert news.deltas[0].entries == (OwnerEntry("x", 11, b"1"),)
    # Even a peer that knew all of the other state drops what only the other had.
    peer = states(B)
    peer.handle(note(C, theirs.say()), 0.0)
    assert peer.entries(A) == {"theirs": b"1"}
    peer.handle(note(A, news), 1.0)
    assert peer.entries(A) == {"x": b"1"}


def test_an_owner_whose_record_rises_to_another_epoch_says_everything_again_in_it() -> None:
    """Others take nothing of the epoch before any more."""
    core = hinting(B)
    core.set("x", b"1", 0.0)
    core.set("load", b"7", 0.0)
    core.handle(TimerFired(OwnerFlushDue(1)), 0.02)
    core.handle(TimerFired(OwnerHintsDue(1)), 0.02)
    assert core.follow_epoch(1) == []
    assert core.follow_epoch(4) == [StartTimer(OwnerFlushDue(1), 0.02)]
    assert core.follow_epoch(4) == []
    [(_, news)] = sent(core.handle(TimerFired(OwnerFlushDue(1)), 0.04))
    [_, (_, hints)] = sent(core.handle(TimerFired(OwnerSyncDue(1)), 0.05))
    peer = states(B, 1, C, epoch_of={A: 4}.get, hints=LOAD)
    peer.handle(note(A, news), 0.1)
    peer.handle(note(A, hints), 0.1)
    assert peer.entries(A) == {"x": b"1"}
    assert peer.get(A, "load") == b"7"


def test_an_owner_that_lost_its_state_learns_so_and_is_not_sent_it_unasked() -> None:
    core = states(B, 1, A)
    author = Author("a")
    for _ in range(9):
        author.write("x", b"1")
    core.handle(note(C, author.say()), 0.0)
    effects = core.handle(note(A, OwnerDigests("", "", (Mark("a", 1, 2), Mark("b", 1, 0)))), 1.0)
    assert sent(effects) == [(A, OwnerWants((Mark("a", 1, 9),)))]
    [(_, proof)] = sent(core.handle(note(A, OwnerWants((Mark("a", 1, 2),))), 1.0))
    assert proof == author.say(after=2)


def test_a_state_of_this_node_that_it_never_signed_is_refused() -> None:
    core = states(A, 1, B)
    [forged] = Author("a", 9, x=b"forged").deltas()
    effects = core.handle(note(B, changed(forged, signature=sign_as("b")(b"x"))), 0.0)
    assert emitted(effects, "state.refused") != []
    assert emitted(effects, "state.overtaken") == []
    assert core.entries(A) == {}


def test_an_older_state_of_this_node_is_ignored() -> None:
    core = states(A, 2)
    core.set("x", b"1", 0.0)
    assert core.handle(note(B, Author("a", 1, x=b"0", y=b"0").say()), 0.0) == []


# Hints.

LOAD = frozenset({"load"})


def hinted(version: int, value: bytes | None, epoch: int = 1, owner: str = "b") -> OwnerHints:
    return OwnerHints((Hint(owner, epoch, version, "load", value),))


def hinting(*links: NodeId, **options: Any) -> OwnerStates:
    return states(A, 1, *links, hints=LOAD, **{"epoch_of": lambda _: 1, **options})


def test_a_hint_is_pushed_unsigned_to_three_peers_and_to_the_others_in_turn() -> None:
    peers = [NodeId(name) for name in "bcdef"]
    core = hinting(*peers)
    assert core.set("load", b"3", 0.0) == [
        Emit("state.changed", A, "load"),
        StartTimer(OwnerHintsDue(1), 0.02),
    ]
    assert core.set("load", b"3", 0.0) == []
    core.set("load", b"4", 0.01)
    notes = sent(core.handle(TimerFired(OwnerHintsDue(1)), 0.02))
    assert [message for _, message in notes] == [hinted(2, b"4", owner="a")] * 3
    told = {peer for peer, _ in notes}
    for turn in range(50):
        for peer, message in sent(core.handle(TimerFired(OwnerSyncDue(1)), 2.0 * turn)):
            if isinstance(message, OwnerHints):
                assert peer not in told
                told.add(peer)
    assert told == set(peers)
    assert [type(m) for _, m in sent(core.handle(LinkUp(G, HERE), 99.0))][-1] is OwnerHints
    core.handle(LinkDown(B, "gone"), 99.0)
    assert [type(m) for _, m in sent(core.handle(LinkUp(B, HERE), 99.0))][-1] is OwnerHints
    assert core.entries(A) == {}
    assert core.get(A, "load") == b"4"
    assert repr(core._hints) == "<Hints of 1 owners, own version 2>"
    core.delete("load", 100.0)
    assert core.get(A, "load") is None


def test_hints_are_pushed_the_more_seldom_the_more_owners_there_are() -> None:
    core = hinting(B)
    for i in range(100):
        core.handle(note(B, hinted(1, b"1", owner=f"o{i}")), 0.0)
    core.set("load", b"1", 0.0)
    core.handle(TimerFired(OwnerHintsDue(1)), 0.02)
    [timer] = [e for e in core.set("load", b"2", 1.02) if isinstance(e, StartTimer)]
    assert timer.delay_s == pytest.approx(101 * 0.03 - 1.0)


def test_a_new_hint_is_passed_on_once_and_never_to_its_owner_or_sender() -> None:
    core = hinting(B, C, D)
    effects = core.handle(note(C, hinted(1, b"1")), 0.0)
    assert emitted(effects, "state.changed") == [Emit("state.changed", B, "load")]
    assert sent(effects) == [(D, hinted(1, b"1"))]
    assert core.handle(note(D, hinted(1, b"1")), 0.0) == []
    assert core.get(B, "load") == b"1"


def test_a_hint_of_no_live_member_or_another_life_or_of_this_node_changes_nothing() -> None:
    core = hinting(B, C, epoch_of={B: 2}.get)
    for message in (hinted(1, b"1"), hinted(1, b"1", 3), hinted(9, b"1", 2, "x")):
        assert core.handle(note(C, message), 0.0) == []
    core = hinting(B, C)
    assert core.handle(note(C, hinted(9, b"forged", owner="a")), 0.0) == []
    assert core.get(A, "load") is None


def test_a_key_that_is_no_hint_is_refused_among_hints() -> None:
    core = hinting(B, C)
    [emit] = core.handle(note(C, OwnerHints((Hint("b", 1, 1, "replica/x/1", b"forged"),))), 0.0)
    assert emit == Emit("state.refused", C, "'replica/x/1' is no hint")
    assert core.get(B, "replica/x/1") is None


def test_a_lie_about_anothers_load_lasts_until_the_owner_speaks_or_ten_seconds() -> None:
    core = hinting(B, C, D)
    core.handle(note(C, hinted(2**53, b"lie")), 0.0)
    assert core.handle(note(D, hinted(5, b"true")), 1.0) == []
    assert core.get(B, "load") == b"lie"
    effects = core.handle(note(B, hinted(6, b"true")), 1.0)
    assert core.get(B, "load") == b"true"
    assert sent(effects) == []  # to the others the lie looks newer
    core.handle(note(C, hinted(2**53, b"lie")), 2.0)
    core.handle(note(D, hinted(7, b"later")), 13.0)
    assert core.get(B, "load") == b"later"


def test_a_newcomer_gets_hints_with_the_states_that_it_lacks_and_they_go_with_their_owner() -> None:
    core = hinting(B, C)
    core.handle(note(B, Author("b", x=b"1").say()), 0.0)
    core.handle(note(B, hinted(1, b"1")), 0.0)
    notes = sent(core.handle(note(C, OwnerWants((Mark("b", 0, 0),))), 0.0))
    assert [type(message) for _, message in notes] == [OwnerDeltas, OwnerHints]
    assert core.forget(B) == [Emit("state.changed", B, "load"), Emit("state.changed", B, "x")]
    assert core.get(B, "load") is None


# Comparing.


def test_one_side_of_a_new_link_begins() -> None:
    assert [type(m) for _, m in sent(states(A).handle(LinkUp(B, HERE), 0.0))] == [OwnerRoot]
    assert states(B).handle(LinkUp(A, HERE), 0.0) == []


def test_equal_roots_are_met_with_silence_and_others_with_digests() -> None:
    core = states(A, 1, B)
    core.handle(note(B, Author("b").say()), 0.0)
    [(_, root)] = sent(core.handle(TimerFired(OwnerSyncDue(1)), 2.0))
    assert core.handle(note(B, root), 2.0) == []
    core.set("x", b"1", 2.0)
    assert sent(core.handle(note(B, root), 2.0)) == [
        (B, OwnerDigests("", "", (Mark("a", 1, 1), Mark("b", 1, 0))))
    ]


def test_digests_are_answered_with_what_each_side_lacks() -> None:
    core = states(A, 1, B)
    core.set("x", b"1", 0.0)
    core.handle(note(B, Author("c", b=b"1", c=b"2").say()), 0.0)
    core.handle(note(B, Author("e", e=b"1").say()), 0.0)
    core.handle(note(B, Author("z", z=b"1").say()), 0.0)
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
        OwnerDeltas((OwnerDelta("b", 1, 0, 1, 0, (OwnerEntry("x", -1, b""),)),)),
        OwnerDeltas((OwnerDelta("b", 2**60, 0, 1, 0, ()),)),
        OwnerDeltas((OwnerDelta("", 1, 0, 1, 0, ()),)),
        OwnerDeltas((OwnerDelta("b", 1, 0, 1, 0, (OwnerEntry("x", 1, bytes(16 * 1024 + 1)),)),)),
        OwnerDeltas((OwnerDelta("b", 1, 0, 1, 0, (), b"", bytes(65)),)),
        OwnerHints((Hint("b", 1, 2**60, "load", b""),)),
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
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans()), max_size=30),
)
def test_a_copy_is_only_ever_a_state_that_its_owner_signed_and_never_an_older_one(
    writes: list[tuple[str, bytes | None]], feeds: list[tuple[int, bool, bool]]
) -> None:
    """Whatever is repeated, reordered, left out, or relayed by nodes that collect at any time."""
    owner = Author("b")
    signed = {0: dict(owner.copy.values)}
    told: list[OwnerDelta] = owner.deltas()
    for key, value in writes:
        before = owner.copy.complete
        owner.write(key, value, reap_at=10.0)
        signed[owner.copy.complete] = dict(owner.copy.values)
        told += owner.deltas(before)
        told += owner.deltas()
    core, relay = states(A, 1, C), states(C, 1, A)
    seen = -1
    for index, reaps, through_relay in feeds:
        taken = note(C, OwnerDeltas((told[index % len(told)],)))
        if through_relay:
            relay.handle(taken, 0.0)
            wants = OwnerWants((core._copies["b"].mark if B in core.owners() else Mark("b", 0, 0),))
            for _, message in sent(relay.handle(note(A, wants), 0.0)):
                core.handle(note(C, message), 0.0)
        else:
            core.handle(taken, 0.0)
        if reaps:
            for each in (core, relay):
                each.handle(TimerFired(OwnerReapDue(1)), 1e6)
        if B in core.owners():
            version = core._copies["b"].complete
            assert dict(core.entries(B)) == signed[version]
            assert version >= seen
            seen = version
    mark = core._copies["b"].mark if B in core.owners() else Mark("b", 0, 0)
    feed(core, C, owner.deltas(mark.complete, mark.epoch))
    assert core.entries(B) == owner.copy.values
