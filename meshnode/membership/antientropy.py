"""Anti-entropy: two linked nodes make their views equal, whatever gossip has missed.

::

    A ── Sync(hash of its view) ──> B      equal: nothing more is said
    A <── Digest, in pieces ─────── B      else: who B knows, in which incarnation and state
    A ── Records ─────────────────> B      what B lacks, and states in which A knows worse
    A ── RecordRequest ───────────> B      what A lacks
    A <── Records ───────────────── B

Where B knows more than `SUMMARISED_FROM` members, its whole digest would be long for the few of them in
which two views mostly differ. It then sends hashes of the parts of its view first, and the two change
roles::

    A <── Summary, 64 hashes ────── B
    A ── Digest of parts ─────────> B      those whose hashes differ; and on as above, with B for A

A piece of a digest names the range of ids that it covers, so its reader knows what is missing there.
Dead and departed members that the other side has never heard of are not passed on: each node forgets
them at its own time, and would learn them again from a node that has not yet, for ever. One that was
asked for while it lived, and is gone by the time of the answer, comes with that word: a stranger is not
taken then (`Beliefs.accept_gone`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.limits import MAX_ENTRIES_PER_DIGEST, MAX_META_BYTES, MAX_RECORDS_REQUESTED
from meshnode.membership.member import (
    LAST_ID,
    LIVE,
    OVERRIDES,
    Member,
    MemberTable,
    bucket_range,
)
from meshnode.membership.messages import (
    CODEC,
    Digest,
    DigestEntry,
    MemberRecord,
    RecordRequest,
    Records,
    Rumour,
    Summary,
    pack_id,
    state_of,
    unpack_id,
)
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_encode: Final = msgspec.msgpack.Encoder().encode

HEADER_BYTES: Final = 16
"""Type number and the lengths of two lists in a `Records` message, with room."""

SUMMARISED_FROM: Final = 128
"""Members from which on a digest (46 bytes each) is longer than a summary (640) and what follows it."""


@dataclass(slots=True)
class Difference:
    """What a digest shows: to send, to ask for, and to believe."""

    records: list[MemberRecord] = field(default_factory=list)
    rumours: list[Rumour] = field(default_factory=list)
    wanted: list[bytes] = field(default_factory=list)
    heard: list[Rumour] = field(default_factory=list)


def offer(table: MemberTable) -> list[bytes]:
    """Return the notes that answer a `Sync` whose hash is another: a summary, or the whole digest."""
    if len(table) <= SUMMARISED_FROM:
        return digests(table)
    return [CODEC.encode(Summary(tuple(table.bucket_sums())))]


def digests_where_different(table: MemberTable, summary: Summary) -> list[bytes]:
    """Return the digests of those parts of the table that a peer's summary shows to differ."""
    differing = [
        bucket
        for bucket, (ours, theirs) in enumerate(zip(table.bucket_sums(), summary.sums, strict=True))
        if ours != theirs
    ]
    ranges: list[tuple[bytes, bytes]] = []
    for after, upto in map(bucket_range, differing):
        if ranges and ranges[-1][1] == after:
            ranges[-1] = (ranges[-1][0], upto)  # neighbours share a note
        else:
            ranges.append((after, upto))
    return [note for after, upto in ranges for note in digests(table, after, upto)]


def digests(table: MemberTable, after: bytes = b"", upto: bytes = LAST_ID) -> list[bytes]:
    """Return the digest of the table's members with `after < id <= upto` as encoded notes."""
    entries = table.entries(after, upto)
    notes: list[bytes] = []
    for start in range(0, max(1, len(entries)), MAX_ENTRIES_PER_DIGEST):
        piece = tuple(entries[start : start + MAX_ENTRIES_PER_DIGEST])
        is_last = start + MAX_ENTRIES_PER_DIGEST >= len(entries)
        end = upto if is_last else piece[-1].subject
        notes.append(CODEC.encode(Digest(after, end, piece)))
        after = end
    return notes


def compare(table: MemberTable, digest: Digest) -> Difference:
    """Return how a peer's digest differs from the table, in the digest's range."""
    difference = Difference()
    theirs = {entry.subject: entry for entry in digest.entries}
    ours = {entry.subject: entry for entry in table.entries(digest.after, digest.upto)}
    for subject, entry in ours.items():
        member = table.get(unpack_id(subject))
        assert member is not None
        if subject in theirs:
            _compare_entries(difference, table, member, entry, theirs[subject])
        elif member.live:
            _give(difference, table, member)
    for subject, entry in theirs.items():
        if subject not in ours and state_of(entry.state) in LIVE:
            difference.wanted.append(subject)
    return difference


def _compare_entries(
    difference: Difference,
    table: MemberTable,
    member: Member,
    ours: DigestEntry,
    theirs: DigestEntry,
) -> None:
    their_state = state_of(theirs.state)
    if _version(theirs) > _version(ours):
        difference.wanted.append(ours.subject)
    elif _version(theirs) < _version(ours):
        _give(difference, table, member)
    elif their_state is None:
        return
    elif (member.state, their_state) in OVERRIDES:
        # A leave is believed with its proof only, which comes along with the record.
        if their_state is NodeState.LEFT:
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


def pack(records: Iterable[MemberRecord], rumours: Iterable[Rumour]) -> list[bytes]:
    """Return as few notes as carry these.

    A record and what is said of its subject come in one note: who reads of a stranger that it is gone
    does not take its record, and could not know that from the note before.
    """
    encoded = [(pack_id(record.node_id), msgspec.Raw(CODEC.encode(record))) for record in records]
    return pack_encoded(encoded, rumours)


def pack_encoded(
    records: Iterable[tuple[bytes, msgspec.Raw]], rumours: Iterable[Rumour]
) -> list[bytes]:
    """Do the same with subjects and their records that are encoded already."""
    said: dict[bytes, list[Rumour]] = {}
    for rumour in rumours:
        said.setdefault(rumour.subject, []).append(rumour)
    batches: list[tuple[list[msgspec.Raw], list[Rumour]]] = []
    room_bytes = 0

    def batch_with_room(size_bytes: int) -> tuple[list[msgspec.Raw], list[Rumour]]:
        nonlocal room_bytes
        if size_bytes > room_bytes:
            batches.append(([], []))
            room_bytes = MAX_META_BYTES - HEADER_BYTES
        room_bytes -= size_bytes
        return batches[-1]

    for subject, record in records:
        of_subject = said.pop(subject, [])
        size_bytes = memoryview(record).nbytes + sum(len(_encode(each)) for each in of_subject)
        raws, told = batch_with_room(size_bytes)
        raws.append(record)
        told += of_subject
    for rumour in chain.from_iterable(said.values()):
        batch_with_room(len(_encode(rumour)))[1].append(rumour)
    return [CODEC.encode(Records(tuple(raws), tuple(said))) for raws, said in batches]


def requests(subjects: Sequence[bytes]) -> list[bytes]:
    """Return notes that ask for these members' records."""
    return [
        CODEC.encode(RecordRequest(tuple(subjects[start : start + MAX_RECORDS_REQUESTED])))
        for start in range(0, len(subjects), MAX_RECORDS_REQUESTED)
    ]
