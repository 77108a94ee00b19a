"""The revisions of one key: the winner, and the few before it.

Nodes that hold the same set of writes hold the same revisions, in whatever order and however often
the writes arrived: what is kept is a function of the set alone, namely its greatest `1 + history`
members, without those older than a tombstone. (A deletion forgets what it deleted, so that no copy
of an old value outlives the memory of its deletion.)

Where all keys together have more than their room (`DesiredConfig.max_former_bytes`), the oldest that are not the
winner of their key go, of whichever key. Which ones those are may depend on the order of arrival; nodes that compare
then take from each other what fits, give up what is older, and so end with the same.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshnode.state.desired_messages import Entry


class Revisions:
    """Revisions of one key, newest first; never empty, and never changed."""

    __slots__ = ("_keep", "entries", "hash", "size_bytes")

    def __init__(self, entry: Entry, history: int) -> None:
        """Begin with one entry and keep up to `history` more."""
        self._keep = 1 + history
        self._set([entry])

    def __repr__(self) -> str:
        newest = self.newest
        state = "deleted" if newest.deleted else f"{len(newest.value)} bytes"
        return (
            f"<Revisions of {newest.key!r}: {state} by {newest.author}, {len(self.entries)} kept>"
        )

    @property
    def newest(self) -> Entry:
        """The revision that counts."""
        return self.entries[0]

    def wants(self, entry: Entry) -> bool:
        """Whether this entry would be kept; says no to one that is here already."""
        order = entry.order
        oldest = self.entries[-1]
        if oldest.deleted or len(self.entries) == self._keep:
            return order > oldest.order and all(order != held.order for held in self.entries)
        return all(order != held.order for held in self.entries)

    def plus(self, entry: Entry) -> Revisions:
        """Return the revisions with an entry that is wanted; these stay as they are."""
        entries = sorted([*self.entries, entry], key=_order, reverse=True)[: self._keep]
        deleted = next((i for i, held in enumerate(entries) if held.deleted), len(entries))
        made = Revisions(entry, self._keep - 1)
        made._set(entries[: deleted + 1])
        return made

    def where(self, counts: Callable[[Entry], bool]) -> Revisions | None:
        """Return the revisions that count; these if all do, None if none does."""
        entries = [entry for entry in self.entries if counts(entry)]
        if len(entries) == len(self.entries):
            return self
        if not entries:
            return None
        made = Revisions(entries[0], self._keep - 1)
        made._set(entries)
        return made

    def without_oldest(self) -> Revisions:
        """Return the revisions but the oldest, which must not be the only one."""
        made = Revisions(self.entries[0], self._keep - 1)
        made._set([*self.entries[:-1]])
        return made

    @property
    def former_bytes(self) -> int:
        """What those take that do not count any more."""
        return self.size_bytes - self.newest.size_bytes

    def _set(self, entries: list[Entry]) -> None:
        self.entries: tuple[Entry, ...] = tuple(entries)
        self.hash = hash_of(self.entries)
        self.size_bytes = sum(entry.size_bytes for entry in entries)


def thinned(kept: Mapping[str, Revisions], surplus_bytes: int) -> dict[str, Revisions]:
    """Return what is left of the keys whose oldest former revisions give way.

    Args:
        kept: Revisions by key.
        surplus_bytes: How much is to go, the oldest first, of whichever key.
    """
    oldest = [(held.entries[-1].order, key) for key, held in kept.items() if len(held.entries) > 1]
    heapq.heapify(oldest)
    left: dict[str, Revisions] = {}
    while oldest and surplus_bytes > 0:
        _, key = heapq.heappop(oldest)
        held = left.get(key, kept[key])
        surplus_bytes -= held.entries[-1].size_bytes
        left[key] = held.without_oldest()
        if len(left[key].entries) > 1:
            heapq.heappush(oldest, (left[key].entries[-1].order, key))
    return left


def _order(entry: Entry) -> tuple[int, int, str, bytes]:
    return entry.order


def hash_of(entries: Iterable[Entry]) -> int:
    """Return a 64-bit hash of which revisions of which key these are."""
    digest = hashlib.blake2b(digest_size=8)
    for entry in entries:
        digest.update(entry.signed_bytes)
    return int.from_bytes(digest.digest(), "big")
