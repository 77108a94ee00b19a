"""Peak EWMA: of two random replicas the one with the lower latency times requests in flight."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from meshnode.sim.policies.plain import two_of
from meshnode.sim.policies.policy import Job, Policy, ReplicaKey, key_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate
    from meshnode.routing.table import Replica

DECAY_S: Final = 10.0
"""Finagle's default `decayTime`."""

_UNKNOWN_COST_S: Final = 1e6  # Finagle's Penalty: above any latency, below infinity


class _Cost:
    """An average of latencies that rises at once and falls with time."""

    __slots__ = ("at", "cost_s")

    def __init__(self, now: float) -> None:
        self.at = now
        self.cost_s = 0.0

    def observe(self, now: float, took_s: float) -> None:
        if took_s > self.cost_s:
            self.cost_s = took_s
        else:
            weight = math.exp((self.at - now) / DECAY_S)
            self.cost_s = self.cost_s * weight + took_s * (1 - weight)
        self.at = now


class PeakEwma(Policy):
    """Finagle's `Balancers.p2cPeakEwma`, which Linkerd's proxy has as its default.

    A replica's cost is an average of the latencies that this gateway saw, of good and bad answers
    alike, which takes a higher one at once (the peak) and forgets with a time constant of 10 s, also
    while nothing comes; times one more than the gateway's requests in flight there. One that has
    requests in flight and never answered any costs more than all others. Of two random replicas the
    cheaper one is taken. (twitter/finagle, `PeakEwma.scala`; linkerd/linkerd2-proxy, tower's
    `peak_ewma`.)
    """

    def __init__(self) -> None:
        self._costs: dict[ReplicaKey, _Cost] = {}  # bounded by the replicas that it was sent to

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return the cheaper of two."""
        one, other = two_of(able, rng)
        return one if self._load(one, now) <= self._load(other, now) else other

    def ended(self, replica: Replica, job: Job, now: float, took_s: float) -> None:
        """Take a latency into the average."""
        del job
        key = key_of(replica)
        cost = self._costs.get(key)
        if cost is None:
            cost = self._costs[key] = _Cost(now)
        cost.observe(now, took_s)

    def _load(self, candidate: Candidate, now: float) -> float:
        cost = self._costs.get(key_of(candidate.replica))
        pending = candidate.load.outstanding
        if cost is None:
            return _UNKNOWN_COST_S + pending if pending else 0.0
        cost.observe(now, 0.0)
        return cost.cost_s * (pending + 1)
