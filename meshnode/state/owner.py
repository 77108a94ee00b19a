"""Per-owner state: what each node says about itself, held by all others.

Each node owns a small map (its capabilities, the models it serves) that it alone writes and signs.
All others hold copies. It is the state of scuttlebutt (van Renesse et al. 2008, "Efficient
reconciliation and flow control for anti-entropy protocols"): since only the owner writes, (epoch,
version) orders all writes of a key, and there are no conflicts to resolve. `owner_copy` says how one
owner's copy is kept; this module says how copies spread. Three ways, each covering for the last:

- *Push.* An owner's changes, gathered for `flush_delay_s`, go to up to `fanout` random linked
  peers. Who finds anything new in them passes it on, once, to as many.
- *Pull.* A delta that does not continue from what is known tells of a missed one: its sender is
  asked for what lies between, or for the whole state.
- *Sync.* Every `sync_interval_s` with a random linked peer, and whenever a link comes up, two nodes
  compare a hash of all marks, then the marks, then exchange what differs (`owner_messages`).
  Without it some nodes would miss some changes for ever.

*Who vouches for what.* A copy is a state that its owner signed, as a whole, whoever relayed it: see
`owner_copy`. The owner must be a live member, and the state of its record's boot epoch or a later one
(`OwnerTrust.epoch_of`). What cannot be checked yet is not kept, but asked for again once membership
knows its owner (`welcome`). So when membership gives an owner up and `forget` drops its copy, peers
who have yet to do so cannot bring it back, and nobody can bring back a state of an earlier life.
Marks are unsigned; nothing but a question follows from them.

*Hints* (this node's load) change too often for all that: see `owner_hints`.

An owner's state is never sent to the owner, but for one case. If one hears that others know more of
its state than itself, it asks for the proof. If its own signature bears that out, it was restarted
without a greater epoch or its identity runs twice: it writes all its keys again with versions above
those proven, at most once per sync interval, and says so by an event.

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
from meshnode.limits import (
    MAX_GATHERED_OWNER_BYTES,
    MAX_MEMBERS,
    MAX_OWNER_KEY_LENGTH,
    MAX_OWNER_KEYS,
    MAX_OWNER_STATE_BYTES,
    MAX_OWNER_VALUE_BYTES,
)
from meshnode.state.owner_copy import Gathering, OwnerCopy, key_size_bytes
from meshnode.state.owner_hints import Hints, OwnerHintsDue
from meshnode.state.owner_messages import (
    OWNER,
    Hint,
    Mark,
    OwnerDelta,
    OwnerDeltas,
    OwnerDigests,
    OwnerHints,
    OwnerRoot,
    OwnerWants,
    delta_notes,
    digest_notes,
    hint_notes,
    state_bytes,
    want_notes,
)
from meshnode.types import NodeId

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshnode.state.config import OwnerConfig
    from meshnode.wire.codec import Message

_NOTHING: Mapping[str, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class OwnerTrust:
    """Who signs a state, and whose states count.

    Attributes:
        sign: Ed25519 with this node's key.
        verify: Whether a live member signed these bytes: (owner, bytes, signature).
        epoch_of: The boot epoch of a live member's record, or None for anybody else.
    """

    sign: Callable[[bytes], bytes]
    verify: Callable[[NodeId, bytes, bytes], bool]
    epoch_of: Callable[[NodeId], int | None]


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

    def __init__(
        self,
        me: NodeId,
        epoch: int,
        config: OwnerConfig,
        rng: random.Random,
        trust: OwnerTrust,
        hints: frozenset[str] = frozenset(),
    ) -> None:
        """Own nothing yet, and know nobody.

        Args:
            me: This node.
            epoch: Its boot epoch, greater than at every earlier start (kept durably by the caller).
            config: How quickly state spreads.
            rng: Choice of peers and spacing of syncs.
            trust: Signing, and checking what others say.
            hints: Keys whose values are of the moment, and so travel unsigned.
        """
        self._me = me
        self._boot = epoch
        self._config = config
        self._rng = rng
        self._trust = trust
        self._own = OwnerCopy(me, epoch)
        self._copies: dict[str, OwnerCopy] = {me: self._own}  # bounded by MAX_MEMBERS
        self._root = self._own.hash()
        self._gathering = Gathering(MAX_GATHERED_OWNER_BYTES)
        self._awaited: dict[str, NodeId] = {}  # who knows a state that could not be checked yet
        self._hints = Hints(me, epoch, hints, config, trust.epoch_of, self._some_peers)
        self._links: dict[NodeId, None] = {}
        self._flushed = 0
        self._flush_pending = False
        self._tells_all = False  # with the next flush
        self._ask_proof_from = float("-inf")

    def __repr__(self) -> str:
        return (
            f"<OwnerStates of {self._me} {self._own.version}: {len(self._own.values)} own keys, "
            f"{len(self._copies) - 1} other owners, {len(self._links)} links>"
        )

    # What this node says about itself.

    def set(self, key: str, value: bytes, now: float, *, to_all: bool = False) -> list[Effect]:
        """Give one of this node's own keys a value; the same value again costs nothing.

        Args:
            key: Which.
            value: What it says from now on.
            now: Monotonic seconds.
            to_all: Whether every linked peer is told of it, and not some who pass it on: of what is seldom and
                must be known everywhere within a second. A hint never is.

        Raises:
            TooLarge: if the key, the value, the number of keys or all of them exceed their limit;
                nothing was changed.
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
        before = self.get(self._me, key)
        if before == value:
            return []
        if key in self._hints.keys:
            return self._hints.write(key, value, now)
        if before is None and len(self._own.values) >= MAX_OWNER_KEYS:
            raise TooLarge(f"this node has {MAX_OWNER_KEYS} keys already")
        grown_bytes = key_size_bytes(key, value) - (
            0 if before is None else key_size_bytes(key, before)
        )
        if self._own.size_bytes + grown_bytes > MAX_OWNER_STATE_BYTES:
            raise TooLarge(
                f"all that this node says about itself would have more than "
                f"{MAX_OWNER_STATE_BYTES} bytes with {key!r}"
            )
        self._tells_all = self._tells_all or to_all
        return self._write(key, value, now)

    def delete(self, key: str, now: float) -> list[Effect]:
        """Take one of this node's own keys back; one that it does not have costs nothing."""
        if self.get(self._me, key) is None:
            return []
        if key in self._hints.keys:
            return self._hints.write(key, None, now)
        return self._write(key, None, now)

    # What is known here.

    def get(self, owner: NodeId, key: str) -> bytes | None:
        """Return the value of an owner's key, or None if there is none."""
        if key in self._hints.keys:
            return self._hints.get(owner, key)
        copy = self._copies.get(owner)
        return copy.values.get(key) if copy else None

    def entries(self, owner: NodeId) -> Mapping[str, bytes]:
        """Return an owner's keys as they are now, without hints; empty if nothing is known."""
        copy = self._copies.get(owner)
        return copy.values if copy else _NOTHING

    def owners(self) -> list[NodeId]:
        """Return everybody whose state is known here, this node included, sorted."""
        return sorted(copy.owner for copy in self._copies.values())

    # What membership decides.

    def forget(self, owner: NodeId) -> list[Effect]:
        """Drop an owner that membership gave up, and whose state `OwnerTrust` takes no more."""
        if owner == self._me:
            return []
        self._awaited.pop(owner, None)
        keys = self._hints.forget(owner)
        copy = self._copies.pop(owner, None)
        if copy is not None:
            self._root ^= copy.hash()
            keys += copy.values
        return [Emit("state.changed", owner, key) for key in keys]

    def welcome(self, owner: NodeId) -> list[Effect]:
        """Ask for the state of a live member, if a peer had one before this node could check it."""
        peer = self._awaited.pop(owner, None)
        if peer is None or peer not in self._links or owner in self._copies:
            return []
        return [self._note(peer, OwnerWants((Mark(owner, 0, 0),)))]

    def follow_epoch(self, epoch: int) -> list[Effect]:
        """Go on in the epoch of this node's record, which rose while it ran: others expect that."""
        self._hints.follow_epoch(epoch)
        return self._rise(epoch, 0) if epoch > self._own.epoch else []

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
                begin = [self._note(peer, self._root_note())] if self._me < peer else []
                return [*begin, *self._hints.tell(peer)]
            case LinkDown(peer, _):
                self._links.pop(peer, None)
                self._gathering.drop(peer)
                self._hints.link_down(peer)
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
        if timer == OwnerHintsDue(self._boot):
            return self._hints.push(now)
        if timer == OwnerSyncDue(self._boot):
            delay_s = config.sync_interval_s * self._rng.uniform(0.8, 1.2)  # nobody in step
            effects: list[Effect] = [StartTimer(timer, delay_s)]
            for peer in self._some_peers(1):
                effects += [self._note(peer, self._root_note()), *self._hints.tell(peer)]
            return effects
        if timer == OwnerReapDue(self._boot):
            for copy in self._copies.values():
                copy.reap(now)
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
                effects = self._ask_proof(sender, message.marks, now)
                return effects + self._send_deltas(sender, message.marks)
            case OwnerHints():
                return self._hints.hear(sender, message.hints, now)
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
        self._own.seal(self._trust.sign)
        deltas = [*self._own.deltas_since(self._own.epoch, self._flushed)]
        self._flushed = self._own.complete
        fanout = len(self._links) if self._tells_all else self._config.fanout
        self._tells_all = False
        return self._push(deltas, None, fanout)

    def _push(
        self, deltas: Sequence[OwnerDelta], exclude: NodeId | None, fanout: int
    ) -> list[Effect]:
        effects: list[Effect] = []
        if deltas:
            for peer in self._some_peers(fanout, exclude):
                theirs = (delta for delta in deltas if delta.owner != peer)
                effects += [self._note(peer, note) for note in delta_notes(theirs)]
        return effects

    # Merging what others say.

    def _on_deltas(
        self, sender: NodeId, deltas: tuple[OwnerDelta, ...], now: float
    ) -> list[Effect]:
        news: list[OwnerDelta] = []
        effects: list[Effect] = []
        for delta in deltas:
            chain = self._gathering.take(sender, delta)
            if chain is None:
                continue
            read = self._read(sender, chain, now)
            if isinstance(read, OwnerCopy):
                effects += self._replace(read)
                news += chain
            else:
                effects += read
        return [*effects, *self._push(news, sender, self._config.fanout)]

    def _read(
        self, sender: NodeId, chain: Sequence[OwnerDelta], now: float
    ) -> OwnerCopy | list[Effect]:
        """Return the copy that deltas up to a signed one lead to; else what follows from them."""
        last = chain[-1]
        owner = NodeId(last.owner)
        if owner == self._me:
            return self._overtake(sender, last)
        epoch = self._trust.epoch_of(owner)
        if epoch is None:
            self._await(owner, sender)
            return []
        held = self._copies.get(owner)
        if last.epoch < epoch or (held is not None and last.version <= held.version):
            return []
        base = held or OwnerCopy(owner, 0)
        made = base.advanced(chain, now + self._config.tombstone_s)
        if made is None and chain[0].after:
            is_gap = last.epoch != base.epoch or chain[0].after > base.complete
            mark = base.mark if is_gap else Mark(owner, 0, 0)
            return [self._note(sender, OwnerWants((mark,)))]
        flaw = self._flaw(made, held is None)
        if made is None or flaw:
            return [Emit("state.refused", sender, f"a state of {owner}: {flaw}")]
        return made

    def _flaw(self, made: OwnerCopy | None, is_new: bool) -> str:
        if made is None:
            return "its digest does not fit"
        if made.is_overfull:
            return "it has more keys or bytes than an owner may have"
        if is_new and len(self._copies) >= MAX_MEMBERS:
            return f"{MAX_MEMBERS} owners are known already"
        if not self._trust.verify(made.owner, made.signed_bytes(), made.signature):
            return "its owner has not signed it"
        return ""

    def _replace(self, made: OwnerCopy) -> list[Effect]:
        owner = made.owner
        before = self._copies.get(owner)
        if before is not None:
            self._root ^= before.hash()
        self._copies[owner] = made
        self._root ^= made.hash()
        self._awaited.pop(owner, None)
        keys = made.changed_from(before or OwnerCopy(owner, 0))
        return [Emit("state.changed", owner, key) for key in keys]

    def _await(self, owner: NodeId, sender: NodeId) -> None:
        """Remember whom to ask once a state can be checked."""
        if owner in self._awaited or len(self._awaited) < MAX_MEMBERS:
            self._awaited[owner] = sender

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
                epoch = self._trust.epoch_of(NodeId(mark.owner))
                if epoch is None:
                    self._await(NodeId(mark.owner), sender)
                elif mark.epoch >= epoch:
                    wants.append(Mark(mark.owner, 0, 0))
            elif copy.version < mark.version or (
                mark.owner == sender and copy.version > mark.version
            ):
                # The second: the sender has lost its own state, and learns it from our mark.
                wants.append(copy.mark)
            elif copy.version > mark.version:
                behind.append(mark)
        effects = self._ask_proof(sender, digests.marks, now)
        behind += [
            Mark(owner, 0, 0)
            for owner in self._copies
            if owner not in theirs and digests.covers(owner)
        ]
        if theirs.get(self._me, self._own.mark).version < self._own.version:
            behind.append(theirs[self._me])
        effects += self._send_deltas(sender, [mark for mark in behind if mark.owner != sender])
        effects += [self._note(sender, note) for note in want_notes(wants)]
        return effects

    def _send_digests(self, to: NodeId) -> list[Effect]:
        marks = (self._copies[owner].mark for owner in sorted(self._copies))
        return [self._note(to, note) for note in digest_notes(marks)]

    def _send_deltas(self, to: NodeId, marks: Iterable[Mark]) -> list[Effect]:
        """Send what the marks' states lack, and hints of those that are not known at all."""
        self._own.seal(self._trust.sign)
        deltas: list[OwnerDelta] = []
        hints: list[Hint] = []
        for mark in marks:
            copy = self._copies.get(mark.owner)
            if copy is not None and copy.version > mark.version:
                deltas += copy.deltas_since(mark.epoch, mark.complete)
                hints += self._hints.of(mark.owner) if mark.version == (0, 0) else []
        notes: list[Message] = [*delta_notes(deltas), *hint_notes(hints)]
        return [self._note(to, note) for note in notes]

    def _ask_proof(self, sender: NodeId, marks: Iterable[Mark], now: float) -> list[Effect]:
        """Ask a peer for a newer state of this node's own, which it says that it knows."""
        if now < self._ask_proof_from or not any(
            mark.owner == self._me and mark.version > self._own.version for mark in marks
        ):
            return []
        self._ask_proof_from = now + self._config.sync_interval_s
        return [self._note(sender, OwnerWants((self._own.mark,)))]

    def _overtake(self, sender: NodeId, proof: OwnerDelta) -> list[Effect]:
        """Write a state above a newer one of this node's own, if it bears this node's signature."""
        if proof.version <= self._own.version:
            return []
        signed = state_bytes(self._me, proof.epoch, proof.upto, proof.digest)
        if not self._trust.verify(self._me, signed, proof.signature):
            return [Emit("state.refused", sender, "a state of this node that it has not signed")]
        detail = (
            f"{sender} has a state of this node of epoch {proof.epoch}, version {proof.upto}: "
            "either it was restarted without a greater epoch, or its identity runs twice"
        )
        effects = self._rise(proof.epoch, proof.upto)
        return [*effects, Emit("state.overtaken", self._me, detail)]

    def _rise(self, epoch: int, version: int) -> list[Effect]:
        self._root ^= self._own.hash()
        self._own.overtake(epoch, version)
        self._root ^= self._own.hash()
        self._flushed = 0
        return self._flush_soon()

    # Leaves.

    def _root_note(self) -> OwnerRoot:
        return OwnerRoot(self._root.to_bytes(8, "big"))

    def _note(self, to: NodeId, message: Message) -> SendNote:
        return SendNote(to, OWNER.encode(message))

    def _some_peers(self, count: int, exclude: NodeId | None = None) -> list[NodeId]:
        peers = [peer for peer in self._links if peer != exclude]
        return peers if len(peers) <= count else self._rng.sample(peers, count)
