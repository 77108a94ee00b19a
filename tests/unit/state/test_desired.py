from __future__ import annotations

import hashlib
import itertools
import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.effects import Effect, Emit, Persist, SendNote, StartTimer
from meshnode.errors import ConfigError, TooLarge, UsageError
from meshnode.events import Leave, LinkDown, LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import (
    MAX_DESIRED_DIGESTS_PER_NOTE,
    MAX_META_BYTES,
    MAX_MODELS,
    MAX_STAMP_COUNTER,
)
from meshnode.state.config import DesiredConfig
from meshnode.state.desired import DesiredState, DesiredSyncDue
from meshnode.state.desired_messages import (
    DESIRED,
    DesiredDigests,
    DesiredEntries,
    DesiredRoot,
    DesiredWants,
    Entry,
    KeyDigest,
    digest_notes,
    entry_notes,
    want_notes,
)
from meshnode.state.desired_store import pack, unpack
from meshnode.state.hybrid_clock import HybridClock, Stamp
from meshnode.state.revisions import Revisions
from meshnode.types import Address, NodeId

if TYPE_CHECKING:
    from meshnode.wire.codec import Message

A, B, C, D = (NodeId(name) for name in "abcd")
HERE = Address("10.0.0.1", 8471)
WALL_S = 1_750_000_000.0
DAY_S = 86_400.0
ANY = DesiredConfig()


