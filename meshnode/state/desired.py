"""The desired state: the small map of what the mesh is to do, the same on every node.

Keys such as `deployment/digits` are written at any node whose role allows it, without a leader. The
last writer wins: entries are ordered by hybrid logical clock, then author, the same everywhere, so
nodes that hold the same entries agree. Each entry is signed by its author and checked by each node
that takes it in; every node has all of it, durably: `Persist` precedes any note or event that tells
of an entry.

A write has two steps, since a disk may be full: `draft` says what has to be written to disk and
changes nothing, and `commit`, once it is written, takes the entries in and tells the mesh. A draft
that could not be written is dropped, and there is no trace of it. Entries of others are durable at
their authors, so they are taken in at once; the driver keeps them to itself until they are written.

How it spreads:

- *Push.* A write goes to up to `fanout` random linked peers; who finds it new passes it on, once.
- *Sync.* Every `sync_interval_s` with a random linked peer, and whenever a link comes up: a root
  hash, then a hash per key, then the revisions that differ (`desired_messages`). `revisions` says
  why this ends in the same map on both sides.

Refused, and told once per key and author: an entry that `verify` objects to (an unknown author may
become known: every sync offers the entry again), one from too far in the future, one beyond a limit.

*Statements* about who belongs to the mesh are kept in another way: all of them, for ever (`statements`
says why), and each is told to `on_statement` before anything else is judged. What takes rights away is
pushed over all links. When more is known, `revalidate` drops what does not count any more: entries
of an author that had been evicted by their stamp. Older revisions take their place again, and those that
were forgotten come back from the nodes that never took the others.

*Deletions* are remembered for `tombstone_s`, then dropped by every node at about the same time,
since their age is that of their stamp. A node that had no contact for longer may hold keys whose
deletion nobody remembers. It is *not current*, and says so with its root:

| this node | peer | on a difference |
|---|---|---|
| current | any | this node sends digests, the peer compares |
| not current | current | this node returns its root; the peer sends digests; this node drops the keys that the peer lacks and that are older than its own last contact |
| not current | not current | digests and a plain merge: nobody knows better; if no current node is met for `settle_s` either, they become current |

A node drops tombstones only while it is current, so the last nodes of a mesh remember for the rest.

Events (`Emit`):

| kind | subject | detail |
|---|---|---|
| `desired.changed` | the key | who wrote it; empty when entries were dropped |
| `desired.outdated` | the key | who wrote an entry that came late: a later one counts already |
| `desired.refused` | the key | whose entry was not taken, and why; for a garbled note the sender |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.effects import Effect, Emit, Persist, SendNote, StartTimer
from meshnode.errors import ProtocolError, TooLarge, UsageError
from meshnode.events import Event, LinkDown, LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import MAX_REFUSALS_REMEMBERED
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
from meshnode.state.release import is_pressing
from meshnode.state.revisions import Revisions, thinned
from meshnode.state.room import Room
from meshnode.state.statements import (
    ADMISSION,
    Statements,
    admission_key,
    is_statement,
    is_urgent,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from meshnode.state.config import DesiredConfig
    from meshnode.types import NodeId
    from meshnode.wire.codec import Message

Held = Revisions | Statements
"""What is kept under one key."""

PERSIST_KEY = "desired"
"""The key of the `Persist` effects."""

DEPLOYMENTS: Final = "deployment/"
"""Keys of which more former revisions are kept begin with this (`meshnode.state.deployment`)."""

_CONTACT_STEP_MS = 3_600_000  # how far the durable time of last contact may lag: an hour of a week


@dataclass(frozen=True, slots=True)
class DesiredSyncDue:
    """Time to compare maps with a random linked peer."""

    token: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A write that nobody knows of yet.

    Attributes:
        entries: What `DesiredState.commit` will take in; empty if there is nothing to change.
        persist: What must be durable before that; None if there is nothing to change.
    """

    entries: tuple[Entry, ...] = ()
    persist: Persist | None = None


