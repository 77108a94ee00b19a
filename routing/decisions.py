"""Decisions with all that they were made from, so that they can be made again: the log and its replay.

A `Recorder` stands in the place of `choose`. Of a recorded decision it keeps the request as routing sees it, every
candidate as it was believed to be, and the seed of the draw; `replay` gives exactly that to the same `choose`, which
must come to the same replica, score and reason. So a decision that nobody understands can be looked into at leisure,
on another machine, and with other code: a change of the rules shows which decisions it would have changed.

Nothing that clients sent is kept: sizes, the region and labels that were asked for, and a digest of the session.

Recording a candidate costs some microseconds, so no more than `MAX_CANDIDATES_RECORDED_PER_S` are; on a busy gateway
decisions are left out, and the numbers of those that were kept show how many.
"""

from __future__ import annotations

import math
import random
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshnode.errors import InvalidRequest
from meshnode.limits import MAX_CANDIDATES_RECORDED_PER_S, MAX_DECISIONS_KEPT
from meshnode.routing.breaker import BreakerState
from meshnode.routing.choice import Candidate, Candidates, Terms, choose
from meshnode.routing.conditions import USUAL, NodeConditions
from meshnode.routing.load import LinkState, Path, ReplicaLoad
from meshnode.routing.request import NOTHING_SAVED, RoutedRequest
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from meshnode.routing.choice import Chooser, Route

SEED_BITS: Final = 64

_SAME: Final = 1e-9
"""Relative difference up to which two ways of adding up a score agree."""


