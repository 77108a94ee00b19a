"""Statements in the desired state: all of them, for ever, with room of their own."""

from __future__ import annotations

import hashlib
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.effects import Emit, Persist, SendNote
from meshnode.errors import TooLarge
from meshnode.events import LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import (
    MAX_ADMISSION_KEYS,
    MAX_ADMISSIONS_TOTAL_BYTES,
    MAX_MODELS,
    MAX_STATEMENT_KEYS,
    MAX_STATEMENTS_PER_AUTHOR,
)
from meshnode.state.config import DesiredConfig
from meshnode.state.desired import DesiredState, DesiredSyncDue
from meshnode.state.desired_messages import DESIRED, DesiredDigests, DesiredEntries, Entry
from meshnode.state.desired_store import pack
from meshnode.state.hybrid_clock import Stamp
from meshnode.state.room import Room
from meshnode.state.statements import (
    Statements,
    admission_key,
    is_statement,
    is_urgent,
    revocation_key,
    role_key,
    subject_of,
)
from meshnode.types import Address, NodeId

A, B, X = NodeId("a"), NodeId("b"), NodeId("x")
KEY = revocation_key(X)
WALL_S = 1_750_000_000.0
DAY_S = 86_400.0
ANY = DesiredConfig()


def sign(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def state(
    *, stored: bytes | None = None, config: DesiredConfig = ANY, seen: list[Entry] | None = None
) -> DesiredState:
    return DesiredState(
        A, sign, lambda _: None, config, random.Random(0), stored,
        (lambda _: None) if seen is None else seen.append,
    )  # fmt: skip


def entry(value: bytes, at: float = 0.0, author: str = "b", key: str = KEY) -> Entry:
    made = Entry(key, Stamp(int((WALL_S + at) * 1000), 0), author, value)
    return msgspec.structs.replace(made, signature=sign(made.signed_bytes))


def give(core: DesiredState, *entries: Entry, wall_s: float = WALL_S) -> list[str]:
    note = NoteReceived(B, DESIRED.encode(DesiredEntries(entries)))
    effects = core.handle(note, 0.0, wall_s)
    return [each.kind for each in effects if isinstance(each, Emit)]


def test_the_keys_say_what_they_are_and_whom_they_are_about() -> None:
    assert [is_statement(f(X)) for f in (admission_key, revocation_key, role_key)] == [True] * 3
    assert not is_statement("deployment/x")
    assert [is_urgent(f(X)) for f in (admission_key, revocation_key, role_key)] == [
        False, True, True,
    ]  # fmt: skip
    assert subject_of(KEY) == X


def test_nobody_overwrites_what_somebody_else_has_stated() -> None:
    core = state()
    assert give(core, entry(b"first"), entry(b"later", 9, "c")) == ["desired.changed"] * 2
    assert give(core, entry(b"early", -9, "d")) == ["desired.changed"]
    assert [each.value for each in core.statements(KEY)] == [b"later", b"first", b"early"]
    assert core.states(KEY, b"first")
    assert not core.states(KEY, b"other")
    assert not core.states("revocation/nobody", b"first")


def test_a_role_is_given_and_taken_and_given_again() -> None:
    core, key = state(), role_key(X)
    for at, value in enumerate((b"operator", b"member", b"operator")):
        core.commit(core.draft({key: value}, WALL_S + at))
        give(core, core.statements(key)[0])  # once more
    assert [each.value for each in core.statements(key)] == [b"operator", b"member", b"operator"]


def test_a_copy_takes_nobodys_place_however_it_is_dated() -> None:
    core = state()
    core.commit(core.draft({KEY: b"same"}, WALL_S))
    give(core, entry(b"same", -9, "d"))
    assert [each.author for each in core.statements(KEY)] == [A, "d"]
    other = revocation_key(B)
    give(core, entry(b"said by d", 1, "d", other))
    assert core.draft({other: b"said by d"}, WALL_S + 2).entries  # and nobody speaks for this node
    own = admission_key(A)
    give(core, entry(b"chain", 1, "d", own))
    core.commit(core.draft({own: b"chain"}, WALL_S + 2))
    assert core.draft({own: b"chain"}, WALL_S + 3).entries == ()


def test_of_equal_admissions_the_first_and_that_of_the_subject_are_kept() -> None:
    core, key = state(), admission_key(X)
    give(core, *(entry(b"chain", at, by, key) for by, at in (("c", 5), ("d", 1), (X, 9))))
    assert [each.author for each in core.statements(key)] == [X, "d"]
    assert core.draft({key: b"chain"}, WALL_S + 9).entries == ()


def test_what_is_pushed_out_is_told_and_a_node_does_not_push_out_itself() -> None:
    displaced: list[Entry] = []
    core = DesiredState(
        A, sign, lambda _: None, ANY, random.Random(0), on_displaced=displaced.append
    )
    said = [entry(bytes([number]), number + 1.0) for number in range(MAX_STATEMENTS_PER_AUTHOR)]
    give(core, *said)
    assert displaced == []
    give(core, entry(b"before all", 0.5))
    assert displaced == said[-1:]
    for number in range(MAX_STATEMENTS_PER_AUTHOR):
        core.commit(core.draft({KEY: bytes([1, number])}, WALL_S + 20 + number))
    with pytest.raises(TooLarge, match="another admin"):
        core.draft({KEY: b"one more"}, WALL_S + 60)


def test_an_authors_entries_are_those_that_count_first_and_the_newest_first() -> None:
    core = state()
    give(core, entry(b"1", 1, "b", "policy/x"), entry(b"2", 2, "b", "policy/x"))
    give(core, entry(b"3", 3, "b", "policy/y"), entry(b"4", 4, "c", "policy/y"))
    give(core, entry(b"0", 0, "b", "policy/z"), entry(b"out", 3, "b"))
    assert [each.value for each in core.written_by(B)] == [b"2", b"0", b"3", b"1"]


def test_a_statement_cannot_be_deleted() -> None:
    core = state()
    give(core, entry(b"first"))
    assert give(core, entry(b"", 9)) == ["desired.refused"]
    assert core.get(KEY) == b"first"


def test_each_is_told_as_it_comes_those_on_disk_first() -> None:
    seen: list[Entry] = []
    first, later = entry(b"first"), entry(b"later", 1)
    core = state(stored=pack([first, entry(b"x", key="deployment/x")], None), seen=seen)
    assert seen == [first]
    give(core, later, entry(b"y", key="deployment/y"))
    draft = core.draft({role_key(X): b"own"}, WALL_S + 2)
    core.commit(draft)
    assert [each.value for each in seen] == [b"first", b"later", b"own"]


def test_neither_age_nor_a_long_absence_drops_them() -> None:
    core = state(stored=pack([entry(b"first"), entry(b"x", key="deployment/x")], int(WALL_S * 1e3)))
    core.handle(Start(), 0.0, WALL_S)
    later_s = WALL_S + 30 * DAY_S
    digests = DESIRED.encode(DesiredDigests("", "", (), current=True))
    effects = core.handle(NoteReceived(B, digests), 0.0, later_s)  # the mesh has neither of the two
    core.handle(TimerFired(DesiredSyncDue(1)), 0.0, later_s)
    assert [key for key, _ in core.items()] == [KEY]
    [note] = [each for each in effects if isinstance(each, SendNote)]
    assert DESIRED.decode(note.payload).entries == (entry(b"first"),)


def test_a_mesh_full_of_deployments_has_room_for_evictions() -> None:
    core = state()
    for number in range(0, MAX_MODELS, 512):
        give(core, *(entry(b"1", key=f"deployment/{n}") for n in range(number, number + 512)))
    with pytest.raises(TooLarge, match="4096 keys of deployments and API keys"):
        core.draft({"deployment/one more": b"1"}, WALL_S)
    assert core.draft({KEY: b"out"}, WALL_S).entries
    small = state(config=DesiredConfig(max_total_bytes=100))
    give(small, entry(bytes([1]) * 40, key="deployment/x"))
    assert small.draft({KEY: bytes([1]) * 400}, WALL_S).entries


@pytest.mark.parametrize(
    ("key", "most", "what"),
    [
        (KEY, MAX_STATEMENT_KEYS, "statements about members"),
        (admission_key(A), MAX_ADMISSION_KEYS, "admissions of members"),
    ],
)
def test_statements_have_their_limit_too(key: str, most: int, what: str) -> None:
    room = Room(100)
    room.count(key, most, 0)
    with pytest.raises(TooLarge, match=what):
        room.require(key, b"x", is_new=True)
    room.require(key, b"x", is_new=False)
    assert room.why_none(entry(b"x", key=key), is_new=True) is None
    room.count(key, most, 0)
    assert room.why_none(entry(b"x", key=key), is_new=True) == f"there are {2 * most} keys already"
    assert room.size_bytes == 1
    assert repr(room).startswith(f"<Room with {2 * most} keys")


def test_a_mesh_full_of_admissions_has_room_for_evictions_and_roles() -> None:
    room = Room(100)
    room.count(admission_key(A), 2 * MAX_ADMISSION_KEYS, 2 * MAX_ADMISSIONS_TOTAL_BYTES)
    assert room.why_none(entry(b"x", key=admission_key(A)), is_new=False) is not None
    for key in (KEY, role_key(A)):
        room.require(key, b"x", is_new=True)
        assert room.why_none(entry(b"x", key=key), is_new=True) is None


def test_a_draft_may_state_several_things_under_one_key() -> None:
    core = state()
    draft = core.draft([(KEY, b"one"), (KEY, b"two")], WALL_S)
    assert [each.value for each in draft.entries] == [b"one", b"two"]
    assert len({each.stamp.wall_ms for each in draft.entries}) == 1
    core.commit(draft)
    assert [each.value for each in core.statements(KEY)] == [b"two", b"one"]


def test_what_takes_rights_away_is_told_to_all_and_an_admission_to_some() -> None:
    core = state()
    peers = [NodeId(f"p{number}") for number in range(10)]
    for peer in peers:
        core.handle(LinkUp(peer, Address("10.0.0.1", 1)), 0.0, WALL_S)
    changes = {admission_key(A): b"chain", KEY: b"out"}
    effects = core.commit(core.draft(changes, WALL_S))
    told = {
        each.to: [entry.key for entry in DESIRED.decode(each.payload).entries]
        for each in effects
        if isinstance(each, SendNote)
    }
    assert {*told} == {*peers}
    assert sorted(map(len, told.values())) == [1] * 7 + [2] * 3


def test_entries_that_do_not_count_any_more_make_room_for_those_before() -> None:
    core = state()
    give(core, entry(b"1", 1, "b", "policy/x"), entry(b"2", 2, "c", "policy/x"))
    give(core, entry(b"1", 1, "c", "policy/y"), entry(b"1", 1, "b", "policy/z"))
    give(core, entry(b"out", 3, "c"))
    effects = core.revalidate(lambda each: each.author != "c")
    assert isinstance(effects[0], Persist)
    assert effects[1:] == [
        Emit("desired.changed", "policy/x", ""),
        Emit("desired.changed", "policy/y", ""),
    ]
    assert [*core.items()] == [("policy/x", b"1"), ("policy/z", b"1"), (KEY, b"out")]
    assert core.revalidate(lambda each: each.author != "c") == []


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from("bcd"), st.binary(min_size=1, max_size=1)),
        min_size=1, max_size=60, unique=True,
    ),
    st.randoms(use_true_random=False),
)  # fmt: skip
def test_any_order_of_statements_keeps_the_same(
    said: list[tuple[int, str, bytes]], rng: random.Random
) -> None:
    """Also where an author exceeds its room, as every sync offers again what was not kept."""
    entries = [entry(value, at, author) for at, author, value in said]
    ends = []
    for _ in range(2):
        kept = Statements(entries[:1])
        for _ in range(3):
            for each in entries:
                if kept.wants(each):
                    kept = kept.plus(each)
        ends.append((kept.entries, kept.hash, kept.size_bytes))
        rng.shuffle(entries)
    assert ends[0] == ends[1]
    authors = [each.author for each in ends[0][0]]
    assert max(map(authors.count, authors)) <= MAX_STATEMENTS_PER_AUTHOR


def test_the_repr_of_statements_counts_them() -> None:
    assert repr(Statements([entry(b"1"), entry(b"2", 1)])) == f"<Statements of {KEY!r}: 2>"