def sign(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def genuine(entry: Entry) -> str | None:
    return None if entry.signature == sign(entry.signed_bytes) else "the signature is wrong"


def state(
    me: NodeId = A, *links: NodeId, config: DesiredConfig = ANY, stored: bytes | None = None
) -> DesiredState:
    made = DesiredState(me, sign, genuine, config, random.Random(0), stored)
    for peer in links:
        made.handle(LinkUp(peer, HERE), 0.0, WALL_S)
    return made


def entry(
    key: str, value: bytes, wall_s: float = WALL_S, author: str = "b", counter: int = 0
) -> Entry:
    made = Entry(key, Stamp(int(wall_s * 1000), counter), author, value)
    return msgspec.structs.replace(made, signature=sign(made.signed_bytes))


def give(
    core: DesiredState, *messages: Message, sender: NodeId = B, wall_s: float = WALL_S
) -> list[Effect]:
    effects: list[Effect] = []
    for message in messages:
        effects += core.handle(NoteReceived(sender, DESIRED.encode(message)), 0.0, wall_s)
    return effects


def sent(effects: list[Effect]) -> list[tuple[NodeId, Any]]:
    return [(e.to, DESIRED.decode(e.payload)) for e in effects if isinstance(e, SendNote)]


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


def put(core: DesiredState, key: str, value: bytes, wall_s: float) -> list[Effect]:
    """Write as a driver with a working disk does; an empty value deletes."""
    draft = core.draft({key: value}, wall_s)
    return [*([draft.persist] if draft.persist else []), *core.commit(draft)]


# Writing.


def test_a_write_is_durable_before_anybody_hears_of_it() -> None:
    core = state(A, B, C)
    effects = put(core, "d", b"1", WALL_S)
    assert kinds(effects) == [Persist, SendNote, SendNote, Emit]
    assert effects[-1] == Emit("desired.changed", "d", "a")
    written = core.entry("d")
    assert written is not None
    assert genuine(written) is None
    assert {message for _, message in sent(effects)} == {DesiredEntries((written,))}
    assert isinstance(effects[0], Persist)
    assert effects[0].key == "desired"
    assert state(stored=effects[0].value).get("d") == b"1"


@pytest.mark.parametrize("key", ["release-order/m", "release-stop/m", "release-end/m"])
def test_what_requests_follow_at_once_its_author_tells_every_linked_peer(key: str) -> None:
    core = state(A, *map(NodeId, "bcdefgh"))
    told = {peer for peer, _ in sent(put(core, key, b"1", WALL_S))}
    assert told == {*"bcdefgh"}
    assert len({peer for peer, _ in sent(put(core, "deployment/m", b"1", WALL_S))}) == ANY.fanout
    passed_on = sent(give(core, DesiredEntries((entry(key, b"2", WALL_S + 1),))))
    assert len({peer for peer, _ in passed_on}) == ANY.fanout


def test_a_draft_that_is_not_committed_leaves_no_trace() -> None:
    core = state(A, B)
    put(core, "d", b"1", WALL_S)
    twin = state(A, B, stored=core._persist().value)
    before = (core.items(), core.entry("d"), core.history("d"), core.size_bytes, core.key_count)
    root, persisted = core._root, core._persist()
    core.draft({"d": b"2", "new": b"1"}, WALL_S)
    core.draft({"d": b""}, WALL_S)
    after = (core.items(), core.entry("d"), core.history("d"), core.size_bytes, core.key_count)
    assert after == before
    assert (core._root, core._persist()) == (root, persisted)
    assert core.handle(LinkUp(C, HERE), 0.0, WALL_S) == twin.handle(LinkUp(C, HERE), 0.0, WALL_S)


def test_a_draft_says_all_that_its_commit_will_hold() -> None:
    core = state()
    put(core, "d", b"1", WALL_S)
    draft = core.draft({"d": b"2", "new": b"1"}, WALL_S)
    assert draft.persist is not None
    core.commit(draft)
    assert core._persist() == draft.persist
    assert state(stored=draft.persist.value).items() == core.items()
    assert [entry.value for entry in core.history("d")] == [b"1"]


def test_the_changes_of_one_draft_count_together_against_the_limits() -> None:
    core = state(config=DesiredConfig(max_total_bytes=1000))
    with pytest.raises(TooLarge, match="would exceed 1000 bytes with 'y'"):
        core.draft({"x": bytes([1]) * 600, "y": bytes([1]) * 600}, WALL_S)
    assert core.key_count == 0


def test_what_is_accepted_is_durable_before_it_is_passed_on_once() -> None:
    core = state(A, B, C)
    message = DesiredEntries((entry("d", b"1"),))
    effects = give(core, message)
    assert kinds(effects) == [Persist, SendNote, Emit]
    assert sent(effects) == [(C, message)]
    assert give(core, message, sender=C) == []


def test_deleting_leaves_a_tombstone_and_no_history() -> None:
    core = state()
    put(core, "d", b"1", WALL_S)
    assert kinds(put(core, "d", b"", WALL_S)) == [Persist, Emit]
    assert core.get("d") is None
    assert core.items() == []
    tombstone = core.entry("d")
    assert tombstone is not None
    assert tombstone.deleted
    assert core.history("d") == ()
    assert put(core, "d", b"", WALL_S) == []
    assert put(core, "never there", b"", WALL_S) == []
    assert core.entry("never there") is None
    assert core.history("never there") == ()


def test_the_last_eight_values_are_kept_for_rollback() -> None:
    core = state()
    for i in range(12):
        put(core, "d", b"%d" % i, WALL_S)
    assert core.get("d") == b"11"
    assert [e.value for e in core.history("d")] == [b"%d" % i for i in range(10, 2, -1)]


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("", b"1", UsageError),
        ("d" * 257, b"1", TooLarge),
        ("d", bytes(48 * 1024 + 1), TooLarge),
    ],
)
def test_a_write_out_of_limits_is_refused(key: str, value: bytes, error: type[Exception]) -> None:
    core = state()
    with pytest.raises(error):
        put(core, key, value, WALL_S)
    assert core.items() == []


def test_the_largest_entry_fits_a_note() -> None:
    core = state(A, B)
    effects = put(core, "é" * 256, bytes(48 * 1024), WALL_S)
    assert all(len(e.payload) <= MAX_META_BYTES for e in effects if isinstance(e, SendNote))