class Seen(msgspec.Struct, frozen=True, omit_defaults=True):
    """A candidate as a gateway believed it to be.

    Attributes:
        node: Its node's id.
        name: Its node's name.
        region: Where that says it is.
        score_ms: Expected time to completion.
        terms: What that is made of.
        link: State of the link to it.
        breaker: State of its breaker.
        allows: Whether the breaker lets a request through now.
        yields: Whether it does when there is nobody else.
        retry_at: When it lets one through again (seconds of the gateway's clock); null if that is not known.
        cause: Why it opened.
        slots: Requests that the replica runs at once.
        service_ms: Time of one request there, as it says.
        conditions: Of its node.
    """

    node: str
    name: str
    region: str
    score_ms: float
    terms: Terms
    slots: int
    service_ms: float
    link: LinkState = LinkState.UP
    breaker: BreakerState = BreakerState.CLOSED
    allows: bool = True
    yields: bool = False
    retry_at: float | None = None
    cause: str = ""
    conditions: NodeConditions = USUAL


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision and all that it was made from.

    Attributes:
        number: Counts the decisions of a gateway since it started, those that were not recorded too.
        now: When (seconds of the gateway's monotonic clock).
        seed: Of the draw.
        model: What was asked for.
        seen: Every candidate.
        node: Id of the node that was chosen; null for none.
        reason: As in `Mesh-Route`; empty for none.
        score_ms: Of the one that was chosen.
        eligible: How many could have taken the request.
        version: The version that the caller insisted on, or null.
        timeout_s: Time that was left.
        rows: Of the request's first input.
        size_bytes: Of all its inputs.
        tokens: That it may write at most; 0 if it did not say.
        region: That it asked for.
        region_required: Whether that is a rule.
        labels: That it asked for.
        session: Digest of its session's word.
        home: The node that had its session, or null.
        saves: Share of its run time that it is spared, by node.
        tried: Nodes that had failed it.
        avoid_regions: Regions to use only if there was no other.
        time: When, as a calendar says it (RFC 3339); "" if the log does not.
    """

    number: int
    now: float
    seed: int
    model: str
    seen: tuple[Seen, ...]
    node: str | None = None
    reason: str = ""
    score_ms: float = 0.0
    eligible: int = 0
    version: int | None = None
    timeout_s: float = 0.0
    rows: int = 1
    size_bytes: int = 0
    tokens: int = 0
    region: str = ""
    region_required: bool = True
    labels: tuple[tuple[str, str], ...] = ()
    session: str = ""
    home: str | None = None
    saves: dict[str, float] = {}
    tried: tuple[str, ...] = ()
    avoid_regions: tuple[str, ...] = ()
    time: str = ""


class Recorder:
    """Chooses as another chooser does, and keeps what it chose from.

    Attributes:
        kept: The last decisions that were recorded, oldest first.
        decided: Decisions so far, recorded or not.
        on_decision: Called with each decision that is recorded.
    """

    def __init__(self, chooser: Chooser = choose, keep: int = MAX_DECISIONS_KEPT) -> None:
        """Keep the last so many decisions of a chooser."""
        self.kept: deque[Decision] = deque(maxlen=keep)
        self.decided = 0
        self.on_decision: Callable[[Decision], None] | None = None
        self._choose = chooser
        self._left = MAX_CANDIDATES_RECORDED_PER_S
        self._left_at = -math.inf

    def __repr__(self) -> str:
        return f"<Recorder: {len(self.kept)} of {self.decided} decisions>"

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
        """Choose, as `Chooser` says."""
        self.decided += 1
        if not self._affords(len(candidates.ready), now):
            return self._choose(
                candidates, request, now, rng, tried=tried, avoid_regions=avoid_regions
            )
        seed = rng.getrandbits(SEED_BITS)
        # Its own copy: what the other one has worked out before, such as weights, is not in the log.
        copy = Candidates(candidates.ready, candidates.excluded, candidates.revision)
        route = self._choose(
            copy, request, now, random.Random(seed), tried=tried, avoid_regions=avoid_regions
        )
        decision = recorded(
            self.decided, candidates, request, now, seed, route, tried, avoid_regions
        )
        self.kept.append(decision)
        if self.on_decision is not None:
            self.on_decision(decision)
        return route

    def _affords(self, candidates: int, now: float) -> bool:
        """Whether so many candidates may be recorded now; one large decision may leave a debt."""
        passed_s = now - self._left_at
        self._left_at = now
        full = MAX_CANDIDATES_RECORDED_PER_S
        self._left = min(full, self._left + passed_s * full)
        if self._left < 1.0:
            return False
        self._left -= candidates
        return True


def recorded(
    number: int,
    candidates: Candidates,
    request: RoutedRequest,
    now: float,
    seed: int,
    route: Route | None,
    tried: Collection[NodeId] = (),
    avoid_regions: Collection[str] = (),
) -> Decision:
    """Return a decision with all that it was made from; arguments as of `choose`, and what came of it."""
    hints = request.hints
    return Decision(
        number=number,
        now=now,
        seed=seed,
        model=request.model,
        seen=tuple(seen(each, request, now) for each in candidates.ready),
        node=None if route is None else route.replica.node,
        reason="" if route is None else route.reason,
        score_ms=0.0 if route is None else route.expected_ms,
        eligible=0 if route is None else route.candidates,
        version=request.version,
        timeout_s=request.timeout_s,
        rows=request.rows,
        size_bytes=request.size_bytes,
        tokens=request.tokens,
        region=hints.region,
        region_required=hints.region_required,
        labels=hints.labels,
        session=hints.session,
        home=request.home,
        saves={str(node): share for node, share in request.saves.items()},
        tried=tuple(tried),
        avoid_regions=tuple(avoid_regions),
    )


def seen(candidate: Candidate, request: RoutedRequest, now: float) -> Seen:
    """Return a candidate as it is believed to be now."""
    replica, load, breaker = candidate.replica, candidate.load, candidate.breaker
    retry_at = breaker.retry_at
    return Seen(
        node=replica.node,
        name=replica.node_name,
        region=replica.region,
        score_ms=candidate.expected_ms(request, now),
        terms=candidate.terms(request, now),
        slots=load.slots,
        service_ms=load.service_ms,
        link=candidate.path.link,
        breaker=breaker.state,
        allows=breaker.allows(now),
        yields=breaker.yields,
        retry_at=retry_at if math.isfinite(retry_at) else None,
        cause=breaker.cause,
        conditions=candidate.conditions,
    )


# Making a decision again.


class Replayed(NamedTuple):
    """What came of a decision that was made again.

    Attributes:
        decision: The one in the log.
        node: Id of the node that is chosen now; None for none.
        reason: Why.
        score_ms: Its score; 0 for none.
        odd: Why the log itself cannot be right, or empty: a score that its terms do not add up to.
    """

    decision: Decision
    node: str | None
    reason: str
    score_ms: float
    odd: str = ""

    @property
    def is_same(self) -> bool:
        """Whether exactly the same came out."""
        before = self.decision
        found = (self.node, self.reason, self.score_ms)
        return found == (before.node, before.reason, before.score_ms) and not self.odd


def replay(decision: Decision) -> Replayed:
    """Make a decision again, from the log alone."""
    request = request_of(decision)
    route = choose(
        candidates_of(decision),
        request,
        decision.now,
        random.Random(decision.seed),
        tried=tuple(map(NodeId, decision.tried)),
        avoid_regions=decision.avoid_regions,
    )
    odd = next((each for each in map(_odd, decision.seen) if each), "")
    if route is None:
        return Replayed(decision, None, "", 0.0, odd)
    return Replayed(decision, route.replica.node, route.reason, route.expected_ms, odd)


def read(line: bytes | str) -> Decision:
    """Read a line of a decision log.

    Raises:
        InvalidRequest: if it is none.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"no decision of a decision log: {error}") from error


