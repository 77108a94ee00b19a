"""When views are compared, and what this node does with what it is told then (`antientropy.py`).

Each node compares its view with that of one random linked peer per `sync_interval_s`, stretched with the
size of the mesh, and when a link comes up. One side begins, the answer serves both; of a new link's ends
that is the one with the smaller NodeId.

Links come and go while nothing is amiss, and a node that joins makes many at once. So it begins only if it
does not hold the new peer for alive, or has compared with nobody for `SPACING_S`: enough for one that just
started, that was cut off, or that meets one of these. As the other end may have decided otherwise, the
greater NodeId looks again after `PATIENCE_S`.

A node that joins a large mesh lacks nearly all of it, and most join through the same few seeds. So one
comparison gives `GIVEN_AT_ONCE` records, and a digest of the rest; for those the newcomer asks around
among the members that it has come to know by then.

A node that learnt of members compares once more a moment later. Pushing misses a few nodes for each piece
of news, and those cannot know it; but their neighbours, who heard it, then ask them. So a join is
everywhere in a second or two, and where nothing was missed this costs one hash.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect, Emit, SendNote, StartTimer
from meshnode.errors import ProtocolError
from meshnode.membership import antientropy
from meshnode.membership.config import stretch
from meshnode.membership.dialling import GONE
from meshnode.membership.messages import (
    CODEC,
    Digest,
    RecordRequest,
    Records,
    Summary,
    Sync,
    pack_id,
    read_record,
    state_of,
)
from meshnode.membership.timers import CheckDue, LinkSync, SyncRound
from meshnode.types import NodeId, NodeState

if TYPE_CHECKING:
    import random

    from meshnode.membership.beliefs import Beliefs
    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.fetching import Fetcher
    from meshnode.membership.member import MemberTable

Reconciling = Sync | Summary | Digest | RecordRequest | Records

SPACING_S: Final = 1.0
"""Between comparisons that new links cause (a node that joins makes a dozen in a second), and about the
time in which news is passed on before a node looks whether a peer missed it."""

PATIENCE_S: Final = 0.5
"""How long the greater NodeId waits for the smaller one's first word: a slow round trip."""

GIVEN_AT_ONCE: Final = 128
"""Records that one comparison gives or asks of one peer: some 90 KB, and enough peers to ask for the rest."""


class Reconciler:
    """Compares this node's view with others'."""

    def __init__(
        self,
        table: MemberTable,
        beliefs: Beliefs,
        fetcher: Fetcher,
        config: MembershipConfig,
        rng: random.Random,
    ) -> None:
        """Compare the table."""
        self._table = table
        self._beliefs = beliefs
        self._fetcher = fetcher
        self._config = config
        self._rng = rng
        self._compared_at = -math.inf
        self._is_checking = False

    def __repr__(self) -> str:
        return f"<Reconciler of {self._table!r}, last at {self._compared_at:.1f} s>"

    def start(self) -> list[Effect]:
        """Begin the rounds at a random point of a period."""
        return [StartTimer(SyncRound(), self._rng.uniform(0.0, self._config.sync_interval_s))]

    def link_up(self, peer: NodeId, now: float) -> list[Effect]:
        """Compare views over a new link, or leave the first word to its other end."""
        if self._table.own_id > peer:
            return [StartTimer(LinkSync(peer), PATIENCE_S)]
        return self._begin(peer, now) if self._is_overdue(peer, now) else []

    def link_settled(self, timer: LinkSync, now: float) -> list[Effect]:
        """Begin after all, if the other end has not and there is a reason."""
        if self._table.is_linked(timer.peer) and self._is_overdue(timer.peer, now):
            return self._begin(timer.peer, now)
        return []

    def next_round(self, now: float) -> list[Effect]:
        """Compare with one linked peer."""
        period_s = self._config.sync_interval_s * stretch(self._table.size)
        effects: list[Effect] = [StartTimer(SyncRound(), period_s * self._rng.uniform(0.8, 1.2))]
        linked = self._table.linked
        return effects + self._begin(self._rng.choice(linked), now) if linked else effects

    def check(self, now: float) -> list[Effect]:
        """Compare with one linked peer after members joined."""
        self._is_checking = False
        linked = self._table.linked
        return self._begin(self._rng.choice(linked), now) if linked else []

    def answer(self, sender: NodeId, message: Reconciling) -> list[Effect]:
        """Answer a question about the table without learning anything from it."""
        match message:
            case Sync(root):
                notes = [] if root == self._table.root() else antientropy.offer(self._table)
            case Summary():
                notes = antientropy.digests_where_different(self._table, message)
            case RecordRequest(subjects):
                notes = antientropy.answer(self._table, subjects)
            case _:
                notes = []
        return [SendNote(sender, note) for note in notes]

    def learn(self, sender: NodeId, message: Reconciling, now: float) -> list[Effect]:
        """Take what a peer says; questions are answered."""
        match message:
            case Records():
                return self._take(sender, message, now)
            case Digest():
                self._compared_at = now
                return self._compare(sender, message, now)
            case Sync() | Summary():
                self._compared_at = now
        return self.answer(sender, message)

    def _begin(self, peer: NodeId, now: float) -> list[Effect]:
        self._compared_at = now
        return [SendNote(peer, CODEC.encode(Sync(self._table.root())))]

    def _is_overdue(self, peer: NodeId, now: float) -> bool:
        member = self._table.get(peer)
        is_alive = member is not None and member.state is NodeState.ALIVE
        return not is_alive or now - self._compared_at >= SPACING_S

    def _take(self, sender: NodeId, message: Records, now: float) -> list[Effect]:
        effects: list[Effect] = []
        size = self._table.size
        gone = {
            rumour.subject: rumour.incarnation
            for rumour in message.rumours
            if state_of(rumour.state) in GONE
        }
        for raw in message.records:
            try:
                record, flaw = read_record(raw)
            except ProtocolError as error:
                effects.append(Emit("member.dropped", sender, str(error)))
                continue
            end = gone.get(pack_id(record.node_id))
            is_gone = end is not None and end >= record.incarnation
            accept = self._beliefs.accept_gone if is_gone else self._beliefs.accept
            effects += accept(record, flaw, sender, now)
        for rumour in message.rumours:
            effects += self._beliefs.hear(rumour, sender, now)
        if self._table.size > size and not self._is_checking:
            self._is_checking = True
            delay_s = SPACING_S * self._rng.uniform(0.5, 1.0)
            effects.append(StartTimer(CheckDue(), delay_s))
        return effects

    def _compare(self, sender: NodeId, digest: Digest, now: float) -> list[Effect]:
        difference = antientropy.compare(self._table, digest)
        effects: list[Effect] = []
        for rumour in difference.heard:
            effects += self._beliefs.hear(rumour, sender, now)
        records = difference.records
        notes: list[bytes] = []
        if len(records) > GIVEN_AT_ONCE:
            records = self._rng.sample(records, GIVEN_AT_ONCE)
            notes = antientropy.digests(self._table, digest.after, digest.upto)
        notes = antientropy.pack(records, difference.rumours) + notes
        if len(difference.wanted) <= GIVEN_AT_ONCE:
            notes += antientropy.requests(difference.wanted)
        else:
            entries = {entry.subject: entry for entry in digest.entries}
            for subject in difference.wanted:
                effects += self._fetcher.want(entries[subject], None, now)
        return effects + [SendNote(sender, note) for note in notes]
