"""What nodes tell each other about per-owner state (type numbers 40-44), and its limits.

Two nodes compare their copies in up to three steps and fall silent as soon as they are equal::

    A                                   B
    OwnerRoot(hash of all marks)   ->   equal: silence
                                   <-   OwnerDigests(B's marks)
    OwnerDeltas(what B lacks)      ->
    OwnerWants(A's older marks)    ->
                                   <-   OwnerDeltas(what A lacks)

A *mark* is (owner, epoch, complete): the sender knows everything that the owner wrote in this
epoch up to the version `complete`. Marks are unsigned: one that lies is found out when what it
promises does not come, or does not bear the owner's signature.

`OwnerHints` stand beside this: values that change often, unsigned, told on and never compared.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from meshnode.limits import (
    MAX_META_BYTES,
    MAX_OWNER_DIGESTS_PER_NOTE,
    MAX_OWNER_KEY_LENGTH,
    MAX_OWNER_VALUE_BYTES,
    MAX_OWNER_VERSION,
)
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOM_BYTES: Final = MAX_META_BYTES - 64
_DELTA_OVERHEAD_BYTES: Final = 256  # owner's id, five numbers, digest and signature
_ENTRY_OVERHEAD_BYTES: Final = 24  # version and MessagePack's headers

OwnerId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Version = Annotated[int, msgspec.Meta(ge=0, le=MAX_OWNER_VERSION)]
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_OWNER_KEY_LENGTH)]
Value = Annotated[bytes, msgspec.Meta(max_length=MAX_OWNER_VALUE_BYTES)]


class OwnerEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One key at one version; without a value it is a tombstone."""

    key: Key
    version: Version
    value: Value | None

    @property
    def size_bytes(self) -> int:
        """At least what the entry takes in a note."""
        return _ENTRY_OVERHEAD_BYTES + len(self.key.encode()) + len(self.value or b"")


class OwnerDelta(msgspec.Struct, array_like=True, frozen=True):
    """What an owner wrote after one version and up to another.

    What fills more than a note is cut into several deltas, each beginning where the one before
    ends. Only the last of them is signed, and they count together or not at all.

    Attributes:
        owner: Whose state.
        epoch: The owner's boot epoch; a greater one replaces everything older.
        after: The receiver must know everything up to here for the delta to leave no gap. If 0,
            the entries up to the signed delta are the whole state: what is not among them is not in it.
        upto: Every key whose latest version lies in (after, upto] is among the entries, apart from
            collected tombstones.
        collected: Tombstones up to this version may be missing from the entries.
        entries: In the order of their versions.
        digest: Of all live entries that the owner has at version `upto`.
        signature: The owner's, over `state_bytes`; empty if more follows.
    """

    owner: OwnerId
    epoch: Version
    after: Version
    upto: Version
    collected: Version
    entries: tuple[OwnerEntry, ...]
    digest: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    signature: Annotated[bytes, msgspec.Meta(max_length=64)] = b""

    @property
    def version(self) -> tuple[int, int]:
        """(epoch, upto), by which states of one owner are ordered."""
        return (self.epoch, self.upto)

    @property
    def size_bytes(self) -> int:
        """At least what the delta takes in a note."""
        return _DELTA_OVERHEAD_BYTES + sum(entry.size_bytes for entry in self.entries)


