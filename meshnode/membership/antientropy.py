"""Anti-entropy: two linked nodes make their views equal, whatever gossip has missed.

::

    A ── Sync(hash of its view) ──> B      equal: nothing more is said
    A <── Digest, in pieces ─────── B      else: who B knows, in which incarnation and state
    A ── Records ─────────────────> B      what B lacks, and states in which A knows worse
    A ── RecordRequest ───────────> B      what A lacks
    A <── Records ───────────────── B

A piece of a digest names the range of ids that it covers, so its reader knows what is missing there.
Dead and departed members that the other side has never heard of are not passed on: each node forgets
them at its own time, and would learn them again from a node that has not yet, for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_ENTRIES_PER_DIGEST, MAX_META_BYTES, MAX_RECORDS_REQUESTED
from meshnode.membership.member import LIVE, OVERRIDES, Member, MemberTable
from meshnode.membership.messages import (
    CODEC,
    STATE_CODES,
    Digest,
    DigestEntry,
    MemberRecord,
    RecordRequest,
    Records,
    Rumour,
    unpack_id,
)
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HEADER_BYTES: Final = 16
"""Type number and the lengths of two lists in a `Records` message, with room."""

_LAST: Final = b"\xff" * 20


@dataclass(slots=True)
class Difference:
    """What a digest shows: to send, to ask for, and to believe."""

    records: list[MemberRecord] = field(default_factory=list)
    rumours: list[Rumour] = field(default_factory=list)
    wanted: list[bytes] = field(default_factory=list)
    heard: list[Rumour] = field(default_factory=list)


def digests(table: MemberTable) -> list[bytes]:
    """Return the table's digest as encoded notes."""
    entries = table.entries()
    notes: list[bytes] = []
    after = b""
    for start in range(0, len(entries), MAX_ENTRIES_PER_DIGEST):
        piece = tuple(entries[start : start + MAX_ENTRIES_PER_DIGEST])
        is_last = start + MAX_ENTRIES_PER_DIGEST >= len(entries)
        upto = _LAST if is_last else piece[-1].subject
        notes.append(CODEC.encode(Digest(after, upto, piece)))
        after = upto
    return notes


def compare(table: MemberTable, digest: Digest) -> Difference:
    """Return how a peer's digest differs from the table, in the digest's range."""
    difference = Difference()
    theirs = {entry.subject: entry for entry in digest.entries}
    ours = {
        entry.subject: entry
        for entry in table.entries()
        if digest.after < entry.subject <= digest.upto
    }
    for subject, entry in ours.items():
        member = table.get(unpack_id(subject))
        assert member is not None
        if subject in theirs:
            _compare_entries(difference, table, member, entry, theirs[subject])
        elif member.live:
            _give(difference, table, member)
    for subject, entry in theirs.items():
        if subject not in ours and STATE_CODES[entry.state] in LIVE:
            difference.wanted.append(subject)
    return difference


def _compare_entries(
    difference: Difference,
    table: MemberTable,
    member: Member,
    ours: DigestEntry,
    theirs: DigestEntry,
) -> None:
    if _version(theirs) > _version(ours):
        difference.wanted.append(ours.subject)
    elif _version(theirs) < _version(ours):
        _give(difference, table, member)
    elif (member.state, STATE_CODES[theirs.state]) in OVERRIDES:
        # A leave is believed with its proof only, which comes along with the record.
        if STATE_CODES[theirs.state] is NodeState.LEFT:
            difference.wanted.append(ours.subject)
        else:
            difference.heard.append(
                Rumour(theirs.subject, theirs.epoch, theirs.counter, theirs.state)
            )
    elif theirs.state != ours.state:
        difference.rumours.append(table.rumour(member))


def _give(difference: Difference, table: MemberTable, member: Member) -> None:
    difference.records.append(member.record)
    if member.state is not NodeState.ALIVE:
        difference.rumours.append(table.rumour(member))


def _version(entry: DigestEntry) -> tuple[int, int, int]:
    return (entry.epoch, entry.counter, entry.boot)


def answer(table: MemberTable, subjects: Iterable[bytes]) -> list[bytes]:
    """Return notes with the records asked for, and their states where they are not alive."""
    difference = Difference()
    for subject in dict.fromkeys(subjects):
        member = table.get(unpack_id(subject))
        if member is not None:
            _give(difference, table, member)
    return pack(difference.records, difference.rumours)


def pack(records: Sequence[MemberRecord], rumours: Sequence[Rumour]) -> list[bytes]:
    """Return as few notes as carry these, records first: a rumour means nothing without its record."""
    notes: list[bytes] = []
    items: list[MemberRecord | Rumour] = [*records, *rumours]
    batch: list[MemberRecord | Rumour] = []
    room_bytes = MAX_META_BYTES - HEADER_BYTES
    for item in items:
        size_bytes = len(msgspec.msgpack.encode(item))
        if size_bytes > room_bytes:
            notes.append(_records_note(batch))
            batch = []
            room_bytes = MAX_META_BYTES - HEADER_BYTES
        batch.append(item)
        room_bytes -= size_bytes
    return [*notes, _records_note(batch)] if batch else notes


def _records_note(items: Sequence[MemberRecord | Rumour]) -> bytes:
    return CODEC.encode(
        Records(
            tuple(item for item in items if isinstance(item, MemberRecord)),
            tuple(item for item in items if isinstance(item, Rumour)),
        )
    )


def requests(subjects: Sequence[bytes]) -> list[bytes]:
    """Return notes that ask for these members' records."""
    return [
        CODEC.encode(RecordRequest(tuple(subjects[start : start + MAX_RECORDS_REQUESTED])))
        for start in range(0, len(subjects), MAX_RECORDS_REQUESTED)
    ]