_DECODER: Final = msgspec.json.Decoder(Decision)


def request_of(decision: Decision) -> RoutedRequest:
    """Return the request of a decision, as far as the log tells of it."""
    hints = RoutingHints(
        region=decision.region,
        region_required=decision.region_required,
        labels=decision.labels,
        session=decision.session,
    )
    return RoutedRequest(
        decision.model,
        decision.version,
        decision.timeout_s,
        decision.rows,
        decision.size_bytes,
        decision.tokens,
        hints,
        saves={NodeId(node): share for node, share in decision.saves.items()} or NOTHING_SAVED,
        home=None if decision.home is None else NodeId(decision.home),
    )


def candidates_of(decision: Decision) -> Candidates:
    """Return the candidates of a decision, as they were believed to be."""
    return Candidates(tuple(_Believed(each, decision) for each in decision.seen))


def _odd(each: Seen) -> str:
    made = each.terms.expected_ms
    if math.isclose(made, each.score_ms, rel_tol=_SAME, abs_tol=_SAME):
        return ""
    return f"the terms of {each.name} make {made:.6g} ms, and its score is {each.score_ms:.6g} ms"


class _StoodBreaker:
    """A breaker as it stood; it can be looked at."""

    def __init__(self, seen: Seen) -> None:
        self.state = seen.breaker
        self.yields = seen.yields
        self.retry_at = math.inf if seen.retry_at is None else seen.retry_at
        self.cause = seen.cause
        self._allows = seen.allows

    def allows(self, now: float) -> bool:
        del now
        return self._allows


class _Believed(Candidate):
    """A candidate of the log: its score is the one that was found then."""

    __slots__ = ("_seen",)

    def __init__(self, seen: Seen, decision: Decision) -> None:
        replica = Replica(
            node=NodeId(seen.node),
            node_name=seen.name,
            region=seen.region,
            zone="",
            model=decision.model,
            version=decision.version or 1,
            state=ReplicaState.READY,
            slots=seen.slots,
        )
        super().__init__(
            replica,
            ReplicaLoad(seen.slots, seen.service_ms),
            Path(seen.link, seen.terms.rtt_ms),
            _StoodBreaker(seen),  # type: ignore[arg-type]  # what is looked at is the same
            seen.terms.rtt_ms,
            seen.conditions,
        )
        self._seen = seen
        self.load.trials.slow_above_ms = 0.0  # nothing but its score says how long it takes

    def expected_ms(self, request: RoutedRequest, now: float) -> float:
        """Return the score of the log."""
        del request, now
        return self._seen.score_ms

    def terms(self, request: RoutedRequest, now: float) -> Terms:
        """Return the terms of the log."""
        del request, now
        return self._seen.terms
