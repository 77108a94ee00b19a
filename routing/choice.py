"""Filter, score, pick: which replica gets a request.

The score is the expected time to completion in milliseconds (DESIGN.md, section 6)::

    W = max(0, in_system + own_since_report + 1 - slots) / slots x service_time
    E = [rtt + rho x (W + service_time)] x (1 + 0.25 x min(1, age / 5 s)) / (1 - p_error)

Only ready replicas are candidates, so nothing has to be loaded first. The pick is uniform among
those within 1.25 of the lowest E, so that many gateways with the same news do not all run to the
same replica. All candidates up to 64 are scored; of more, a sample by capacity: a *uniform* sample
of a fleet whose nodes differ 50-fold sees mostly slow nodes, and has no steady state.

This runs once per request, so the common case builds nothing but two short lists and the route.
Reasons for drops are worked out only when somebody wants to know.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.routing.breaker import Breaker, BreakerState
from meshnode.routing.load import LinkState, Path, ReplicaLoad

if TYPE_CHECKING:
    import random
    from collections.abc import Collection

    from meshnode.routing.table import Replica
    from meshnode.types import NodeId

NEAR_LOWEST: Final = 1.25
"""Scores up to this multiple of the lowest count as equal."""

STALE_S: Final = 5.0
"""Age of a load report from which on it is stale."""

STALE_PENALTY: Final = 0.25
"""What a stale report adds to the score, as a share; a younger one adds in proportion."""

WEIGHTS_MAX_AGE_S: Final = 1.0
"""How long a large group's capacities may be reused for sampling; summing 1,000 takes 0.2 ms."""

_UP = LinkState.UP
_CLOSED = BreakerState.CLOSED


class Route(NamedTuple):
    """A decision and its reasons.

    Attributes:
        replica: Where the request goes.
        expected_ms: Its score.
        reason: `only-candidate`, `lowest-expected`, `near-lowest` (within 1.25 of it), `probe`
            (the one request that a half-open breaker lets through) or `last-resort` (it keeps
            failing, and there is no other).
        candidates: How many replicas could have served it.
        dropped: Node name and reason of each replica that could not, if that was asked for.
        candidate: The chosen replica together with what is believed about it.
    """

    replica: Replica
    expected_ms: float
    reason: str
    candidates: int
    dropped: tuple[tuple[str, str], ...]
    candidate: Candidate


class Candidate:
    """A ready replica and the beliefs about it, brought together for the scan.

    Attributes:
        replica: Who serves.
        load: What is believed about its load.
        path: The way to its node.
        breaker: Whether it failed lately.
        unmeasured_rtt_ms: Round trip to assume until the path has measured one.
    """

    __slots__ = ("breaker", "load", "path", "replica", "unmeasured_rtt_ms")

    def __init__(
        self,
        replica: Replica,
        load: ReplicaLoad,
        path: Path,
        breaker: Breaker,
        unmeasured_rtt_ms: float,
    ) -> None:
        self.replica = replica
        self.load = load
        self.path = path
        self.breaker = breaker
        self.unmeasured_rtt_ms = unmeasured_rtt_ms

    def __repr__(self) -> str:
        return f"<Candidate {self.replica.node_name} {self.load} {self.path} {self.breaker}>"

    @property
    def rtt_ms(self) -> float:
        """Round trip to the node, measured or assumed."""
        rtt_ms = self.path.rtt_ms
        return self.unmeasured_rtt_ms if rtt_ms is None else rtt_ms

    def expected_ms(self, now: float) -> float:
        """Return the score of this replica for one more request."""
        load = self.load
        rtt_ms = self.path.rtt_ms
        return score(
            self.unmeasured_rtt_ms if rtt_ms is None else rtt_ms,
            load.queued,
            load.slots,
            load.service_ms,
            load.rho(now),
            now - load.reported_at,
            load.error_rate(now),
        )

    def drop_reason(
        self, now: float, tried: Collection[NodeId], avoid_regions: Collection[str]
    ) -> str | None:
        """Return why this replica cannot take a request now, or None if it can."""
        if self.path.link is not _UP:
            return f"link {self.path.link}"
        if self.replica.node in tried:
            return "tried already"
        if not self.breaker.allows(now):
            wait_s = max(0.0, self.breaker.retry_at - now)
            return f"breaker {self.breaker.state} ({self.breaker.cause}) for {wait_s:.1f} s"
        if self.replica.region in avoid_regions:
            return f"region {self.replica.region} failed"
        return None


class Candidates:
    """The candidates of one model version, and those of its replicas that are none.

    Attributes:
        ready: All of them, in a stable order.
        excluded: Node name and reason of each replica that is not ready.
        revision: That of the table's group which this was made from.
    """

    __slots__ = ("_weights", "_weights_at", "excluded", "ready", "revision")

    def __init__(
        self,
        ready: tuple[Candidate, ...],
        excluded: tuple[tuple[str, str], ...] = (),
        revision: int = 0,
    ) -> None:
        self.ready = ready
        self.excluded = excluded
        self.revision = revision
        self._weights: list[float] = []
        self._weights_at = -math.inf

    def __repr__(self) -> str:
        return f"<Candidates {len(self.ready)} ready, {len(self.excluded)} not>"

    def sample(self, now: float, rng: random.Random) -> tuple[Candidate, ...]:
        """Return all, or of many at most `MAX_CANDIDATES_SCORED`, drawn by capacity (slots over service time)."""
        if len(self.ready) <= MAX_CANDIDATES_SCORED:
            return self.ready
        if now - self._weights_at >= WEIGHTS_MAX_AGE_S:
            loads = (each.load for each in self.ready)
            self._weights = list(accumulate(load.slots / load.service_ms for load in loads))
            self._weights_at = now
        drawn = rng.choices(self.ready, cum_weights=self._weights, k=MAX_CANDIDATES_SCORED)
        return tuple(dict.fromkeys(drawn))


