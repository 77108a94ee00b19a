r"""How long a suspect has to refute: Lifeguard's suspicion (Dadgar et al. 2018, section IV-B).

One accuser alone may be the one that is slow, so it gives the suspect long: `max`. Each further member
that accuses it *independently*, from a probe of its own, makes that less likely and the time shorter,
down to `min`, which is what plain SWIM would give::

    min = suspicion_multiplier · max(1, log10 n) · probe_interval_s
    max = min · suspicion_max_multiplier
    timeout = max(min, max - (max - min) · log(c + 1) / log(k + 1))

n are the live members, c the accusers beside the first, k = `suspicion_confirmations` how many of them
are wanted. Where fewer than k others exist that could accuse (n - 2), nobody is waited for: min. The time
counts from the first accusation that this node heard.

Only distinct accusers count. An accusation carries its author (`Rumour.origin`) on all its way, so one
that is heard again, or comes back to its author, shortens nothing.

A further accuser that comes when the shorter time is over already ends the suspicion at once; but not at a
node that doubts itself (`health.py`). One that could neither send nor hear for a while gets first what
others in the same state accuse, and the refutations a moment later: it waits one `probe_interval_s` per
count of its health for them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshnode.effects import Effect, StartTimer
from meshnode.membership.timers import SuspicionExpired

if TYPE_CHECKING:
    from meshnode.membership.config import MembershipConfig
    from meshnode.membership.messages import Incarnation
    from meshnode.types import NodeId


def bounds_s(config: MembershipConfig, size: int) -> tuple[float, float]:
    """Return the shortest and the longest time of a suspect in a mesh of `size` members, in seconds."""
    shortest_s = config.suspicion_multiplier * max(1.0, math.log10(size)) * config.probe_interval_s
    return shortest_s, shortest_s * config.suspicion_max_multiplier


def timeout_s(shortest_s: float, longest_s: float, confirmations: int, wanted: int) -> float:
    """Return a suspect's time in seconds after `confirmations` of `wanted` further accusers."""
    if wanted < 1:
        return shortest_s
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(shortest_s, longest_s - (longest_s - shortest_s) * share)


@dataclass(slots=True)
class _Suspicion:
    incarnation: Incarnation
    began: float
    shortest_s: float
    longest_s: float
    wanted: int  # k
    accusers: set[NodeId]  # with the first one; at most wanted + 1
    confirmations: int = 0  # c
    due: float = 0.0  # of the timer that counts


class Suspicions:
    """The suspects' times: at most one per member of the table, which bounds them."""

    def __init__(self, config: MembershipConfig) -> None:
        """Suspect nobody."""
        self._config = config
        self._suspicions: dict[NodeId, _Suspicion] = {}

    def __repr__(self) -> str:
        return f"<Suspicions of {list(self._suspicions)}>"

    def begin(
        self,
        node_id: NodeId,
        incarnation: Incarnation,
        accuser: NodeId | None,
        size: int,
        now: float,
    ) -> Effect:
        """Give a suspect its time.

        Args:
            node_id: The suspect.
            incarnation: The life and claim in which it is accused.
            accuser: Who accuses it, or None where that is not known.
            size: Live members, this node and the suspect included.
            now: Monotonic seconds.
        """
        shortest_s, longest_s = bounds_s(self._config, size)
        wanted = self._config.suspicion_confirmations
        if size - 2 < wanted or not self._config.lifeguard:
            wanted = 0
        accusers = set() if accuser is None else {accuser}
        suspicion = _Suspicion(incarnation, now, shortest_s, longest_s, wanted, accusers)
        self._suspicions[node_id] = suspicion
        suspicion.due = now + self._whole_s(suspicion)
        return _timer(node_id, suspicion, now)

    def confirm(
        self, node_id: NodeId, accuser: NodeId | None, doubt_s: float, now: float
    ) -> Effect | None:
        """Count one more accuser of a suspect, and return its new timer, or None if that is no news.

        Args:
            node_id: The suspect.
            accuser: Who accuses it too, or None where that is not known.
            doubt_s: How long the suspect has at least from now, because this node doubts itself.
            now: Monotonic seconds.
        """
        suspicion = self._suspicions.get(node_id)
        if (
            suspicion is None
            or accuser is None
            or accuser in suspicion.accusers
            or suspicion.confirmations >= suspicion.wanted
        ):
            return None
        suspicion.accusers.add(accuser)
        suspicion.confirmations += 1
        due = max(now + doubt_s, suspicion.began + self._whole_s(suspicion))
        suspicion.due = min(suspicion.due, due)
        return _timer(node_id, suspicion, now)

    def is_due(self, timer: SuspicionExpired) -> bool:
        """Whether this is the timer that counts for a suspicion that still stands."""
        suspicion = self._suspicions.get(timer.node_id)
        return (
            suspicion is not None
            and suspicion.incarnation == timer.incarnation
            and suspicion.due == timer.due
        )

    def end(self, node_id: NodeId) -> None:
        """Forget the suspicion of a member that refuted, died, left or was forgotten."""
        self._suspicions.pop(node_id, None)

    def _whole_s(self, suspicion: _Suspicion) -> float:
        return timeout_s(
            suspicion.shortest_s, suspicion.longest_s, suspicion.confirmations, suspicion.wanted
        )


def _timer(node_id: NodeId, suspicion: _Suspicion, now: float) -> Effect:
    timer = SuspicionExpired(node_id, suspicion.incarnation, suspicion.due)
    return StartTimer(timer, suspicion.due - now)