def test_keys_are_limited_for_writers_and_more_widely_for_peers() -> None:
    core = state(config=DesiredConfig(history=0))
    filled = [entry(f"k{i}", b"1") for i in range(2 * MAX_MODELS)]
    give(core, *entry_notes(filled))
    with pytest.raises(TooLarge, match="4096 keys"):
        put(core, "one more", b"1", WALL_S)
    [refused] = give(core, DesiredEntries((entry("one more", b"1"),)))
    assert refused == Emit(
        "desired.refused", "one more", "an entry of b: there are 8192 keys already"
    )
    put(core, "k0", b"2", WALL_S + 1)


def test_all_values_together_are_limited_for_writers_and_more_widely_for_peers() -> None:
    core = state(config=DesiredConfig(max_total_bytes=1000))
    put(core, "x", bytes([1]) * 800, WALL_S)
    with pytest.raises(TooLarge, match="1000 bytes"):
        put(core, "y", bytes([1]) * 300, WALL_S)
    give(core, DesiredEntries((entry("y", bytes([1]) * 700),)))
    assert core.get("y") is not None
    [refused] = give(core, DesiredEntries((entry("z", bytes([1]) * 700),)))
    assert isinstance(refused, Emit)
    assert refused.kind == "desired.refused"


# Order.


