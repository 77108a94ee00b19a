"""One owner's keys as one node knows them, and how copies are brought forward.

Every write of an owner takes the next version, so a copy is described by two numbers: the owner's
boot epoch, and `complete`, the version up to which nothing is missing. Rumours may bring single
newer entries before the ones between; they are used at once, but only a delta that continues from
`complete` moves it, so what was missed is still asked for.

A deleted key leaves its version as a tombstone, so that an older value of it is recognised as old.
Once a tombstone is dropped, `collected` remembers its version: a peer whose own `complete` is below
that may hold keys whose deletion nobody can tell it any more, and is sent a snapshot from version
0, against which it drops them (as quickwit's chitchat does). That makes the tombstones' lifetime a
matter of traffic, not of correctness.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from meshnode.limits import MAX_OWNER_KEYS
from meshnode.state.owner_messages import Mark, OwnerDelta, OwnerEntry, entry_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshnode.types import NodeId


@dataclass(frozen=True, slots=True)
class Merged:
    """What a delta changed in a copy.

    Attributes:
        changed: Keys whose value is another one now.
        news: Whether anything was new, and so is worth passing on.
        gap: Whether versions before the delta are missing here.
        overfull: Whether entries were refused because the owner has too many keys.
    """

    changed: tuple[str, ...]
    news: bool
    gap: bool
    overfull: bool


class OwnerCopy:
    """The state of one owner at one node; on the owner itself, the original."""

    __slots__ = ("_reap_at", "_values", "_versions", "collected", "complete", "epoch", "owner")

    def __init__(self, owner: NodeId, epoch: int) -> None:
        """Know nothing of this owner's epoch yet."""
        self.owner = owner
        self.epoch = epoch
        self.complete = 0
        self.collected = 0
        self._values: dict[str, bytes] = {}
        self._versions: dict[str, int] = {}  # of live keys and of tombstones
        self._reap_at: dict[str, float] = {}  # of tombstones, in the order of deletion

    def __repr__(self) -> str:
        return (
            f"<OwnerCopy {self.owner} epoch {self.epoch}, complete to {self.complete}, "
            f"{len(self._values)} keys, {len(self._reap_at)} tombstones>"
        )

    @property
    def mark(self) -> Mark:
        """How much is known here."""
        return Mark(self.owner, self.epoch, self.complete)

    @property
    def version(self) -> tuple[int, int]:
        """(epoch, complete)."""
        return (self.epoch, self.complete)

    @property
    def values(self) -> Mapping[str, bytes]:
        """A read-only view of the live keys, which follows later changes."""
        return MappingProxyType(self._values)

    def hash(self) -> int:
        """A 64-bit hash of the mark; the exclusive or of all is a node's root."""
        text = f"{self.owner} {self.epoch} {self.complete}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    # Writing, on the owner.

    def write(self, key: str, value: bytes | None, reap_at: float) -> None:
        """Give the key its next version; None deletes it until `reap_at`."""
        self.complete += 1
        self._store(OwnerEntry(key, self.complete, value), reap_at)
        self._bound_tombstones()

    def overtake(self, epoch: int, version: int) -> None:
        """Write every key again with versions above another's of this owner's state.

        One version is left out, so that even a peer that knows everything up to the other's last
        version is behind `collected`, and drops the keys that only the other had.
        """
        for key in [*self._reap_at]:
            self._drop(key)
        self.epoch = epoch
        self.complete = self.collected = version + 1
        for key in self._values:
            self.complete += 1
            self._versions[key] = self.complete

    # Reading and merging, anywhere.

    def deltas_since(self, epoch: int, complete: int) -> Iterator[OwnerDelta]:
        """Yield what a copy with this mark lacks, each delta small enough for one note."""
        after = complete if epoch == self.epoch and complete >= self.collected else 0
        newer = sorted((version, key) for key, version in self._versions.items() if version > after)
        entries = [OwnerEntry(key, version, self._values.get(key)) for version, key in newer]
        pieces = [*entry_pieces(entries)] or [()]
        for piece in pieces:
            upto = self.complete if piece is pieces[-1] else min(piece[-1].version, self.complete)
            yield OwnerDelta(self.owner, self.epoch, after, upto, self.collected, piece)
            after = upto

    def merge(self, delta: OwnerDelta, reap_at: float) -> Merged:
        """Take over what is newer in a delta of the same or a greater epoch."""
        before: dict[str, bytes | None] = {}
        news = delta.epoch > self.epoch
        if news:
            before.update(self._values)
            self._restart(delta.epoch)
        overfull = False
        for entry in delta.entries:
            held = self._versions.get(entry.key)
            # Up to `complete` all is known: a key that is not held there was deleted long ago.
            if entry.version <= self.complete or (held is not None and entry.version <= held):
                continue
            # Live ones and tombstones.
            if held is None and len(self._versions) >= 2 * MAX_OWNER_KEYS:
                overfull = True
                continue
            before.setdefault(entry.key, self._values.get(entry.key))
            self._store(entry, reap_at)
            news = True
        for key in self._deleted_unseen(delta):
            before.setdefault(key, self._values.get(key))
            self._drop(key)
        gap = delta.after > self.complete
        if not gap and not overfull and delta.upto > self.complete:
            self.complete = delta.upto
            news = True
        self.collected = max(self.collected, delta.collected)
        self._bound_tombstones()
        changed = tuple(key for key, value in before.items() if self._values.get(key) != value)
        return Merged(changed, news, gap, overfull)

    def reap(self, now: float) -> bool:
        """Drop the tombstones that are due; return whether there were any."""
        due = [
            key
            for key, at in self._reap_at.items()
            if at <= now and self._versions[key] <= self.complete
        ]
        for key in due:
            self._collect(key)
        return bool(due)

    def _deleted_unseen(self, delta: OwnerDelta) -> list[str]:
        end = min(delta.upto, delta.collected)
        if delta.after >= end:
            return []
        named = {entry.key for entry in delta.entries}
        return [
            key
            for key, version in self._versions.items()
            if delta.after < version <= end and key not in named
        ]

    def _restart(self, epoch: int) -> None:
        self.epoch = epoch
        self.complete = self.collected = 0
        for table in (self._values, self._versions, self._reap_at):
            table.clear()

    def _store(self, entry: OwnerEntry, reap_at: float) -> None:
        self._drop(entry.key)
        self._versions[entry.key] = entry.version
        if entry.value is None:
            self._reap_at[entry.key] = reap_at
        else:
            self._values[entry.key] = entry.value

    def _drop(self, key: str) -> None:
        self._versions.pop(key, None)
        self._values.pop(key, None)
        self._reap_at.pop(key, None)

    def _collect(self, key: str) -> None:
        self.collected = max(self.collected, self._versions[key])
        self._drop(key)

    def _bound_tombstones(self) -> None:
        """Drop the oldest tombstones of an owner that deletes more than an hour's worth."""
        while len(self._reap_at) > MAX_OWNER_KEYS:
            self._collect(next(iter(self._reap_at)))
