"""Filter, score, pick: which replica gets a request.

The score is the expected time to completion in milliseconds (DESIGN.md, section 6)::

    W = max(0, in_system + own_since_report + 1 - slots) / slots x service_time
    E = [rtt + rho x (W + service_time)] x staleness x ramp / (1 - p_error) - saved

with a staleness of 1 + 0.25 x min(1, (age - 2 s) / 5 s) for older reports than that, and W corrected by the waits that
own requests met (`meshnode.routing.waits`).

Only ready replicas are candidates, so nothing has to be loaded first. The pick is uniform among
those within 1.25 of the lowest E, so that many gateways with the same news do not all run to the
same replica. All candidates up to `MAX_CANDIDATES_SCORED` are scored; of more, a sample by capacity of those to
which there is a link: a *uniform* sample of a fleet whose nodes differ 50-fold sees mostly slow nodes, and has no
steady state. Where few fill that sample, a uniform one is added, since what a replica says of its capacity may be
wrong.

This runs once per request, so the common case builds nothing but two short lists and the route.
Reasons for drops are worked out only when somebody wants to know.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshnode.limits import MAX_CANDIDATES_SCORED, MAX_RANKINGS
from meshnode.routing.breaker import BreakerState
from meshnode.routing.conditions import USUAL, NodeConditions
from meshnode.routing.eligibility import (
    GROUPS,
    LARGE_BYTES,
    all_usual,
    broken_rule,
    group_of,
    is_plain,
    lacks_memory,
    why_later,
)
from meshnode.routing.load import LinkState, Path, ReplicaLoad
from meshnode.routing.picking import NEAR_LOWEST, pick
from meshnode.routing.service_model import SizeModel
from meshnode.types import RoutingHints

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence

    from meshnode.routing.breakers import Guard
    from meshnode.routing.load import Flight
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId

FRESH_S: Final = 2.0
"""A load report younger than this is not stale: idle replicas are heard of once in a second, by gossip, and are not to
look worse for that than busy ones, which have just answered."""

STALE_S: Final = 5.0
"""Age of a load report from which on it is stale."""

STALE_PENALTY: Final = 0.25
"""What a stale report adds to the score, as a share; a younger one adds in proportion."""

WEIGHTS_MAX_AGE_S: Final = 1.0
"""How long a large group's links and capacities may be reused for sampling; going through 1,000 takes 0.3 ms."""

MOST_SLOTS_WEIGHED: Final = 256
"""A replica that says that it runs more requests at once is drawn no more often for that: it may be wrong."""

DRAWN_OF_MANY: Final = 12
"""Draws of more candidates than are all scored: the best of a dozen, drawn by capacity, is nearly as good as the best of
three dozen, and costs a third."""

FEW_DRAWN: Final = DRAWN_OF_MANY // 2
"""With fewer different replicas in a sample, as many draws are made of all alike."""

_UP = LinkState.UP
_CLOSED = BreakerState.CLOSED