def test_the_later_stamp_wins_then_the_greater_author_in_any_order_of_arrival() -> None:
    writes = [
        entry("d", b"early", WALL_S - 1, "z"),
        entry("d", b"small", WALL_S, "b"),
        entry("d", b"great", WALL_S, "c"),
        entry("d", b"counted", WALL_S, "b", counter=1),
    ]
    for order in itertools.permutations(writes):
        core = state()
        for write in order:
            give(core, DesiredEntries((write,)))
        assert core.get("d") == b"counted"
        assert [e.value for e in core.history("d")] == [b"great", b"small", b"early"]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(
        st.builds(
            lambda ms, author, value: Entry("d", Stamp(ms, 0), author, value),
            st.integers(0, 12), st.sampled_from("ab"), st.sampled_from([b"", b"x", b"y"]),
        ),
        min_size=1, max_size=12,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_same_writes_in_any_order_are_the_same_revisions(
    writes: list[Entry], shuffle: random.Random
) -> None:
    def merged(order: list[Entry]) -> Revisions:
        made = Revisions(order[0], history=3)
        for write in order[1:]:
            if made.wants(write):
                made = made.plus(write)
        return made

    once = merged(writes)
    shuffled = writes[:]
    shuffle.shuffle(shuffled)
    again = merged([*shuffled, *writes])
    assert again.entries == once.entries
    assert again.hash == once.hash
    assert not any(once.wants(held) for held in once.entries)


def test_an_older_write_joins_the_history_without_an_event_of_change() -> None:
    core = state()
    give(core, DesiredEntries((entry("d", b"new"),)))
    persisted, told = give(core, DesiredEntries((entry("d", b"old", WALL_S - 5),)))
    assert isinstance(persisted, Persist)
    assert told == Emit("desired.outdated", "d", "b")
    assert [e.value for e in core.history("d")] == [b"old"]


def test_a_value_older_than_its_deletion_is_not_taken() -> None:
    core = state()
    give(core, DesiredEntries((entry("d", b"", WALL_S),)))
    assert give(core, DesiredEntries((entry("d", b"old", WALL_S - 5),))) == []


# Clocks.


def test_stamps_never_go_back_and_follow_the_wall_clock() -> None:
    clock = HybridClock()
    assert clock.tick(1000) == (1000, 0)
    assert clock.tick(1000) == (1000, 1)
    assert clock.tick(900) == (1000, 2)
    clock.see(Stamp(5000, 7))
    clock.see(Stamp(4000, 9))
    assert clock.tick(3000) == (5000, 8)
    assert clock.tick(6000) == (6000, 0)
    clock.see(Stamp(6000, MAX_STAMP_COUNTER))
    assert clock.tick(6000) == (6001, 0)
    assert repr(clock) == "<HybridClock at 6001 ms + 0>"


def test_an_entry_from_too_far_in_the_future_is_refused_and_moves_no_clock() -> None:
    core = state()
    [refused] = give(core, DesiredEntries((entry("d", b"1", WALL_S + 301),)))
    assert isinstance(refused, Emit)
    assert "301 s ahead" in refused.detail
    assert kinds(give(core, DesiredEntries((entry("d", b"1", WALL_S + 299),)))) == [Persist, Emit]


def test_a_node_whose_clock_was_set_back_far_says_so_when_it_is_to_write() -> None:
    core = state()
    put(core, "d", b"1", WALL_S)
    with pytest.raises(UsageError, match="clock is 3600 s behind"):
        put(core, "d", b"2", WALL_S - 3600)
    with pytest.raises(UsageError, match="clock"):
        put(core, "d", b"", WALL_S - 3600)
    put(core, "d", b"2", WALL_S - 60)
    assert core.get("d") == b"2"


# Refusals.


def test_a_refusal_is_told_once_per_key_and_author_until_accepted() -> None:
    core = state()
    forged = msgspec.structs.replace(entry("d", b"1"), signature=b"no")
    [refused] = give(core, DesiredEntries((forged,)))
    assert refused == Emit("desired.refused", "d", "an entry of b: the signature is wrong")
    assert give(core, DesiredEntries((forged,))) == []
    assert core.entry("d") is None
    give(core, DesiredEntries((entry("d", b"1"),)))
    later = msgspec.structs.replace(entry("d", b"2", WALL_S + 1), signature=b"no")
    assert kinds(give(core, DesiredEntries((later,)))) == [Emit]


def test_an_entry_of_an_author_not_yet_known_is_taken_at_a_later_sync() -> None:
    known: set[str] = set()
    core = DesiredState(
        A, sign, lambda e: None if e.author in known else "unknown", ANY, random.Random(0)
    )
    digests = DesiredDigests("", "", (KeyDigest("d", bytes(8)),), current=True)
    assert (B, DesiredWants(("d",))) in sent(give(core, digests))
    assert kinds(give(core, DesiredEntries((entry("d", b"1"),)))) == [Emit]
    known.add("b")
    assert (B, DesiredWants(("d",))) in sent(give(core, digests))
    give(core, DesiredEntries((entry("d", b"1"),)))
    assert core.get("d") == b"1"


def test_the_memory_of_refusals_is_bounded() -> None:
    core = state()
    for i in range(1025):
        give(core, DesiredEntries((msgspec.structs.replace(entry(f"k{i}", b"1"), signature=b""),)))
    assert len(core._refused) == 1024


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\x92\x33\x91", b"\x93\x34", b"\x95\x35", b"\x92\x36", b"\x96\x32"]),
)
def test_garbage_never_raises_and_changes_nothing(data: bytes, front: bytes) -> None:
    core = state(A, B)
    put(core, "d", b"1", WALL_S)
    core.handle(NoteReceived(B, front + data), 0.0, WALL_S)
    assert core.items() == [("d", b"1")]


@pytest.mark.parametrize(
    "bad",
    [
        Entry("d", Stamp(-1, 0), "b", b""),
        Entry("d", Stamp(0, 2**40), "b", b""),
        Entry("", Stamp(0, 0), "b", b""),
        Entry("d", Stamp(0, 0), "b", bytes(48 * 1024 + 1)),
    ],
)
def test_fields_out_of_range_are_refused(bad: Entry) -> None:
    [emit] = give(state(), DesiredEntries((bad,)))
    assert isinstance(emit, Emit)
    assert (emit.kind, emit.subject) == ("desired.refused", B)


