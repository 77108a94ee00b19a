"""Rounds of gossip: while there are rumours, a few members are told some of them every so often.

Those that died lately are among them: one that lives after all (a partition that healed, a long sleep)
hears of its death from the first datagram that reaches it, and refutes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.effects import Effect, StartTimer
from meshnode.membership.messages import Gossip
from meshnode.membership.timers import GossipRound

if TYPE_CHECKING:
    import random

    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.member import MemberTable
    from meshnode.membership.outbox import Outbox


class Gossiper:
    """Tells rumours in rounds of its own, beside those that ride on probes."""

    def __init__(
        self, table: MemberTable, outbox: Outbox, config: MembershipConfig, rng: random.Random
    ) -> None:
        """Tell the outbox's rumours."""
        self._table = table
        self._outbox = outbox
        self._config = config
        self._rng = rng
        self._is_waiting = False

    def __repr__(self) -> str:
        return f"<Gossiper of {self._outbox.rumours!r}>"

    def wake(self) -> list[Effect]:
        """Begin rounds, at a random point of one, if there is something to tell, and somebody."""
        if self._is_waiting or self._table.is_alone or not len(self._outbox.rumours):
            return []
        self._is_waiting = True
        return [StartTimer(GossipRound(), self._rng.uniform(0.0, self._config.gossip_interval_s))]

    def next_round(self, now: float) -> list[Effect]:
        """Tell a few; go on while there are rumours."""
        self._is_waiting = False
        config = self._config
        hearers = [*self._table.live, *self._table.dead_since(now - config.gossip_to_dead_s)]
        effects: list[Effect] = []
        for to in self._rng.sample(hearers, min(config.gossip_fanout, len(hearers))):
            if not len(self._outbox.rumours):
                break
            effects.append(self._outbox.best(to, Gossip(())))
        if not self._table.is_alone and len(self._outbox.rumours):
            # Spaced, where the first round came at random.
            self._is_waiting = True
            effects.append(StartTimer(GossipRound(), config.gossip_interval_s))
        return effects
