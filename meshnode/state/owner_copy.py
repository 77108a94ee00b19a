"""One owner's keys as one node knows them, and how copies are brought forward.

Every write of an owner takes the next version, so a copy is described by two numbers: the owner's
boot epoch, and `complete`, the version up to which nothing is missing. A copy steps from one state
that the owner signed to a later one, and nowhere between: whoever relays a state can delay it, but
neither add to it, nor change it, nor leave something out, nor bring an older one back.

A deleted key leaves its version as a tombstone, which tells others of the deletion. Once a tombstone
is dropped, `collected` remembers its version: a peer whose own `complete` is below that may hold
keys whose deletion nobody can tell it any more, and is sent the whole state instead of what changed
(as quickwit's chitchat does). That makes the tombstones' lifetime a matter of traffic, not of
correctness. The signature covers live keys only, since each node drops tombstones when it likes.
"""

from __future__ import annotations

import hashlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from meshnode.limits import MAX_OWNER_KEYS, MAX_OWNER_STATE_BYTES
from meshnode.state.owner_messages import (
    Mark,
    OwnerDelta,
    OwnerEntry,
    entry_hash,
    entry_pieces,
    state_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from meshnode.types import NodeId


class OwnerCopy:
    """The state of one owner at one node; on the owner itself, the original.

    Attributes:
        owner: Whose state.
        epoch: The owner's boot epoch.
        complete: The version that this is.
        collected: Tombstones up to this version may be gone.
        signature: The owner's, over this version; empty on the owner until it is asked for.
    """

    __slots__ = (
        "_digest", "_hashes", "_reap_at", "_values", "_versions",
        "collected", "complete", "epoch", "owner", "signature", "size_bytes",
    )  # fmt: skip

    def __init__(self, owner: NodeId, epoch: int) -> None:
        """Know nothing of this owner's epoch yet."""
        self.owner = owner
        self.epoch = epoch
        self.complete = 0
        self.collected = 0
        self.signature = b""
        self.size_bytes = 0
        self._values: dict[str, bytes] = {}
        self._hashes: dict[str, bytes] = {}  # of live keys
        self._versions: dict[str, int] = {}  # of live keys and of tombstones
        self._reap_at: dict[str, float] = {}  # of tombstones, in the order of deletion
        self._digest: bytes | None = None  # until a live key changes

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
        """A read-only view of the live keys."""
        return MappingProxyType(self._values)

    @property
    def is_overfull(self) -> bool:
        """Whether the owner has more than it may; no owner signs that unless it is at fault."""
        return (
            len(self._values) > MAX_OWNER_KEYS
            or len(self._versions) > 2 * MAX_OWNER_KEYS
            or self.size_bytes > MAX_OWNER_STATE_BYTES
        )

    def hash(self) -> int:
        """A 64-bit hash of the mark; the exclusive or of all is a node's root."""
        text = f"{self.owner} {self.epoch} {self.complete}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")

    def digest(self) -> bytes:
        """Return a hash of all live keys with their versions and values."""
        if self._digest is None:
            hashes = self._hashes
            joined = b"".join([hashes[key] for key in sorted(hashes)])
            self._digest = hashlib.sha256(joined).digest()
        return self._digest

    def signed_bytes(self) -> bytes:
        """Return what the owner's signature covers."""
        return state_bytes(self.owner, self.epoch, self.complete, self.digest())

    # Writing, on the owner.

    def write(self, key: str, value: bytes | None, reap_at: float) -> None:
        """Give the key its next version; None deletes it until `reap_at`."""
        self.complete += 1
        self._store(OwnerEntry(key, self.complete, value), reap_at)
        self._bound_tombstones()
        self.signature = b""

    def seal(self, sign: Callable[[bytes], bytes]) -> None:
        """Sign this version, unless it is signed."""
        if not self.signature:
            self.signature = sign(self.signed_bytes())

    def overtake(self, epoch: int, version: int) -> None:
        """Write every key again with versions above another's of this owner's state.

        One version is left out, so that even a peer that knows everything up to the other's last
        version is behind `collected`, and drops the keys that only the other had.
        """
        for key in [*self._reap_at]:
            self._drop(key)
        self.epoch = epoch
        self.complete = self.collected = version + 1
        for key, value in self._values.items():
            self.complete += 1
            self._versions[key] = self.complete
            self._hashes[key] = entry_hash(key, self.complete, value)
        self._digest = None
        self.signature = b""

    # Reading and merging, anywhere.

    def deltas_since(self, epoch: int, complete: int) -> Iterator[OwnerDelta]:
        """Yield what a copy with this mark lacks, each delta small enough for one note.

        This one must be signed. The last delta bears the signature, so they belong together.
        """
        after = complete if epoch == self.epoch and complete >= self.collected else 0
        newer = sorted((version, key) for key, version in self._versions.items() if version > after)
        entries = [OwnerEntry(key, version, self._values.get(key)) for version, key in newer]
        *others, last = [*entry_pieces(entries)] or [()]
        for piece in others:
            upto = piece[-1].version
            yield OwnerDelta(self.owner, self.epoch, after, upto, self.collected, piece)
            after = upto
        yield OwnerDelta(
            self.owner,
            self.epoch,
            after,
            self.complete,
            self.collected,
            last,
            self.digest(),
            self.signature,
        )

    def advanced(self, chain: Sequence[OwnerDelta], reap_at: float) -> OwnerCopy | None:
        """Return the copy that deltas up to a signed one lead to; this one stays as it is.

        The caller has yet to verify the signature over `signed_bytes`.

        Returns:
            The copy; or None if the deltas leave a gap after this one, or do not lead to what they
            say that they lead to.
        """
        first, last = chain[0], chain[-1]
        made = OwnerCopy(self.owner, last.epoch)
        if first.after:
            if last.epoch != self.epoch or first.after > self.complete:
                return None
            made._take_over(self)
        for delta in chain:
            for entry in delta.entries:
                if made._versions.get(entry.key, 0) < entry.version <= last.upto:
                    made._store(entry, reap_at)
        made.complete = last.upto
        made.collected = min(max(made.collected, last.collected), last.upto)
        made.signature = last.signature
        made._bound_tombstones()
        return made if made.digest() == last.digest else None

    def changed_from(self, before: OwnerCopy) -> list[str]:
        """Return the keys that have another value here than in an earlier copy, or none."""
        keys = before._values.keys() | self._values.keys()
        return sorted(key for key in keys if before._values.get(key) != self._values.get(key))

    def reap(self, now: float) -> bool:
        """Drop the tombstones that are due; return whether there were any."""
        due = [key for key, at in self._reap_at.items() if at <= now]
        for key in due:
            self._collect(key)
        return bool(due)

    def _take_over(self, other: OwnerCopy) -> None:
        self.collected = other.collected
        self.size_bytes = other.size_bytes
        self._values.update(other._values)
        self._hashes.update(other._hashes)
        self._versions.update(other._versions)
        self._reap_at.update(other._reap_at)

    def _store(self, entry: OwnerEntry, reap_at: float) -> None:
        self._drop(entry.key)
        self._versions[entry.key] = entry.version
        if entry.value is None:
            self._reap_at[entry.key] = reap_at
        else:
            self._values[entry.key] = entry.value
            self._hashes[entry.key] = entry_hash(entry.key, entry.version, entry.value)
            self.size_bytes += entry.size_bytes
            self._digest = None

    def _drop(self, key: str) -> None:
        self._versions.pop(key, None)
        value = self._values.pop(key, None)
        if value is not None:
            self.size_bytes -= key_size_bytes(key, value)
            self._digest = None
        self._hashes.pop(key, None)
        self._reap_at.pop(key, None)

    def _collect(self, key: str) -> None:
        self.collected = max(self.collected, self._versions[key])
        self._drop(key)

    def _bound_tombstones(self) -> None:
        """Drop the oldest tombstones of an owner that deletes more than an hour's worth."""
        while len(self._reap_at) > MAX_OWNER_KEYS:
            self._collect(next(iter(self._reap_at)))