class DesiredState:
    """This node's copy of the map, and its way of keeping up with the others'."""

    def __init__(
        self,
        me: NodeId,
        sign: Callable[[bytes], bytes],
        verify: Callable[[Entry], str | None],
        config: DesiredConfig,
        rng: random.Random,
        stored: bytes | None = None,
        on_statement: Callable[[Entry], None] = lambda _: None,
        on_displaced: Callable[[Entry], None] = lambda _: None,
    ) -> None:
        """Take up where the stored bytes end, or begin empty.

        Args:
            me: This node, the author of its writes.
            sign: Returns this node's signature over bytes.
            verify: Returns None if an entry's signature is its author's and the author may write
                it, else a sentence that says why not.
            config: How quickly entries spread and how long they are kept.
            rng: Choice of peers and spacing of syncs.
            stored: The value of the last `Persist` effect, or None.
            on_statement: Told of each statement that is taken in, the stored ones first.
            on_displaced: Told of each statement that another one has pushed out.

        Raises:
            ConfigError: if the stored bytes are damaged.
        """
        self._me = me
        self._sign = sign
        self._verify = verify
        self._config = config
        self._rng = rng
        self._clock = HybridClock()
        self._on_statement = on_statement
        self._on_displaced = on_displaced
        self._keys: dict[str, Held] = {}
        self._root = 0
        self._former_bytes = 0  # of the revisions that do not count any more
        self._room = Room(config.max_total_bytes)
        self._links: dict[NodeId, None] = {}
        self._refused: dict[tuple[str, str], None] = {}
        self._starts = 0
        self._contact_ms: int | None = None
        self._merged_ms: int | None = None  # since when it has only met nodes that are not current
        if stored is not None:
            kept = unpack(stored)
            self._contact_ms = kept.contact_ms
            for entry in kept.entries:
                self._admit(entry)
            self._thin()
        self._durable_contact_ms = self._contact_ms

    def __repr__(self) -> str:
        return f"<DesiredState of {self._me}: {len(self._keys)} keys, root {self._root:016x}>"

    # What the map says.

    def get(self, key: str) -> bytes | None:
        """Return a key's value, or None if it has none or was deleted."""
        revisions = self._keys.get(key)
        return revisions.newest.value or None if revisions else None

    @property
    def size_bytes(self) -> int:
        """Bytes of all entries, those kept for rollback included."""
        return self._room.size_bytes + self._former_bytes

    @property
    def key_count(self) -> int:
        """How many keys there are, deleted ones that are still remembered included."""
        return len(self._keys)

    def items(self) -> list[tuple[str, bytes]]:
        """Return all keys that have a value, with it, sorted by key."""
        return [
            (key, self._keys[key].newest.value)
            for key in sorted(self._keys)
            if not self._keys[key].newest.deleted
        ]

    def entry(self, key: str) -> Entry | None:
        """Return the newest entry of a key, which may be a tombstone; None if there is none."""
        revisions = self._keys.get(key)
        return revisions.newest if revisions else None

    def history(self, key: str) -> tuple[Entry, ...]:
        """Return the entries before the newest, newest first; a deletion ends the history."""
        revisions = self._keys.get(key)
        return revisions.entries[1:] if revisions else ()

    def states(self, key: str, value: bytes, author: NodeId | None = None) -> bool:
        """Whether somebody, or this author, has stated exactly this under a key."""
        return any(
            entry.value == value and author in (None, entry.author)
            for entry in self.statements(key)
        )

    def written_by(self, author: NodeId) -> list[Entry]:
        """Return an author's entries, no statements: those that count now first, the newest first."""
        found = [
            (entry is held.newest, entry)
            for key, held in self._keys.items()
            if not is_statement(key)
            for entry in held.entries
            if entry.author == author
        ]
        found.sort(key=lambda each: (each[0], each[1].order), reverse=True)
        return [entry for _, entry in found]

    def statements(self, key: str) -> tuple[Entry, ...]:
        """Return what was stated under a key, the last first."""
        held = self._keys.get(key)
        return held.entries if held is not None else ()

    # Writing.

    def draft(
        self, changes: Mapping[str, bytes] | Iterable[tuple[str, bytes]], wall_s: float
    ) -> Draft:
        """Prepare new values for keys, without an effect on anything; `commit` makes them count.

        A draft is good for as long as nothing else happens to this core.

        Args:
            changes: Values by key, or pairs of them where a key takes several statements; an empty
                value deletes. Deleting a key without a value, too, costs nothing.
            wall_s: Seconds since the Unix epoch, by this node's clock.

        Raises:
            UsageError: if a key is empty, or this node's clock is too far behind what it has seen,
                so that no node with a right clock would take the entries.
            TooLarge: if a key, a value, the number of keys or all of it exceeds its limit.
        """
        room = self._room.copy()
        entries: list[Entry] = []
        met: set[str] = set()
        for key, value in changes.items() if isinstance(changes, Mapping) else changes:
            if key.startswith(ADMISSION):
                own = self._me if key == admission_key(self._me) else None
                if self.states(key, value, own):
                    continue
            if value:
                room.require(key, value, is_new=key not in self._keys and key not in met)
                met.add(key)
            if value or self.get(key) is not None:
                entries.append(self._entry(key, value, wall_s))
        if not entries:
            return Draft()
        keys = dict(self._keys)
        for entry in entries:
            held = keys.get(entry.key)
            if isinstance(held, Statements) and not held.wants(entry):
                raise TooLarge(
                    f"this node has stated all that it may under {entry.key!r}; the node of another "
                    "admin can go on"
                )
            keys[entry.key] = self._joined(held, entry)
        return Draft(tuple(entries), self._packed(keys))

    def commit(self, draft: Draft) -> list[Effect]:
        """Take in a draft whose `persist` was carried out, and tell the mesh."""
        if draft.persist is not None:
            self._durable_contact_ms = self._contact_ms
        for entry in draft.entries:
            self._admit(entry)
        self._thin()
        told = [Emit("desired.changed", entry.key, self._me) for entry in draft.entries]
        return [*self._push(list(draft.entries), None), *told]

    def _entry(self, key: str, value: bytes, wall_s: float) -> Entry:
        behind_s = self._clock.last.wall_ms / 1000 - wall_s
        if behind_s > self._config.max_ahead_s:
            raise UsageError(
                f"this node's clock is {behind_s:.0f} s behind what it has seen before; set it right"
            )
        unsigned = Entry(key, self._clock.tick(_ms(wall_s)), self._me, value)
        return msgspec.structs.replace(unsigned, signature=self._sign(unsigned.signed_bytes))

    # The one door for everything that happens.

    def handle(self, event: Event, now: float, wall_s: float) -> list[Effect]:  # noqa: ARG002 (see above)
        """React to a start, links, notes of this core and its timer; ignore everything else.

        Args:
            event: What happened.
            now: Monotonic seconds.
            wall_s: Seconds since the Unix epoch, by this node's clock.
        """
        match event:
            case NoteReceived(sender, payload):
                return self._on_note(sender, payload, _ms(wall_s))
            case TimerFired(timer):
                return self._sync(_ms(wall_s)) if timer == DesiredSyncDue(self._starts) else []
            case LinkUp(peer, _):
                self._links[peer] = None
                # One side is enough to begin, and both sides know which.
                return [self._root_to(peer, _ms(wall_s))] if self._me < peer else []
            case LinkDown(peer, _):
                self._links.pop(peer, None)
                return []
            case Start():
                self._starts += 1
                delay_s = self._config.sync_interval_s * self._rng.random()
                return [StartTimer(DesiredSyncDue(self._starts), delay_s)]
            case _:
                return []

    def _sync(self, wall_ms: int) -> list[Effect]:
        delay_s = self._config.sync_interval_s * self._rng.uniform(0.8, 1.2)  # nobody in step
        effects = self._reap(wall_ms)
        effects.append(StartTimer(DesiredSyncDue(self._starts), delay_s))
        effects += [self._root_to(peer, wall_ms) for peer in self._some_peers(1)]
        return effects

    def _on_note(self, sender: NodeId, payload: bytes, wall_ms: int) -> list[Effect]:
        try:
            message = DESIRED.decode(payload)
        except ProtocolError as error:
            return [Emit("desired.refused", sender, str(error))]
        match message:
            case DesiredEntries():
                return self._on_entries(sender, message.entries, wall_ms)
            case DesiredRoot():
                return self._on_root(sender, message, wall_ms)
            case DesiredDigests():
                return self._on_digests(sender, message, wall_ms)
            case DesiredWants():
                return self.tell(sender, message.keys)
            case _:
                return []

    # Taking in.

    def _on_entries(self, sender: NodeId, entries: tuple[Entry, ...], wall_ms: int) -> list[Effect]:
        news: list[Entry] = []
        emits: list[Effect] = []
        for entry in entries:
            if not self._new(entry, wall_ms):
                continue
            objection = self._objection(entry, wall_ms)
            if objection is not None:
                emits += self._refuse(entry, objection)
                continue
            self._refused.pop((entry.key, entry.author), None)
            self._admit(entry)
            news.append(entry)
            counts = is_statement(entry.key) or self._keys[entry.key].newest is entry
            what = "desired.changed" if counts else "desired.outdated"
            emits.append(Emit(what, entry.key, entry.author))
        if self._thin():  # what came may have been too old to stay: nobody else wants it either
            news = [entry for entry in news if entry in self._keys[entry.key].entries]
        if not news:
            return emits
        return [self._persist(), *self._push(news, exclude=sender), *emits]

    def _new(self, entry: Entry, wall_ms: int) -> bool:
        revisions = self._keys.get(entry.key)
        if revisions is None:
            return not (entry.deleted and self._is_old(entry.stamp, wall_ms))
        return revisions.wants(entry)

    def _objection(self, entry: Entry, wall_ms: int) -> str | None:
        ahead_s = (entry.stamp.wall_ms - wall_ms) / 1000
        if ahead_s > self._config.max_ahead_s:
            return f"its clock is {ahead_s:.0f} s ahead of this node's; one of them is wrong"
        full = self._room.why_none(entry, is_new=entry.key not in self._keys)
        if full is not None:
            return full
        if is_statement(entry.key) and entry.deleted:
            return "what it states cannot be deleted"
        return self._verify(entry)

    def _refuse(self, entry: Entry, objection: str) -> list[Effect]:
        told = (entry.key, entry.author)
        if told in self._refused:
            return []
        while len(self._refused) >= MAX_REFUSALS_REMEMBERED:
            del self._refused[next(iter(self._refused))]
        self._refused[told] = None
        return [Emit("desired.refused", entry.key, f"an entry of {entry.author}: {objection}")]

    def _admit(self, entry: Entry) -> None:
        self._clock.see(entry.stamp)
        before = self.statements(entry.key)
        self._put(entry.key, self._joined(self._keys.get(entry.key), entry))
        if is_statement(entry.key):
            self._on_statement(entry)
            held = self._keys[entry.key].entries
            for displaced in (each for each in before if each not in held):
                self._on_displaced(displaced)

    def _joined(self, before: Held | None, entry: Entry) -> Held:
        if before is not None:
            return before.plus(entry)
        if is_statement(entry.key):
            return Statements((entry,))
        is_deployment = entry.key.startswith(DEPLOYMENTS)
        config = self._config
        return Revisions(entry, config.deployment_history if is_deployment else config.history)

    def _put(self, key: str, held: Held | None) -> None:
        """Let this be what is kept under a key; None is nothing."""
        before = self._keys.pop(key, None)
        if held is not None:
            self._keys[key] = held
            self._count(key, held, 1)
            self._root ^= held.hash
        if before is not None:
            self._count(key, before, -1)
            self._root ^= before.hash

    def _count(self, key: str, held: Held, sign: int) -> None:
        former_bytes = held.former_bytes if isinstance(held, Revisions) else 0
        self._former_bytes += sign * former_bytes
        self._room.count(key, sign, sign * (held.size_bytes - former_bytes))

    def _thin(self) -> bool:
        """Let the oldest former revisions go that there is no room for; return whether any went."""
        if self._former_bytes <= self._config.max_former_bytes:
            return False
        surplus_bytes = self._former_bytes - self._config.max_former_bytes
        kept = {key: held for key, held in self._keys.items() if isinstance(held, Revisions)}
        for key, left in thinned(kept, surplus_bytes).items():
            self._put(key, left)
        return True

    def revalidate(self, counts: Callable[[Entry], bool]) -> list[Effect]:
        """Drop the entries that do not count any more; statements all stay.

        Args:
            counts: Whether an entry that was taken in still does.
        """
        changed = []
        for key, held in tuple(self._keys.items()):
            if isinstance(held, Statements):
                continue
            left = held.where(counts)
            if left is not held:
                self._put(key, left)
                changed.append(key)
        if not changed:
            return []
        return [self._persist(), *(Emit("desired.changed", key) for key in sorted(changed))]

    # Comparing.

    def _on_root(self, sender: NodeId, theirs: DesiredRoot, wall_ms: int) -> list[Effect]:
        if theirs.root == self._root_bytes():
            return self._in_contact(wall_ms, theirs.current)
        current = self._is_current(wall_ms)
        if theirs.current and not current:
            return [self._root_to(sender, wall_ms)]
        digests = [KeyDigest(key, _bytes(self._keys[key].hash)) for key in sorted(self._keys)]
        return [self._note(sender, note) for note in digest_notes(digests, current=current)]

    def _on_digests(self, sender: NodeId, digests: DesiredDigests, wall_ms: int) -> list[Effect]:
        theirs = {digest.key: digest.revisions for digest in digests.keys}
        takeover = digests.current and not self._is_current(wall_ms)
        dropped = self._drop_unknown(theirs, digests) if takeover else []
        ours = {key: _bytes(self._keys[key].hash) for key in self._keys if digests.covers(key)}
        wants = [key for key, revisions in theirs.items() if ours.get(key) != revisions]
        offers = [key for key, revisions in ours.items() if theirs.get(key) != revisions]
        effects: list[Effect] = [self._persist()] if dropped else []
        effects += self._in_contact(wall_ms, digests.current) if not digests.last else []
        entries = (entry for key in offers for entry in self._keys[key].entries)
        effects += self._send_entries(sender, entries)
        effects += [self._note(sender, note) for note in want_notes(wants)]
        effects += [Emit("desired.changed", key) for key in dropped]
        return effects

    def _drop_unknown(self, theirs: dict[str, bytes], digests: DesiredDigests) -> list[str]:
        """Drop the keys that the mesh once had, as of this node's last contact, and has no more."""
        contact_ms = self._contact_ms or 0
        gone = [
            key
            for key in sorted(self._keys)
            if digests.covers(key)
            and key not in theirs
            and not is_statement(key)
            and self._keys[key].newest.stamp.wall_ms <= contact_ms
        ]
        for key in gone:
            self._put(key, None)
        return gone

    def _in_contact(self, wall_ms: int, with_current: bool) -> list[Effect]:
        """Note that this node has all that a peer has, who may have been away as long as it."""
        was_away = self._contact_ms is not None and not self._is_current(wall_ms)
        if was_away and not with_current:
            self._merged_ms = self._merged_ms or wall_ms
            if wall_ms - self._merged_ms < self._config.settle_s * 1000:
                return []
        self._merged_ms = None
        self._contact_ms = wall_ms
        durable_ms = self._durable_contact_ms
        lags = durable_ms is None or abs(wall_ms - durable_ms) >= _CONTACT_STEP_MS
        return [self._persist()] if lags else []

    def _is_current(self, wall_ms: int) -> bool:
        contact_ms = self._contact_ms
        return contact_ms is not None and wall_ms - contact_ms < self._config.tombstone_s * 1000

    def _is_old(self, stamp: Stamp, wall_ms: int) -> bool:
        return wall_ms - stamp.wall_ms > self._config.tombstone_s * 1000

    def _reap(self, wall_ms: int) -> list[Effect]:
        if not self._is_current(wall_ms):
            return []
        due = [
            key
            for key, revisions in self._keys.items()
            if revisions.newest.deleted and self._is_old(revisions.newest.stamp, wall_ms)
        ]
        for key in due:
            self._put(key, None)
        return [self._persist()] if due else []

    # Leaves.

    def _persist(self) -> Persist:
        self._durable_contact_ms = self._contact_ms
        return self._packed(self._keys)

    def _packed(self, keys: Mapping[str, Held]) -> Persist:
        entries = (entry for key in sorted(keys) for entry in keys[key].entries)
        return Persist(PERSIST_KEY, pack(entries, self._contact_ms))

    def _push(self, entries: list[Entry], exclude: NodeId | None) -> list[Effect]:
        """Tell some peers of news; all of them of what takes rights away, and of this node's own pressing words."""
        effects: list[Effect] = []
        is_own = exclude is None
        urgent = [
            entry
            for entry in entries
            if is_urgent(entry.key) or (is_own and is_pressing(entry.key))
        ]
        some = self._some_peers(self._config.fanout, exclude)
        for peer in self._links if urgent else some:
            if peer != exclude:
                effects += self._send_entries(peer, entries if peer in some else urgent)
        return effects

    def tell(self, peer: NodeId, keys: Iterable[str]) -> list[Effect]:
        """Send a peer what is kept under some keys."""
        held = (self._keys[key] for key in keys if key in self._keys)
        return self._send_entries(peer, (entry for kept in held for entry in kept.entries))

    def _send_entries(self, to: NodeId, entries: Iterable[Entry]) -> list[Effect]:
        return [self._note(to, note) for note in entry_notes(entries)]

    def _root_to(self, peer: NodeId, wall_ms: int) -> SendNote:
        return self._note(peer, DesiredRoot(self._root_bytes(), self._is_current(wall_ms)))

    def _root_bytes(self) -> bytes:
        return _bytes(self._root)

    def _note(self, to: NodeId, message: Message) -> SendNote:
        return SendNote(to, DESIRED.encode(message))

    def _some_peers(self, count: int, exclude: NodeId | None = None) -> list[NodeId]:
        peers = [peer for peer in self._links if peer != exclude]
        return peers if len(peers) <= count else self._rng.sample(peers, count)


def _ms(wall_s: float) -> int:
    return int(wall_s * 1000)


def _bytes(number: int) -> bytes:
    return number.to_bytes(8, "big")
