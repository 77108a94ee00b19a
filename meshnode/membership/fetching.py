"""Records that rumours speak of and this node does not hold: asked for over links.

Who tells of an incarnation has its record, so the teller is asked first, or the subject, if a link to
either is up; else, and whenever no answer came within `request_retry_s`, a random linked peer. After
`MAX_RECORD_TRIES` it is left to anti-entropy. Asking waits for a moment, in which most records come by
themselves (`pushing.py`), and asks one peer for all that it is to be asked in one note.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, SendNote, StartTimer
from meshnode.limits import MAX_RECORD_TRIES, MAX_RECORDS_AWAITED
from meshnode.membership import antientropy
from meshnode.membership.messages import Incarnation, pack_id, unpack_id
from meshnode.membership.timers import RequestRound

if TYPE_CHECKING:
    import random

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable
    from meshnode.membership.messages import DigestEntry, Rumour
    from meshnode.types import NodeId

EARLY_S: Final = 0.001
"""A timer may come so much too early by rounding: finer than any loop's timers."""


@dataclass(slots=True)
class _Wanted:
    incarnation: Incarnation
    teller: NodeId | None
    at: float  # of the next try
    tries: int = 0


class Fetcher:
    """The records that are awaited: `MAX_RECORDS_AWAITED` of them."""

    def __init__(self, table: MemberTable, config: MembershipConfig, rng: random.Random) -> None:
        """Ask on behalf of the table's owner."""
        self._table = table
        self._config = config
        self._rng = rng
        self._wanted: dict[bytes, _Wanted] = {}
        # When the timers that run are due, the soonest last: one is started only if it is sooner than all.
        self._timers: list[float] = []

    def __repr__(self) -> str:
        return f"<Fetcher of {len(self._wanted)} records>"

    def want(self, said: Rumour | DigestEntry, teller: NodeId | None, now: float) -> list[Effect]:
        """Have a record, in the incarnation of which a rumour or digest speaks or a later one.

        Args:
            said: What speaks of it.
            teller: Who is asked first, or None for anyone.
            now: Monotonic seconds.
        """
        incarnation = Incarnation(said.epoch, said.counter)
        wanted = self._wanted.get(said.subject)
        if wanted is not None and wanted.incarnation >= incarnation:
            return []
        if not self._table.linked or (wanted is None and len(self._wanted) >= MAX_RECORDS_AWAITED):
            return []  # anti-entropy will bring it
        at = now + self._config.gossip_interval_s
        self._wanted[said.subject] = _Wanted(incarnation, teller, at)
        return self._wake_at(at, now)

    def came(self, node_id: NodeId, incarnation: Incarnation) -> bool:
        """Note that a record is held now, and return whether this node had asked for it."""
        wanted = self._wanted.get(pack_id(node_id))
        if wanted is None or wanted.incarnation > incarnation:
            return False
        del self._wanted[pack_id(node_id)]
        return wanted.tries > 0

    def give_up(self, node_id: NodeId, incarnation: Incarnation) -> None:
        """Ask no more for the record of a life that has ended, in this incarnation."""
        wanted = self._wanted.get(pack_id(node_id))
        if wanted is not None and wanted.incarnation <= incarnation:
            self.drop(node_id)

    def drop(self, node_id: NodeId) -> None:
        """Ask for a member's record no more."""
        self._wanted.pop(pack_id(node_id), None)

    def ask(self, now: float) -> list[Effect]:
        """Ask for what is due."""
        if self._timers:
            self._timers.pop()
        by_peer: dict[NodeId, list[bytes]] = {}
        linked = self._table.linked
        for subject, wanted in list(self._wanted.items()):
            if wanted.at > now + EARLY_S:
                continue
            if wanted.tries >= MAX_RECORD_TRIES or not linked:
                del self._wanted[subject]
                continue
            by_peer.setdefault(self._whom(subject, wanted, linked), []).append(subject)
            wanted.tries += 1
            wanted.at = now + self._config.request_retry_s
        effects: list[Effect] = [
            SendNote(peer, note)
            for peer, subjects in by_peer.items()
            for note in antientropy.requests(subjects)
        ]
        if self._wanted:
            effects += self._wake_at(min(wanted.at for wanted in self._wanted.values()), now)
        return effects

    def _whom(self, subject: bytes, wanted: _Wanted, linked: tuple[NodeId, ...]) -> NodeId:
        if wanted.tries == 0 and wanted.teller is not None:
            for peer in (wanted.teller, unpack_id(subject)):
                if self._table.is_linked(peer):
                    return peer
        return self._rng.choice(linked)

    def _wake_at(self, at: float, now: float) -> list[Effect]:
        if self._timers and self._timers[-1] <= at:
            return []
        self._timers.append(at)
        return [StartTimer(RequestRound(), at - now)]