class Chooser(Protocol):
    """What decides where a request goes: `choose`, or a policy that the simulator compares it with."""

    def __call__(
        self,
        candidates: Candidates,
        now: float,
        rng: random.Random,
        *,
        tried: Collection[NodeId] = (),
        avoid_regions: Collection[str] = (),
    ) -> Route | None:
        """Choose a replica for one request, or None if there is no candidate; see `choose`."""
        ...


def score(
    rtt_ms: float,
    queued: int,
    slots: int,
    service_ms: float,
    rho: float,
    age_s: float,
    p_error: float,
) -> float:
    """Return the expected time to completion, in milliseconds (formula: this module's text).

    Args:
        rtt_ms: Round trip to the node.
        queued: Requests running and queued there, those sent since the report included.
        slots: Requests that it runs at once.
        service_ms: Its time for one request.
        rho: Observed over predicted time, 1 to 8.
        age_s: Age of the load report; infinite if there was none.
        p_error: Share of failures, below 1.
    """
    waiting = queued + 1 - slots
    work_ms = service_ms + waiting / slots * service_ms if waiting > 0 else service_ms
    stale = age_s / STALE_S if age_s < STALE_S else 1.0
    return (rtt_ms + rho * work_ms) * (1.0 + STALE_PENALTY * stale) / (1.0 - p_error)


def choose(
    candidates: Candidates,
    now: float,
    rng: random.Random,
    *,
    tried: Collection[NodeId] = (),
    avoid_regions: Collection[str] = (),
    explain: bool = False,
) -> Route | None:
    """Choose a replica for one request, or None if there is no candidate.

    Where the narrow search finds nobody, it widens: from the sample to all, then into the regions
    to avoid, then to replicas whose breaker yields as a last resort. Nothing is changed.

    Args:
        candidates: Who could serve.
        now: Monotonic seconds.
        rng: Draws the sample and the pick; the same state gives the same route.
        tried: Nodes that failed this request.
        avoid_regions: Regions to use only if there is no other.
        explain: Fill in `Route.dropped`.
    """
    pool = candidates.sample(now, rng)
    scores, eligible = _scan(pool, now, tried, avoid_regions)
    if not eligible and (avoid_regions or pool is not candidates.ready):
        scores, eligible = _scan(candidates.ready, now, tried, avoid_regions)
        if not eligible:
            scores, eligible = _scan(candidates.ready, now, tried, ())
    last_resort = not eligible
    if last_resort:
        eligible = [
            each
            for each in candidates.ready
            if each.path.link is _UP and each.breaker.yields and each.replica.node not in tried
        ]
        scores = [each.expected_ms(now) for each in eligible]
        if not eligible:
            return None
    index, reason = _pick(scores, rng)
    chosen = eligible[index]
    if last_resort:
        reason = "last-resort"
    elif chosen.breaker.state is not _CLOSED:
        reason = "probe"
    dropped = drops(candidates, now, tried, avoid_regions) if explain else ()
    return Route(chosen.replica, scores[index], reason, len(eligible), dropped, chosen)


def drops(
    candidates: Candidates,
    now: float,
    tried: Collection[NodeId] = (),
    avoid_regions: Collection[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Return node name and reason of each replica that cannot take a request now."""
    reasons = ((each, each.drop_reason(now, tried, avoid_regions)) for each in candidates.ready)
    found = tuple((each.replica.node_name, reason) for each, reason in reasons if reason)
    return candidates.excluded + found


def _scan(
    pool: Collection[Candidate],
    now: float,
    tried: Collection[NodeId],
    avoid_regions: Collection[str],
) -> tuple[list[float], list[Candidate]]:
    """Return the scores of those that can take a request, and those in the same order.

    The conditions are those of `Candidate.drop_reason`, written out because this is the one place
    where a fraction of a microsecond per replica counts.
    """
    scores: list[float] = []
    eligible: list[Candidate] = []
    for each in pool:
        if each.path.link is not _UP:
            continue
        if each.breaker.state is not _CLOSED and not each.breaker.allows(now):
            continue
        if tried and each.replica.node in tried:
            continue
        if avoid_regions and each.replica.region in avoid_regions:
            continue
        scores.append(each.expected_ms(now))
        eligible.append(each)
    return scores, eligible


def _pick(scores: list[float], rng: random.Random) -> tuple[int, str]:
    if len(scores) == 1:
        return 0, "only-candidate"
    lowest = min(scores)
    bound = NEAR_LOWEST * lowest
    near = [index for index, each in enumerate(scores) if each <= bound]
    index = near[int(rng.random() * len(near))] if len(near) > 1 else near[0]
    return index, "lowest-expected" if scores[index] == lowest else "near-lowest"