class Gathering:
    """Deltas of states too large for one note, until the signed one of them is there.

    A peer sends the pieces of one state in a row, so each peer has one row; the memory for all of
    them is bounded.
    """

    def __init__(self, limit_bytes: int) -> None:
        """Gather no more than so much, from all peers together."""
        self._limit_bytes = limit_bytes
        self._rows: dict[NodeId, list[OwnerDelta]] = {}
        self._sizes: dict[NodeId, int] = {}

    def __repr__(self) -> str:
        return f"<Gathering {sum(self._sizes.values())} bytes from {len(self._rows)} peers>"

    def take(self, sender: NodeId, delta: OwnerDelta) -> tuple[OwnerDelta, ...] | None:
        """Return the row that this delta completes, or None if more is to come."""
        row, size_bytes = self._rows.pop(sender, []), self._sizes.pop(sender, 0)
        if row and not _continues(row[-1], delta):
            row, size_bytes = [], 0
        row.append(delta)
        if delta.signature:
            return tuple(row)
        size_bytes += delta.size_bytes
        if size_bytes <= MAX_OWNER_STATE_BYTES + MAX_OWNER_KEYS * 512:  # tombstones have keys too
            self._rows[sender], self._sizes[sender] = row, size_bytes
        while sum(self._sizes.values()) > self._limit_bytes:
            self.drop(next(iter(self._rows)))
        return None

    def drop(self, sender: NodeId) -> None:
        """Forget what a peer has begun to send."""
        self._rows.pop(sender, None)
        self._sizes.pop(sender, None)


def _continues(before: OwnerDelta, delta: OwnerDelta) -> bool:
    return (before.owner, before.epoch, before.upto) == (delta.owner, delta.epoch, delta.after)


def key_size_bytes(key: str, value: bytes) -> int:
    """Return what one key and its value count against `MAX_OWNER_STATE_BYTES`."""
    return OwnerEntry(key, 0, value).size_bytes
