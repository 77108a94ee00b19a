"""Per-owner state: what each node says about itself, held as a hint by all others.

Each node owns a small map (its capabilities, the models it serves, its load) that it alone writes.
All others hold copies. It is the state of scuttlebutt (van Renesse et al. 2008, "Efficient
reconciliation and flow control for anti-entropy protocols"): since only the owner writes, (epoch,
version) orders all writes of a key, and there are no conflicts to resolve. `owner_copy` says how one
owner's copy is kept; this module says how copies spread. Three ways, each covering for the last:

- *Push.* An owner's changes, gathered for `flush_delay_s`, go to up to `fanout` random linked
  peers. Who finds anything new in them passes it on, once, to as many.
- *Pull.* A delta that does not continue from what is known tells of a missed one: its sender is
  asked for what lies between.
- *Sync.* Every `sync_interval_s` with a random linked peer, and whenever a link comes up, two nodes
  compare a hash of all marks, then the marks, then exchange what differs (`owner_messages`).
  Without it some nodes would miss some changes for ever.

An owner's state is never sent to the owner. If one hears that others know more of its state than
itself, it was restarted without a greater epoch or its identity runs twice: it writes all its keys
again with versions above those heard, at most once per sync interval, and says so by an event.

When membership gives an owner up, `forget` drops its copy. Peers who have yet to do so would bring
it back, so the owner's state is then taken only from itself, under a greater epoch, or after
`forgotten_s`; `welcome` lifts that when membership sees the owner alive again.

What a copy says is as true as the authenticated peers that relayed it: entries are not signed yet
(that comes with the trust issue), so a member that lies can misstate another's load or models.
Routing checks such hints against what it observes, and nothing durable depends on them.

Events (`Emit`):

| kind | subject | detail |
|---|---|---|
| `state.changed` | owner | the key that has another value now, or none |
| `state.overtaken` | this node | which newer state of this node was heard of |
| `state.refused` | the sender | why something it sent was not taken |
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from meshnode.effects import Effect, Emit, SendNote, StartTimer
from meshnode.errors import ProtocolError, TooLarge, UsageError
from meshnode.events import Event, LinkDown, LinkUp, NoteReceived, Start, TimerFired
from meshnode.limits import MAX_MEMBERS, MAX_OWNER_KEY_LENGTH, MAX_OWNER_KEYS, MAX_OWNER_VALUE_BYTES
from meshnode.state.owner_copy import OwnerCopy
from meshnode.state.owner_messages import (
    OWNER,
    Mark,
    OwnerDelta,
    OwnerDeltas,
    OwnerDigests,
    OwnerRoot,
    OwnerWants,
    delta_notes,
    digest_notes,
    want_notes,
)
from meshnode.types import NodeId

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Mapping

    from meshnode.state.config import OwnerConfig
    from meshnode.wire.codec import Message

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class OwnerFlushDue:
    """Time to push what this node has changed."""

    boot: int


@dataclass(frozen=True, slots=True)
class OwnerSyncDue:
    """Time to compare states with a random linked peer."""

    boot: int


@dataclass(frozen=True, slots=True)
class OwnerReapDue:
    """Time to drop old tombstones."""

    boot: int


class OwnerStates:
    """This node's own state and its copies of all others'."""

    def __init__(self, me: NodeId, epoch: int, config: OwnerConfig, rng: random.Random) -> None:
        """Own nothing yet, and know nobody.

        Args:
            me: This node.
            epoch: Its boot epoch, greater than at every earlier start (kept durably by the caller).
            config: How quickly state spreads.
            rng: Choice of peers and spacing of syncs.
        """
        self._me = me
        self._boot = epoch
        self._config = config
        self._rng = rng
        self._own = OwnerCopy(me, epoch)
        self._copies: dict[str, OwnerCopy] = {me: self._own}  # bounded by MAX_MEMBERS
        self._root = self._own.hash()
        self._links: dict[NodeId, None] = {}
        self._forgotten: dict[str, tuple[int, float]] = {}  # owner -> (epoch, until)
        self._flushed = 0
        self._flush_pending = False
        self._reclaim_from = float("-inf")

    def __repr__(self) -> str:
        return (
            f"<OwnerStates of {self._me} {self._own.version}: {len(self._own.values)} own keys, "
            f"{len(self._copies) - 1} other owners, {len(self._links)} links>"
        )

    # What this node says about itself.

    def set(self, key: str, value: bytes, now: float) -> list[Effect]:
        """Give one of this node's own keys a value; the same value again costs nothing.

        Raises:
            TooLarge: if the key, the value or the number of keys exceeds its limit.
            UsageError: if the key is empty.
        """
        if not key:
            raise UsageError("a key of the node's state cannot be empty")
        if len(key) > MAX_OWNER_KEY_LENGTH:
            raise TooLarge(f"a key has {len(key)} characters; at most {MAX_OWNER_KEY_LENGTH}")
        if len(value) > MAX_OWNER_VALUE_BYTES:
            raise TooLarge(
                f"the value of {key!r} has {len(value)} bytes; at most {MAX_OWNER_VALUE_BYTES}"
            )
        values = self._own.values
        if values.get(key) == value:
            return []
        if key not in values and len(values) >= MAX_OWNER_KEYS:
            raise TooLarge(f"this node has {MAX_OWNER_KEYS} keys already")
        return self._write(key, value, now)

    def delete(self, key: str, now: float) -> list[Effect]:
        """Take one of this node's own keys back; one that it does not have costs nothing."""
        return self._write(key, None, now) if key in self._own.values else []

    # What is known here.

    def get(self, owner: NodeId, key: str) -> bytes | None:
        """Return the value of an owner's key, or None if there is none."""
        copy = self._copies.get(owner)
        return copy.values.get(key) if copy else None

    def entries(self, owner: NodeId) -> Mapping[str, bytes]:
        """Return a read-only view of an owner's keys; empty if nothing is known."""
        copy = self._copies.get(owner)
        return copy.values if copy else _NOTHING

    def owners(self) -> list[NodeId]:
        """Return everybody whose state is known here, this node included, sorted."""
        return sorted(copy.owner for copy in self._copies.values())

    # What membership decides.

    def forget(self, owner: NodeId, now: float) -> list[Effect]:
        """Drop an owner that membership gave up; peers cannot bring this state of it back soon."""
        copy = self._copies.get(owner)
        if copy is None or owner == self._me:
            return []
        del self._copies[owner]
        self._root ^= copy.hash()
        while len(self._forgotten) >= MAX_MEMBERS:
            del self._forgotten[next(iter(self._forgotten))]
        self._forgotten[owner] = (copy.epoch, now + self._config.forgotten_s)
        return [Emit("state.changed", owner, key) for key in copy.values]

    def welcome(self, owner: NodeId) -> None:
        """Take a forgotten owner's state from anybody again: membership sees it alive."""
        self._forgotten.pop(owner, None)

    # The one door for everything that happens.

    def handle(self, event: Event, now: float) -> list[Effect]:
        """React to a start, links, notes of this core and its timers; ignore everything else.

        Args:
            event: What happened.
            now: Monotonic seconds.
        """
        match event:
            case NoteReceived(sender, payload):
                return self._on_note(sender, payload, now)
            case TimerFired(timer):
                return self._on_timer(timer, now)
            case LinkUp(peer, _):
                self._links[peer] = None
                # One side is enough to begin, and both sides know which.
                return [self._note(peer, self._root_note())] if self._me < peer else []
            case LinkDown(peer, _):
                self._links.pop(peer, None)
                return []
            case Start():
                config = self._config
                return [
                    StartTimer(
                        OwnerSyncDue(self._boot), config.sync_interval_s * self._rng.random()
                    ),
                    StartTimer(OwnerReapDue(self._boot), config.reap_interval_s),
                ]
            case _:
                return []

    def _on_timer(self, timer: object, now: float) -> list[Effect]:
        config = self._config
        if timer == OwnerFlushDue(self._boot):
            self._flush_pending = False
            return self._flush()
        if timer == OwnerSyncDue(self._boot):
            delay_s = config.sync_interval_s * self._rng.uniform(0.8, 1.2)  # nobody in step
            effects: list[Effect] = [StartTimer(timer, delay_s)]
            effects += [self._note(peer, self._root_note()) for peer in self._some_peers(1)]
            return effects
        if timer == OwnerReapDue(self._boot):
            for copy in self._copies.values():
                copy.reap(now)
            kept = {o: kept for o, kept in self._forgotten.items() if kept[1] > now}
            self._forgotten = kept
            return [StartTimer(timer, config.reap_interval_s)]
        return []

    def _on_note(self, sender: NodeId, payload: bytes, now: float) -> list[Effect]:
        try:
            message = OWNER.decode(payload)
        except ProtocolError as error:
            return [Emit("state.refused", sender, str(error))]
        match message:
            case OwnerDeltas():
                return self._on_deltas(sender, message.deltas, now)
            case OwnerRoot():
                return [] if message == self._root_note() else self._send_digests(sender)
            case OwnerDigests():
                return self._on_digests(sender, message, now)
            case OwnerWants():
                effects = self._reclaim(message.marks, now)
                return effects + self._send_deltas(sender, message.marks)
            case _:
                return []

    # Writing and pushing.

    def _write(self, key: str, value: bytes | None, now: float) -> list[Effect]:
        self._root ^= self._own.hash()
        self._own.write(key, value, now + self._config.tombstone_s)
        self._root ^= self._own.hash()
        return [*self._flush_soon(), Emit("state.changed", self._me, key)]

    def _flush_soon(self) -> list[Effect]:
        if self._flush_pending:
            return []
        self._flush_pending = True
        return [StartTimer(OwnerFlushDue(self._boot), self._config.flush_delay_s)]

    def _flush(self) -> list[Effect]:
        deltas = [*self._own.deltas_since(self._own.epoch, self._flushed)]
        self._flushed = self._own.complete
        return self._push(deltas, exclude=None)

    def _push(self, deltas: list[OwnerDelta], exclude: NodeId | None) -> list[Effect]:
        effects: list[Effect] = []
        if deltas:
            for peer in self._some_peers(self._config.fanout, exclude):
                theirs = (delta for delta in deltas if delta.owner != peer)
                effects += [self._note(peer, note) for note in delta_notes(theirs)]
        return effects

    # Merging what others say.

    def _on_deltas(
        self, sender: NodeId, deltas: tuple[OwnerDelta, ...], now: float
    ) -> list[Effect]:
        news: list[OwnerDelta] = []
        gaps: list[Mark] = []
        emits: list[Effect] = []
        for delta in deltas:
            copy = self._copy_for(sender, delta, now)
            if copy is None:
                if delta.owner not in self._copies and len(self._copies) >= MAX_MEMBERS:
                    detail = f"{MAX_MEMBERS} owners are known already"
                    emits.append(Emit("state.refused", sender, detail))
                continue
            self._root ^= copy.hash()
            merged = copy.merge(delta, now + self._config.tombstone_s)
            self._root ^= copy.hash()
            emits += [Emit("state.changed", copy.owner, key) for key in merged.changed]
            if merged.news:
                news.append(delta)
            if merged.gap:
                gaps.append(copy.mark)
            if merged.overfull:
                emits.append(Emit("state.refused", sender, f"{copy.owner} has too many keys"))
        wants: list[Effect] = [self._note(sender, note) for note in want_notes(gaps)]
        return [*emits, *self._push(news, exclude=sender), *wants]

    def _copy_for(self, sender: NodeId, delta: OwnerDelta, now: float) -> OwnerCopy | None:
        """Return the copy that a delta may be merged into, or None if it is to be ignored."""
        owner = NodeId(delta.owner)
        if owner == self._me:
            return None
        copy = self._copies.get(owner)
        if copy is not None:
            return copy if delta.epoch >= copy.epoch else None
        if self._is_unwelcome(owner, delta.epoch, sender, now):
            return None
        if len(self._copies) >= MAX_MEMBERS:
            return None
        self._forgotten.pop(owner, None)
        copy = self._copies[owner] = OwnerCopy(owner, 0)
        self._root ^= copy.hash()
        return copy

    def _is_unwelcome(self, owner: NodeId, epoch: int, sender: NodeId, now: float) -> bool:
        """Whether this is what a third party still remembers of an owner that was forgotten."""
        forgotten_epoch, until = self._forgotten.get(owner, (-1, 0.0))
        return now < until and epoch <= forgotten_epoch and sender != owner

    # Comparing.

    def _on_digests(self, sender: NodeId, digests: OwnerDigests, now: float) -> list[Effect]:
        theirs = {mark.owner: mark for mark in digests.marks}
        behind: list[Mark] = []  # where the sender is
        wants: list[Mark] = []
        for mark in theirs.values():
            copy = self._copies.get(mark.owner)
            if mark.owner == self._me:
                continue
            if copy is None:
                if not self._is_unwelcome(NodeId(mark.owner), mark.epoch, sender, now):
                    wants.append(Mark(mark.owner, 0, 0))
            elif copy.version < mark.version or (
                mark.owner == sender and copy.version > mark.version
            ):
                # The second: the sender has lost its own state, and learns it from our mark.
                wants.append(copy.mark)
            elif copy.version > mark.version:
                behind.append(mark)
        effects = self._reclaim(digests.marks, now)
        behind += [
            Mark(owner, 0, 0)
            for owner in self._copies
            if owner not in theirs and digests.covers(owner)
        ]
        if theirs.get(self._me, self._own.mark).version < self._own.version:
            behind.append(theirs[self._me])
        effects += self._send_deltas(sender, behind)
        effects += [self._note(sender, note) for note in want_notes(wants)]
        return effects

    def _send_digests(self, to: NodeId) -> list[Effect]:
        marks = (self._copies[owner].mark for owner in sorted(self._copies))
        return [self._note(to, note) for note in digest_notes(marks)]

    def _send_deltas(self, to: NodeId, marks: Iterable[Mark]) -> list[Effect]:
        deltas: list[OwnerDelta] = []
        for mark in marks:
            copy = self._copies.get(mark.owner)
            if copy is not None and mark.owner != to and copy.version > mark.version:
                deltas += copy.deltas_since(mark.epoch, mark.complete)
        return [self._note(to, note) for note in delta_notes(deltas)]

    def _reclaim(self, marks: Iterable[Mark], now: float) -> list[Effect]:
        """Overtake a newer state of this node's own that others know."""
        heard = max(
            (m for m in marks if m.owner == self._me), key=lambda m: m.version, default=None
        )
        if heard is None or heard.version <= self._own.version or now < self._reclaim_from:
            return []
        self._reclaim_from = now + self._config.sync_interval_s
        self._root ^= self._own.hash()
        self._own.overtake(heard.epoch, heard.complete)
        self._root ^= self._own.hash()
        self._flushed = 0
        detail = (
            f"others know a state of this node of epoch {heard.epoch}, version {heard.complete}: "
            "either it was restarted without a greater epoch, or its identity runs twice"
        )
        return [*self._flush_soon(), Emit("state.overtaken", self._me, detail)]

    # Leaves.

    def _root_note(self) -> OwnerRoot:
        return OwnerRoot(self._root.to_bytes(8, "big"))

    def _note(self, to: NodeId, message: Message) -> SendNote:
        return SendNote(to, OWNER.encode(message))

    def _some_peers(self, count: int, exclude: NodeId | None = None) -> list[NodeId]:
        peers = [peer for peer in self._links if peer != exclude]
        return peers if len(peers) <= count else self._rng.sample(peers, count)