def test_foreign_events_and_messages_do_nothing() -> None:
    core = state(A, B)
    assert core.handle(Leave(), 0.0, WALL_S) == []
    assert core.handle(TimerFired("another core's"), 0.0, WALL_S) == []
    assert core.handle(NoteReceived(B, msgspec.msgpack.encode([99])), 0.0, WALL_S) == []
    assert give(core, entry("d", b"1")) == []  # a lone entry is no note
    core.handle(LinkDown(B, "gone"), 0.0, WALL_S)
    assert sent(put(core, "d", b"1", WALL_S)) == []


# Comparing.


def test_a_sync_compares_roots_and_ignores_an_earlier_boots_timer() -> None:
    core = state(A, B)
    [start] = core.handle(Start(), 0.0, WALL_S)
    assert isinstance(start, StartTimer)
    assert start.timer == DesiredSyncDue(1)
    assert 0 <= start.delay_s <= 5
    effects = core.handle(TimerFired(DesiredSyncDue(1)), 0.0, WALL_S)
    assert sent(effects) == [(B, DesiredRoot(bytes(8), current=False))]
    core.handle(Start(), 0.0, WALL_S)
    assert core.handle(TimerFired(DesiredSyncDue(1)), 0.0, WALL_S) == []


def test_one_side_of_a_new_link_begins() -> None:
    assert len(sent(state(A).handle(LinkUp(B, HERE), 0.0, WALL_S))) == 1
    assert state(B).handle(LinkUp(A, HERE), 0.0, WALL_S) == []


def test_digests_are_answered_with_what_each_side_lacks() -> None:
    core, peer = state(A), state(B)
    both, mine, theirs = entry("both", b"1"), entry("mine", b"1"), entry("theirs", b"1")
    give(core, DesiredEntries((both, mine, entry("z", b"1"))))
    give(peer, DesiredEntries((both, theirs)))
    [(_, digests)] = sent(give(peer, DesiredRoot(bytes(8), current=False)))
    cut = msgspec.structs.replace(digests, last="y")
    effects = give(core, cut)
    assert sent(effects) == [(B, DesiredEntries((mine,))), (B, DesiredWants(("theirs",)))]
    assert sent(give(peer, DesiredWants(("theirs", "unknown")), sender=A)) == [
        (A, DesiredEntries((theirs,)))
    ]


def test_equal_roots_are_contact_and_made_durable_once_an_hour() -> None:
    core = state()
    root = DesiredRoot(bytes(8), current=False)
    assert kinds(give(core, root)) == [Persist]
    assert give(core, root, wall_s=WALL_S + 3599) == []
    assert kinds(give(core, root, wall_s=WALL_S + 3600)) == [Persist]


def test_nodes_that_were_all_away_wait_for_one_that_was_not_before_they_trust_each_other() -> None:
    core = state(A, B, stored=pack([], int((WALL_S - 8 * DAY_S) * 1000)))
    root = DesiredRoot(bytes(8), current=False)
    assert give(core, root) == []
    assert give(core, root, wall_s=WALL_S + 59) == []
    assert kinds(give(core, root, wall_s=WALL_S + 60)) == [Persist]
    assert give(core, root, wall_s=WALL_S + 61) == []


def test_a_node_without_contact_for_a_week_returns_its_root_and_takes_over() -> None:
    stored = pack([entry("gone", b"1"), entry("kept", b"1")], int(WALL_S * 1000))
    core = state(A, B, stored=stored)
    now_s = WALL_S + 8 * DAY_S
    put(core, "new", b"1", now_s)
    bounced = sent(give(core, DesiredRoot(bytes(8), current=True), wall_s=now_s))
    assert [(to, message.current) for to, message in bounced] == [(B, False)]
    kept = Revisions(entry("kept", b"1"), 8)
    digests = DesiredDigests(
        "", "", (KeyDigest("kept", kept.hash.to_bytes(8, "big")),), current=True
    )
    effects = give(core, digests, wall_s=now_s)
    assert isinstance(effects[0], Persist)
    assert effects[-1] == Emit("desired.changed", "gone", "")
    assert [key for key, _ in core.items()] == ["kept", "new"]
    [(_, offered)] = sent(effects)
    assert [e.key for e in offered.entries] == ["new"]
    # From now on it is current, and answers with digests.
    [(_, answer)] = sent(give(core, DesiredRoot(bytes(8), current=True), wall_s=now_s))
    assert answer.current


