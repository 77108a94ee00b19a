"""Prequal: a pool of recent probes, and the rule of hot and cold.

Wydrowski, Kleinberg, Rumble, Archer: "Load is not what you should balance: Introducing Prequal"
(NSDI 2024). Numbers are those that the paper takes where it varies nothing.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median_low
from typing import TYPE_CHECKING, Final

from meshnode.sim.policies.policy import Job, Policy, ProbeReply, ReplicaKey, key_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.routing.choice import Candidate

PROBES_PER_CALL: Final = 3
"""r_probe: replicas probed after each call, drawn uniformly without repetition."""

REMOVED_PER_CALL: Final = 1
"""r_remove: probes dropped at each call, by turns the oldest and the worst."""

POOL_SIZE: Final = 16
"""m: probes that are kept."""

LEAST_POOL: Final = 2
"""With fewer probes than this a replica is drawn at random."""

PROBE_MAX_AGE_S: Final = 1.0
"""Older probes are dropped."""

HOT_QUANTILE: Final = 2**-0.25
"""Q_RIF: a replica with more requests in flight than this quantile of recent probes is hot."""

REUSE_DELTA: Final = 1.0
"""Delta of the paper's formula for how often one probe may be used."""

RECENT_PROBES: Final = 64
"""Replies whose counts estimate the distribution of requests in flight."""

SAMPLES_PER_COUNT: Final = 8
"""Latencies that a server keeps for each number of requests met."""

MOST_COUNTED: Final = 512
"""Numbers of requests that a server tells apart: its slots and its queue hold fewer."""


class _Probe:
    """One reply in the pool."""

    __slots__ = ("at", "in_flight", "latency_s", "replica", "uses")

    def __init__(self, replica: ReplicaKey, reply: ProbeReply, at: float, rtt_s: float) -> None:
        self.replica = replica
        self.in_flight = reply.in_flight
        self.latency_s = reply.latency_s + rtt_s
        self.at = at
        self.uses = 0


class Prequal(Policy):
    """Chooses by probes that are sent off the request path.

    After each call three random replicas are asked how many requests they have and how long such
    requests take. Of the probes in the pool those above a quantile of requests in flight are hot; if
    there are cold ones, the one with the lowest latency is taken, else the hot one with the fewest
    requests. A probe that was used counts one request more, and goes after a few uses.

    One thing is not in the paper, whose clients sit in the datacentre of their servers: the probe's
    own round trip is added to the latency that the server tells, or every region would look near.
    """

    def __init__(self) -> None:
        self._pool: list[_Probe] = []  # oldest first
        self._recent: deque[int] = deque(maxlen=RECENT_PROBES)
        self._known: Sequence[ReplicaKey] = ()
        self._removes_worst = False

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return the best probed replica, or a random one where too few are probed."""
        by_key = {key_of(each.replica): each for each in able}
        self._known = tuple(by_key)
        self._pool = [
            each
            for each in self._pool
            if now - each.at <= PROBE_MAX_AGE_S and each.replica in by_key
        ]
        if len(self._pool) < LEAST_POOL:
            return able[int(rng.random() * len(able))]
        hot_above = self._hot_above()
        best = self._best(hot_above)
        best.in_flight += 1
        best.uses += 1
        if best.uses >= self._most_uses():
            self._pool.remove(best)
        for _ in range(REMOVED_PER_CALL):
            self._remove_one(hot_above)
        return by_key[best.replica]

    def to_probe(self, rng: random.Random) -> Sequence[ReplicaKey]:
        """Return three random replicas of those that could be chosen last."""
        return rng.sample(self._known, min(PROBES_PER_CALL, len(self._known)))

    def probed(self, replica: ReplicaKey, reply: ProbeReply, now: float, rtt_s: float) -> None:
        """Put a reply into the pool, in place of the oldest if it is full."""
        self._recent.append(reply.in_flight)
        self._pool.append(_Probe(replica, reply, now, rtt_s))
        if len(self._pool) > POOL_SIZE:
            del self._pool[0]

    def _best(self, hot_above: int) -> _Probe:
        cold = [each for each in self._pool if each.in_flight <= hot_above]
        if cold:
            return min(cold, key=lambda each: each.latency_s)
        return min(self._pool, key=lambda each: each.in_flight)

    def _hot_above(self) -> int:
        ordered = sorted(self._recent)
        return ordered[min(len(ordered) - 1, int(HOT_QUANTILE * len(ordered)))]

    def _remove_one(self, hot_above: int) -> None:
        """Drop the oldest probe, or, every other time, the worst: the hottest, else the slowest."""
        self._removes_worst = not self._removes_worst
        if not self._pool:
            return
        if not self._removes_worst:
            del self._pool[0]
            return
        hot = [each for each in self._pool if each.in_flight > hot_above]
        worst = (
            max(hot, key=lambda each: each.in_flight)
            if hot
            else max(self._pool, key=lambda each: each.latency_s)
        )
        self._pool.remove(worst)

    def _most_uses(self) -> float:
        """Return b_reuse: how often a probe is used so that the pool does not run dry.

        With few replicas (m/n near 1) the paper's formula has no bound; age is the only one then.
        """
        gained = (1 - POOL_SIZE / len(self._known)) * PROBES_PER_CALL - REMOVED_PER_CALL
        return max(1.0, (1 + REUSE_DELTA) / gained) if gained > 0 else math.inf


class LatencyByCount:
    """A server's part: how long requests take, by how many were there when they came."""

    def __init__(self) -> None:
        self._in_flight: dict[ReplicaKey, int] = {}
        self._open: dict[Job, tuple[ReplicaKey, int, float]] = {}
        self._latencies: dict[ReplicaKey, dict[int, deque[float]]] = {}

    def arrived(self, replica: ReplicaKey, job: Job, work_s: float | None, now: float) -> None:
        """Note how many it meets."""
        del work_s
        met = self._in_flight.get(replica, 0)
        self._in_flight[replica] = met + 1
        self._open[job] = (replica, met, now)

    def ended(self, job: Job, now: float, *, answered: bool) -> None:
        """Note how long an answer took; a refusal says nothing about time."""
        opened = self._open.pop(job, None)
        if opened is None:
            return
        replica, met, since = opened
        self._in_flight[replica] -= 1
        if answered:
            counts = self._latencies.setdefault(replica, {})
            kept = counts.setdefault(min(met, MOST_COUNTED), deque(maxlen=SAMPLES_PER_COUNT))
            kept.append(now - since)

    def withdrawn(self, job: Job) -> None:
        """Count a request no more that nobody waits for."""
        opened = self._open.pop(job, None)
        if opened is not None:
            self._in_flight[opened[0]] -= 1

    def closed(self) -> None:
        """Forget everything."""
        self._in_flight.clear()
        self._open.clear()
        self._latencies.clear()

    def probe(self, replica: ReplicaKey) -> ProbeReply:
        """Tell the requests here, and the median latency of those that met about as many."""
        in_flight = self._in_flight.get(replica, 0)
        counts = self._latencies.get(replica)
        if not counts:
            return ProbeReply(in_flight, 0.0)
        nearest = min(counts, key=lambda each: (abs(each - in_flight), each))
        return ProbeReply(in_flight, median_low(counts[nearest]))