class Route(NamedTuple):
    """A decision and its reasons.

    Attributes:
        replica: Where the request goes.
        expected_ms: Its score.
        reason: `only-candidate`, `lowest-expected`, `near-lowest` (within 1.25 of it), `probe`
            (the one request that a half-open breaker lets through), `late` (none is expected to
            answer in time, this one least late), `last-resort` (it keeps failing, and there is no
            other) or `sequence` (the request's sequence is there).
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


class Terms(NamedTuple):
    """What a score is made of (formula: this module's text).

    Attributes:
        rtt_ms: Round trip to the node, measured or assumed.
        cold_ms: Time until the replica can serve at all; 0 for one that is ready.
        rho: Observed over predicted time, 1 to 8.
        wait_ms: Time that the request waits for its turn there.
        service_ms: Its own run time there, as its size says.
        staleness: Factor for the age of the last word of its load, 1 to 1.25.
        ramp: Factor for a replica that has just begun to serve, 1 or more.
        p_error: Share of failures, below 1.
        saved_ms: What the replica spares the request, as it has its session or its input's beginning.
    """

    rtt_ms: float
    cold_ms: float
    rho: float
    wait_ms: float
    service_ms: float
    staleness: float
    ramp: float
    p_error: float
    saved_ms: float

    @property
    def expected_ms(self) -> float:
        """The score: expected time to completion."""
        work_ms = self.rtt_ms + self.cold_ms + self.rho * (self.wait_ms + self.service_ms)
        return work_ms * self.staleness * self.ramp / (1.0 - self.p_error) - self.saved_ms


class Candidate:
    """A ready replica and the beliefs about it, brought together for the scan.

    Attributes:
        replica: Who serves.
        load: What is believed about its load.
        path: The way to its node.
        breaker: Whether it failed lately.
        unmeasured_rtt_ms: Round trip to assume until the path has measured one.
        conditions: Of its node.
        sizes: What a request's size says of its run time there.
    """

    __slots__ = ("breaker", "conditions", "load", "path", "replica", "sizes", "unmeasured_rtt_ms")

    def __init__(
        self,
        replica: Replica,
        load: ReplicaLoad,
        path: Path,
        breaker: Guard,
        unmeasured_rtt_ms: float,
        conditions: NodeConditions = USUAL,
        sizes: SizeModel | None = None,
    ) -> None:
        self.replica = replica
        self.load = load
        self.path = path
        self.breaker = breaker
        self.unmeasured_rtt_ms = unmeasured_rtt_ms
        self.conditions = conditions
        self.sizes = SizeModel() if sizes is None else sizes

    def __repr__(self) -> str:
        return f"<Candidate {self.replica.node_name} {self.load} {self.path} {self.breaker}>"

    @property
    def rtt_ms(self) -> float:
        """Round trip to the node, measured or assumed."""
        rtt_ms = self.path.rtt_ms
        return self.unmeasured_rtt_ms if rtt_ms is None else rtt_ms

    def terms(self, request: RoutedRequest, now: float) -> Terms:
        """Return what the score for one more request is made of: those of `expected_ms`, one by one."""
        load = self.load
        age_s = now - load.reported_at
        return Terms(
            rtt_ms=self.rtt_ms,
            cold_ms=0.0,
            rho=load.rho(now),
            wait_ms=load.wait_ms(now),
            service_ms=self.sizes.factor(request) * load.tried_ms(now),
            staleness=1.0 + STALE_PENALTY * min(1.0, max(0.0, age_s - FRESH_S) / STALE_S),
            ramp=load.ramp(now),
            p_error=load.error_rate(now),
            saved_ms=self.saved_ms(request, now),
        )

    def start(self, request: RoutedRequest, now: float) -> Flight:
        """Count a request that is sent there now."""
        sizes, load = self.sizes, self.load
        flight = load.start(now, self.rtt_ms, sizes.factor(request) * load.service_ms)
        flight.request, flight.sizes = request, sizes
        return flight

    def expected_ms(self, request: RoutedRequest, now: float) -> float:
        """Return the score of this replica for one more request (`terms`, written out for speed)."""
        load = self.load
        rtt_ms = self.path.rtt_ms
        if rtt_ms is None:
            rtt_ms = self.unmeasured_rtt_ms
        service_ms = load.service_ms
        if service_ms > load.trials.slow_above_ms:
            service_ms = load.tried_ms(now)
        if self.sizes.is_trusted:
            service_ms *= self.sizes.factor(request)
        expected_ms = rtt_ms + load.rho(now) * (load.wait_ms(now) + service_ms)
        age_s = now - load.reported_at - FRESH_S
        if age_s > 0.0:
            expected_ms *= 1.0 + STALE_PENALTY * (age_s / STALE_S if age_s < STALE_S else 1.0)
        if load.ramp_until > now:
            expected_ms *= load.ramp(now)
        if load.errs:
            expected_ms /= 1.0 - load.error_rate(now)
        return expected_ms - self.saved_ms(request, now) if request.saves else expected_ms

    def saved_ms(self, request: RoutedRequest, now: float) -> float:
        """Return the run time that this replica spares a request, as it had others like it."""
        share = request.saves.get(self.replica.node, 0.0)
        if not share:
            return 0.0
        load = self.load
        run_ms = self.sizes.factor(request) * load.tried_ms(now)  # as in the score
        return share * load.rho(now) * run_ms

    def why_later(self, request: RoutedRequest, now: float) -> str:
        """Return why others that can take a request are asked before this replica; empty if none is for a rule."""
        later = why_later(self.replica.region, self.conditions, request.hints)
        if later:
            return later
        expected_ms = self.expected_ms(request, now)
        if expected_ms > request.timeout_s * 1000:
            return f"deadline: {expected_ms:.0f} ms are expected, {request.timeout_s * 1000:.0f} ms are left"
        return ""

    def drop_reason(
        self,
        request: RoutedRequest,
        now: float,
        tried: Collection[NodeId],
        avoid_regions: Collection[str],
    ) -> str | None:
        """Return why this replica cannot take a request now, or None if it can."""
        broken = broken_rule(self.replica.region, self.conditions, request.hints)
        if broken:
            return broken
        if lacks_memory(self.conditions, request.size_bytes):
            return "memory: the request's data would not fit"
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
        repeatable: Whether a request that may have run may be tried elsewhere, as the model says
            (`Execution.repeatable`).
        hosts: Those on which sequences of requests begin: all, or of many the ones to which every
            gateway has a link (`meshnode.routing.affinity.sequence_hosts`).
    """

    __slots__ = (
        "_all_usual", "_linked", "_rankings", "_weights", "_weights_at", "excluded", "hosts", "ready", "repeatable",
        "revision",
    )  # fmt: skip

    def __init__(
        self,
        ready: tuple[Candidate, ...],
        excluded: tuple[tuple[str, str], ...] = (),
        revision: int = 0,
        *,
        repeatable: bool = True,
        hosts: tuple[Candidate, ...] | None = None,
    ) -> None:
        self.ready = ready
        self.repeatable = repeatable
        self.hosts = ready if hosts is None else hosts
        self.excluded = excluded
        self.revision = revision
        self._linked: tuple[Candidate, ...] = ()  # of many, those that samples are drawn of
        self._weights: list[float] = []
        self._weights_at = -math.inf
        self._all_usual = all_usual([each.conditions for each in ready])
        self._rankings: dict[RoutingHints, tuple[Candidates, ...]] = {}

    def __repr__(self) -> str:
        return f"<Candidates {len(self.ready)} ready, {len(self.excluded)} not>"

    def groups(self, hints: RoutingHints) -> tuple[Candidates, ...]:
        """Return those that break no rule of a request, best group first (`meshnode.routing.eligibility`)."""
        if self._all_usual and is_plain(hints):
            return (self,)
        rule = RoutingHints(hints.region, hints.region_required, hints.labels)
        known = self._rankings.get(rule)
        if known is None:
            if len(self._rankings) >= MAX_RANKINGS:
                self._rankings.clear()
            known = self._rankings[rule] = self._ranked(rule)
        return known

    def _ranked(self, hints: RoutingHints) -> tuple[Candidates, ...]:
        groups: list[list[Candidate]] = [[] for _ in range(GROUPS)]
        for each in self.ready:
            region = each.replica.region
            if not broken_rule(region, each.conditions, hints):
                groups[group_of(region, each.conditions, hints)].append(each)
        return tuple(
            Candidates(tuple(group), revision=self.revision, repeatable=self.repeatable)
            for group in groups
            if group
        )

    def sample(self, now: float, rng: random.Random) -> tuple[Candidate, ...]:
        """Return all, or of more than `MAX_CANDIDATES_SCORED` some of those to which there is a link.

        They are drawn by capacity (slots over service time).
        """
        if len(self.ready) <= MAX_CANDIDATES_SCORED:
            return self.ready
        if now - self._weights_at >= WEIGHTS_MAX_AGE_S:
            # In a large mesh a gateway has links to few of many replicas.
            self._linked = tuple(each for each in self.ready if each.path.link is _UP)
            loads = (each.load for each in self._linked)
            self._weights = list(
                accumulate(min(MOST_SLOTS_WEIGHED, load.slots) / load.service_ms for load in loads)
            )
            self._weights_at = now
        if len(self._linked) <= MAX_CANDIDATES_SCORED:
            return self._linked
        drawn = rng.choices(self._linked, cum_weights=self._weights, k=DRAWN_OF_MANY)
        distinct = dict.fromkeys(drawn)
        if len(distinct) < FEW_DRAWN:  # a few say that they are nearly all there is
            distinct |= dict.fromkeys(rng.choices(self._linked, k=FEW_DRAWN))
        return tuple(distinct)


class Chooser(Protocol):
    """What decides where a request goes: `choose`, or a policy that the simulator compares it with."""

    def __call__(
        self,
        candidates: Candidates,
        request: RoutedRequest,
        now: float,
        rng: random.Random,
        *,
        tried: Collection[NodeId] = (),
        avoid_regions: Collection[str] = (),
    ) -> Route | None:
        """Choose a replica for one request, or None if there is no candidate; see `choose`."""
        ...


def choose(
    candidates: Candidates,
    request: RoutedRequest,
    now: float,
    rng: random.Random,
    *,
    tried: Collection[NodeId] = (),
    avoid_regions: Collection[str] = (),
    explain: bool = False,
) -> Route | None:
    """Choose a replica for one request, or None if there is no candidate.

    Those that break a rule of the request are out; of the others the first group counts that has one which can
    take the request in its time (`Candidates.groups`). Where the narrow search finds nobody, it widens: from the
    sample to all, then into the regions to avoid, then to the next group, then to those that are not expected to
    answer in time, then to replicas whose breaker yields as a last resort. Nothing is changed.

    Args:
        candidates: Who could serve.
        request: What is asked for.
        now: Monotonic seconds.
        rng: Draws the sample and the pick; the same state gives the same route.
        tried: Nodes that failed this request.
        avoid_regions: Regions to use only if there is no other.
        explain: Fill in `Route.dropped`.
    """
    groups = candidates.groups(request.hints)
    scores, eligible, reason = _best_group(groups, request, now, rng, tried, avoid_regions)
    if not eligible:
        return None
    index, how = pick(scores, eligible, request, rng)
    chosen = eligible[index]
    if not reason:
        reason = how if chosen.breaker.state is _CLOSED else "probe"
    dropped = drops(candidates, request, now, tried, avoid_regions) if explain else ()
    return Route(chosen.replica, scores[index], reason, len(eligible), dropped, chosen)


def drops(
    candidates: Candidates,
    request: RoutedRequest,
    now: float,
    tried: Collection[NodeId] = (),
    avoid_regions: Collection[str] = (),
) -> tuple[tuple[str, str], ...]:
    """Return node name and reason of each replica that cannot take a request now."""
    reasons = (
        (each, each.drop_reason(request, now, tried, avoid_regions)) for each in candidates.ready
    )
    found = tuple((each.replica.node_name, reason) for each, reason in reasons if reason)
    return candidates.excluded + found


def _best_group(
    groups: Sequence[Candidates],
    request: RoutedRequest,
    now: float,
    rng: random.Random,
    tried: Collection[NodeId],
    avoid_regions: Collection[str],
) -> tuple[list[float], list[Candidate], str]:
    """Return scores and replicas of the group to pick from, and why, if not for being good; nobody if there is none."""
    late: tuple[list[float], list[Candidate]] = [], []
    for group in groups:
        scores, eligible = _able(group, request, now, rng, tried, avoid_regions)
        if not eligible:
            continue
        if min(scores) <= request.timeout_s * 1000:
            return scores, eligible, ""
        if not late[0] or min(scores) < min(late[0]):
            late = scores, eligible
    if late[0]:
        # Nobody is expected to answer in time. Estimates err, and a replica that knows better refuses at once.
        return *late, "late"
    for group in groups:
        eligible = [
            each
            for each in group.ready
            if each.path.link is _UP
            and each.breaker.yields
            and each.replica.node not in tried
            and not lacks_memory(each.conditions, request.size_bytes)
        ]
        if eligible:
            return [each.expected_ms(request, now) for each in eligible], eligible, "last-resort"
    return [], [], ""


def _able(
    group: Candidates,
    request: RoutedRequest,
    now: float,
    rng: random.Random,
    tried: Collection[NodeId],
    avoid_regions: Collection[str],
) -> tuple[list[float], list[Candidate]]:
    """Return the scores of a group's replicas that can take a request, and those in the same order."""
    pool = group.sample(now, rng)
    scores, eligible = _scan(pool, request, now, tried, avoid_regions)
    if not eligible and (avoid_regions or pool is not group.ready):
        scores, eligible = _scan(group.ready, request, now, tried, avoid_regions)
        if not eligible:
            scores, eligible = _scan(group.ready, request, now, tried, ())
    return scores, eligible


def _scan(
    pool: Collection[Candidate],
    request: RoutedRequest,
    now: float,
    tried: Collection[NodeId],
    avoid_regions: Collection[str],
) -> tuple[list[float], list[Candidate]]:
    """Return the scores of those that can take a request, and those in the same order.

    Whose run time alone puts it out of reach of the best so far has that for its score: in a mixed fleet that
    spares most replicas the rest of the formula, and no pick is another for it.

    The conditions are those of `Candidate.drop_reason` that no group is sorted by, written out because this is the one place
    where a fraction of a microsecond per replica counts.
    """
    scores: list[float] = []
    eligible: list[Candidate] = []
    hopeless_ms = math.inf
    size_bytes = request.size_bytes if request.size_bytes >= LARGE_BYTES else 0
    for each in pool:
        if each.path.link is not _UP:
            continue
        if each.breaker.state is not _CLOSED and not each.breaker.allows(now):
            continue
        if tried and each.replica.node in tried:
            continue
        if avoid_regions and each.replica.region in avoid_regions:
            continue
        if size_bytes and lacks_memory(each.conditions, size_bytes):
            continue
        eligible.append(each)
        load = each.load
        service_ms = load.service_ms
        if hopeless_ms < service_ms <= load.trials.slow_above_ms and not each.sizes.is_trusted:
            scores.append(service_ms)
            continue
        score = each.expected_ms(request, now)
        scores.append(score)
        if NEAR_LOWEST * score < hopeless_ms and not request.saves:
            hopeless_ms = NEAR_LOWEST * score
    return scores, eligible