def test_only_a_node_in_contact_drops_old_tombstones() -> None:
    core = state()
    core.handle(Start(), 0.0, WALL_S)
    put(core, "d", b"1", WALL_S)
    put(core, "kept", b"1", WALL_S)
    put(core, "d", b"", WALL_S)
    later_s = WALL_S + 8 * DAY_S
    assert kinds(core.handle(TimerFired(DesiredSyncDue(1)), 0.0, later_s)) == [StartTimer]
    give(core, DesiredDigests("", "", (), current=True), wall_s=later_s)
    assert kinds(core.handle(TimerFired(DesiredSyncDue(1)), 0.0, later_s)) == [Persist, StartTimer]
    assert core.entry("d") is None
    assert core.get("kept") == b"1"
    # A peer that has not dropped it yet offers it again, in vain.
    assert give(core, DesiredEntries((entry("d", b"", WALL_S),)), wall_s=later_s) == []


def test_everything_large_is_split_to_fit_notes() -> None:
    digests = [
        KeyDigest(f"{i:03}" + "\U0001f600" * 253, bytes(8))
        for i in range(2 * MAX_DESIRED_DIGESTS_PER_NOTE + 1)
    ]
    notes: list[Message] = list(digest_notes(digests, current=True))
    assert len(notes) == 3
    for digest in digests:
        assert sum(n.covers(digest.key) for n in notes if isinstance(n, DesiredDigests)) == 1
    notes += want_notes([digest.key for digest in digests])
    entries = [entry(f"k{i}", bytes([1]) * 20_000) for i in range(7)]
    grouped = list(entry_notes(entries))
    assert [len(n.entries) for n in grouped] == [3, 3, 1]
    assert list(entry_notes([])) == []
    assert all(len(DESIRED.encode(n)) <= MAX_META_BYTES for n in [*notes, *grouped])


# Disk.


def test_what_is_stored_comes_back_with_its_history() -> None:
    core = state()
    put(core, "d", b"1", WALL_S)
    effects = put(core, "d", b"2", WALL_S)
    assert isinstance(effects[0], Persist)
    again = state(stored=effects[0].value)
    assert again.entry("d") == core.entry("d")
    assert again.history("d") == core.history("d")
    assert repr(again) == repr(core)
    assert "1 keys" in repr(again)
    # And its clock: a write at the same instant is still later.
    put(again, "d", b"3", WALL_S)
    assert again.get("d") == b"3"


def test_the_repr_of_revisions_tells_what_counts() -> None:
    assert repr(Revisions(entry("d", b"123"), 8)) == "<Revisions of 'd': 3 bytes by b, 1 kept>"
    assert repr(Revisions(entry("d", b""), 8)) == "<Revisions of 'd': deleted by b, 1 kept>"


def test_torn_or_foreign_bytes_are_refused_with_what_to_do() -> None:
    whole = pack([entry("d", b"1")], None)
    assert unpack(whole).entries == (entry("d", b"1"),)
    for cut in range(len(whole)):
        with pytest.raises(ConfigError, match="move the file away"):
            state(stored=whole[:cut])
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        with pytest.raises(ConfigError):
            state(stored=bytes(flipped))
    body = msgspec.msgpack.encode(["no entries"])
    with pytest.raises(ConfigError, match="does not hold what it should"):
        state(stored=b"meshnode-desired-1\n" + hashlib.sha256(body).digest() + body)