class Mark(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How much the sender knows of an owner's state."""

    owner: OwnerId
    epoch: Version
    complete: Version

    @property
    def version(self) -> tuple[int, int]:
        """(epoch, complete), by which copies of one owner are ordered."""
        return (self.epoch, self.complete)


class OwnerRoot(Message, frozen=True, tag=40):
    """A hash of all of the sender's marks; who has another one answers with its marks."""

    root: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class OwnerDigests(Message, frozen=True, tag=41):
    """All of the sender's marks of owners in (first, last], an empty `last` meaning no end."""

    first: Annotated[str, msgspec.Meta(max_length=64)]
    last: Annotated[str, msgspec.Meta(max_length=64)]
    marks: tuple[Mark, ...]

    def covers(self, owner: str) -> bool:
        """Whether the sender would have listed this owner here if it knew it."""
        return self.first < owner and (not self.last or owner <= self.last)


class OwnerWants(Message, frozen=True, tag=42):
    """The sender asks for what is newer than these marks."""

    marks: tuple[Mark, ...]


class OwnerDeltas(Message, frozen=True, tag=43):
    """News of owners' states, from the owners or passed on."""

    deltas: tuple[OwnerDelta, ...]


class Hint(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One key's value of the moment, as its owner or somebody else says; None: it has none.

    `epoch` is the owner's boot epoch, and `version` rises with each of its hints within it.
    """

    owner: OwnerId
    epoch: Version
    version: Version
    key: Key
    value: Value | None

    @property
    def size_bytes(self) -> int:
        """At least what the hint takes in a note."""
        return _ENTRY_OVERHEAD_BYTES + 96 + len(self.key.encode()) + len(self.value or b"")


class OwnerHints(Message, frozen=True, tag=44):
    """Hints, from their owners or passed on."""

    hints: tuple[Hint, ...]


OWNER = Codec(OwnerRoot, OwnerDigests, OwnerWants, OwnerDeltas, OwnerHints)
"""The codec of all messages about per-owner state."""


def entry_hash(key: str, version: int, value: bytes) -> bytes:
    """Return the hash of one live entry, of which a state's digest is made."""
    return hashlib.sha256(msgspec.msgpack.encode((key, version, value))).digest()


def state_bytes(owner: str, epoch: int, version: int, digest: bytes) -> bytes:
    """Return what an owner signs: that at this version it has exactly these live entries."""
    return b"meshnode owner state 1\0" + msgspec.msgpack.encode((owner, epoch, version, digest))


_T = TypeVar("_T", OwnerEntry, OwnerDelta, Hint)


def in_pieces(items: Iterable[_T], overhead_bytes: int = 0) -> Iterator[tuple[_T, ...]]:
    """Group items, in order, so that each group and its overhead fit one note."""
    piece: list[_T] = []
    size_bytes = overhead_bytes
    for item in items:
        if piece and size_bytes + item.size_bytes > _ROOM_BYTES:
            yield tuple(piece)
            piece, size_bytes = [], overhead_bytes
        piece.append(item)
        size_bytes += item.size_bytes
    if piece:
        yield tuple(piece)


def digest_notes(marks: Iterable[Mark]) -> Iterator[OwnerDigests]:
    """Cut all marks, sorted by owner, into messages that together cover every owner."""
    listed = list(marks)
    first = ""
    for start in range(0, max(1, len(listed)), MAX_OWNER_DIGESTS_PER_NOTE):
        piece = tuple(listed[start : start + MAX_OWNER_DIGESTS_PER_NOTE])
        ends = start + MAX_OWNER_DIGESTS_PER_NOTE >= len(listed)
        last = "" if ends else piece[-1].owner
        yield OwnerDigests(first, last, piece)
        first = last


def want_notes(marks: Iterable[Mark]) -> Iterator[OwnerWants]:
    """Cut marks into messages that fit a note each."""
    listed = list(marks)
    for start in range(0, len(listed), MAX_OWNER_DIGESTS_PER_NOTE):
        yield OwnerWants(tuple(listed[start : start + MAX_OWNER_DIGESTS_PER_NOTE]))


def delta_notes(deltas: Iterable[OwnerDelta]) -> Iterator[OwnerDeltas]:
    """Group deltas, each of which fits a note, into as few notes as their order allows."""
    for piece in in_pieces(deltas):
        yield OwnerDeltas(piece)


def hint_notes(hints: Iterable[Hint]) -> Iterator[OwnerHints]:
    """Group hints into notes."""
    for piece in in_pieces(hints):
        yield OwnerHints(piece)


def entry_pieces(entries: Iterable[OwnerEntry]) -> Iterator[tuple[OwnerEntry, ...]]:
    """Group one owner's entries so that a delta of each group fits a note."""
    return in_pieces(entries, _DELTA_OVERHEAD_BYTES)
