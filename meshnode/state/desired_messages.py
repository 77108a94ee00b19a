"""Entries of the desired state, what nodes tell each other about them (types 50-54), and limits.

Two nodes compare their maps in up to three steps and fall silent as soon as they are equal::

    A                                      B
    DesiredRoot(hash of all keys)     ->   equal: silence
                                      <-   DesiredDigests(B's keys, a hash for each)
    DesiredEntries(what B lacks)      ->
    DesiredWants(keys that differ)    ->
                                      <-   DesiredEntries(their revisions)
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from meshnode.limits import (
    ENTRY_DIGEST_BYTES,
    MAX_DESIRED_DIGESTS_PER_NOTE,
    MAX_DESIRED_KEY_LENGTH,
    MAX_DESIRED_VALUE_BYTES,
    MAX_META_BYTES,
)
from meshnode.state.hybrid_clock import Stamp
from meshnode.wire.codec import Codec, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_ROOM_BYTES: Final = MAX_META_BYTES - 64
_ENTRY_OVERHEAD_BYTES: Final = 64  # stamp and MessagePack's headers
_DOMAIN: Final = b"meshnode desired state, version 1\0"
_ENCODER = msgspec.msgpack.Encoder()

Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_DESIRED_KEY_LENGTH)]
Author = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Value = Annotated[bytes, msgspec.Meta(max_length=MAX_DESIRED_VALUE_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(max_length=256)]
Hash = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]


class Entry(Message, frozen=True, tag=50):
    """One revision of one key, written once and never changed.

    Attributes:
        key: What it is about, such as `deployment/digits`.
        stamp: When it was written, in hybrid time.
        author: The node that wrote it.
        value: The content; empty for a deletion (a tombstone).
        signature: The author's, over `signed_bytes`.
    """

    key: Key
    stamp: Stamp
    author: Author
    value: Value
    signature: Signature = b""

    @property
    def order(self) -> tuple[int, int, str, bytes]:
        """By which revisions of a key are ordered, the same at every node.

        The value is part of it only so that an author who signs two values with one stamp cannot
        make nodes differ.
        """
        return (*self.stamp, self.author, self.value)

    @property
    def deleted(self) -> bool:
        """Whether this is a tombstone."""
        return not self.value

    @property
    def signed_bytes(self) -> bytes:
        """What the author signs: everything but the signature, under a name of its own."""
        return _DOMAIN + _ENCODER.encode((self.key, self.stamp, self.author, self.value))

    @property
    def digest(self) -> bytes:
        """By which an eviction of the author names an entry that stays."""
        return hashlib.blake2b(self.signed_bytes, digest_size=ENTRY_DIGEST_BYTES).digest()

    @property
    def size_bytes(self) -> int:
        """At least what the entry takes in a note."""
        texts = len(self.key.encode()) + len(self.author.encode())
        return _ENTRY_OVERHEAD_BYTES + texts + len(self.value) + len(self.signature)


class KeyDigest(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A key and a hash of all its revisions that the sender holds."""

    key: Key
    revisions: Hash


class DesiredEntries(Message, frozen=True, tag=51):
    """Revisions, from their author or passed on."""

    entries: tuple[Entry, ...]


class DesiredRoot(Message, frozen=True, tag=52):
    """A hash over all keys; `current` says that the sender has been in contact within the week."""

    root: Hash
    current: bool


class DesiredDigests(Message, frozen=True, tag=53):
    """All keys of the sender in (first, last], an empty `last` meaning no end."""

    first: Annotated[str, msgspec.Meta(max_length=MAX_DESIRED_KEY_LENGTH)]
    last: Annotated[str, msgspec.Meta(max_length=MAX_DESIRED_KEY_LENGTH)]
    keys: tuple[KeyDigest, ...]
    current: bool

    def covers(self, key: str) -> bool:
        """Whether the sender would have listed this key here if it had it."""
        return self.first < key and (not self.last or key <= self.last)


class DesiredWants(Message, frozen=True, tag=54):
    """The sender asks for all revisions of these keys."""

    keys: tuple[Key, ...]


DESIRED = Codec(Entry, DesiredEntries, DesiredRoot, DesiredDigests, DesiredWants)
"""The codec of all messages about the desired state."""


def entry_notes(entries: Iterable[Entry]) -> Iterator[DesiredEntries]:
    """Group entries, in order, into messages that fit a note each."""
    piece: list[Entry] = []
    size_bytes = 0
    for entry in entries:
        if piece and size_bytes + entry.size_bytes > _ROOM_BYTES:
            yield DesiredEntries(tuple(piece))
            piece, size_bytes = [], 0
        piece.append(entry)
        size_bytes += entry.size_bytes
    if piece:
        yield DesiredEntries(tuple(piece))


def digest_notes(digests: list[KeyDigest], *, current: bool) -> Iterator[DesiredDigests]:
    """Cut all digests, sorted by key, into messages that together cover every key."""
    first = ""
    for start in range(0, max(1, len(digests)), MAX_DESIRED_DIGESTS_PER_NOTE):
        piece = tuple(digests[start : start + MAX_DESIRED_DIGESTS_PER_NOTE])
        last = "" if start + MAX_DESIRED_DIGESTS_PER_NOTE >= len(digests) else piece[-1].key
        yield DesiredDigests(first, last, piece, current)
        first = last


def want_notes(keys: list[str]) -> Iterator[DesiredWants]:
    """Cut keys into messages that fit a note each."""
    for start in range(0, len(keys), MAX_DESIRED_DIGESTS_PER_NOTE):
        yield DesiredWants(tuple(keys[start : start + MAX_DESIRED_DIGESTS_PER_NOTE]))
