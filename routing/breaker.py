"""Circuit breakers: a replica that fails is left alone for a while, then tried with one request.

Each gateway keeps one breaker per replica, driven by its own requests only. Gossip has no say: a
node may look dead to others and answer us, or look alive and answer nobody.

How it works
    A request that is sent to a replica takes a *permit* and hands it back with a *verdict* at its
    end (of a stream: at the stream's end). Every change of state starts a new *epoch*, and a
    permit of an earlier epoch no longer counts: when a link dies under fifty requests, the first
    of their failures opens the breaker and the other forty-nine say nothing new; and none of them
    can pass for the outcome of the probe that is sent a second later.

    closed      The normal state. Three failures in a row open it, a success in between starts the
                count again. A lost or stalled link opens it at once, since every further request
                would pay for it; so does "not serving", the replica's own word.
    open        No request is sent, for 1 s at first; each time that the breaker opens again before
                it stayed closed for 30 s, twice as long, up to 30 s, with jitter so that gateways
                do not probe in step. While the way to the node is down nothing probes it, so the
                time does not grow, and traffic is back as soon as the node is.
    half-open   The time is over: one request is let through as a probe. Its success closes the
                breaker, its failure opens it again. A probe without a verdict (cancelled, or a
                long stream) blocks the next one no longer than the last opening lasted.

    A breaker that opened because the *model* raised is special: the request may be to blame, and
    one client's bad input must not take a model from all others. It turns requests away while
    other replicas are there, but yields as a last resort (`yields`): then requests go out on the
    open state's own permit, and the first success closes it.

The table
    state      verdict   next       effect
    closed     success   closed     the failures in a row are forgotten
    closed     failure   closed     counted; the third opens
    closed     fatal     open
    open       success   closed     (only a last resort has a permit of this epoch)
    open       failure   open       nothing: it is open already, until its time
    open       fatal     open       opened anew: now the way is broken
    half-open  success   closed
    half-open  failure   open       for twice as long
    half-open  fatal     open       for twice as long
    any        neutral   same       a probe's place becomes free
"""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from meshnode.errors import (
    Cancelled,
    DeadlineExceeded,
    InferenceFailed,
    LinkLost,
    MeshError,
    NoReplica,
    NotServing,
    Saturated,
    UsageError,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from meshnode.routing.config import RoutingConfig
    from meshnode.types import NodeId


class BreakerState(StrEnum):
    """Whether a replica gets requests."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Verdict(StrEnum):
    """What a request's end says about the replica that ran it."""

    SUCCESS = "success"
    FAILURE = "failure"
    FATAL = "fatal"
    NEUTRAL = "neutral"


VERDICTS: Final[Mapping[type[MeshError], Verdict]] = {
    UsageError: Verdict.NEUTRAL,  # 4xx: the caller's mistake
    Saturated: Verdict.NEUTRAL,  # healthy and busy: the score's business
    NoReplica: Verdict.NEUTRAL,
    Cancelled: Verdict.NEUTRAL,
    DeadlineExceeded: Verdict.NEUTRAL,  # the caller may just be impatient; see `Attempts.failed`
    LinkLost: Verdict.FATAL,
    NotServing: Verdict.FATAL,
    InferenceFailed: Verdict.FAILURE,
    MeshError: Verdict.FAILURE,
}
"""What each family of errors says; the nearest base class in this mapping holds."""


def verdict_of(error: MeshError) -> Verdict:
    """Return what an error says about the replica that it came from."""
    return next(VERDICTS[base] for base in type(error).__mro__ if base in VERDICTS)


class Breaker:
    """The breaker of one replica.

    Attributes:
        state: As of the last event; an open one whose time is over is half-open from the next
            permit on.
        epoch: Number of changes of state so far; the permit of a closed breaker.
        cause: Code of the error that opened it last, or empty.
        retry_at: While open: when a probe may go out (monotonic seconds).
    """

    __slots__ = (
        "_closed_at",
        "_config",
        "_failures",
        "_open_s",
        "_probe_until",
        "_rng",
        "cause",
        "epoch",
        "retry_at",
        "state",
    )

    def __init__(self, config: RoutingConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self.state = BreakerState.CLOSED
        self.epoch = 0
        self.cause = ""
        self.retry_at = 0.0
        self._failures = 0
        self._closed_at: float | None = None  # None: never opened
        self._open_s = 0.0
        self._probe_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {self.state} {self.cause} epoch {self.epoch}>"

    @property
    def yields(self) -> bool:
        """Whether requests may go there when there is nobody else (see the module's text)."""
        return self.cause == InferenceFailed.code

    def allows(self, now: float) -> bool:
        """Whether a request may go out now; changes nothing."""
        if self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN:
            return now >= self.retry_at
        return now >= self._probe_until

    def take(self, now: float) -> int:
        """Return the permit of a request that is sent now; the caller saw that it may be."""
        if self.state is BreakerState.OPEN and now >= self.retry_at:
            self._enter(BreakerState.HALF_OPEN)
        if self.state is BreakerState.HALF_OPEN:
            self._probe_until = now + self._open_s
        return self.epoch

    def record(self, permit: int, verdict: Verdict, now: float, cause: str = "") -> bool:
        """Take a request's verdict; False if its permit is of an earlier epoch and means nothing.

        Args:
            permit: What `take` returned.
            verdict: What the request's end says.
            now: Monotonic seconds.
            cause: Code of the error, for people and for `yields`.
        """
        if permit != self.epoch:
            return False
        if verdict is Verdict.NEUTRAL:
            self._probe_until = now
        else:
            _ACTIONS[self.state, verdict](self, now, cause)
        return True

    def renewed(self, now: float) -> None:
        """The replica announced itself anew: an opening by its own word no longer holds."""
        if self.state is not BreakerState.CLOSED and self.cause == NotServing.code:
            self._close(now, "")

    # The actions of the table.

    def _forgive(self, _now: float, _cause: str) -> None:
        self._failures = 0

    def _count(self, now: float, cause: str) -> None:
        self._failures += 1
        if self._failures >= self._config.breaker_failures:
            self._open(now, cause)

    def _open(self, now: float, cause: str) -> None:
        config = self._config
        if self._closed_at is None or (
            self.state is BreakerState.CLOSED and now - self._closed_at >= config.breaker_max_s
        ):
            self._open_s = config.breaker_base_s
        else:
            self._open_s = min(config.breaker_max_s, 2 * self._open_s)
        self._closed_at = now
        jitter = 1.0 + config.breaker_jitter * (2.0 * self._rng.random() - 1.0)
        self.retry_at = now + self._open_s * jitter
        self.cause = cause
        self._enter(BreakerState.OPEN)

    def _close(self, now: float, _cause: str) -> None:
        self._closed_at = now
        self._failures = 0
        self._enter(BreakerState.CLOSED)

    def _stay(self, _now: float, _cause: str) -> None:
        """Nothing new."""

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self.epoch += 1


_ACTIONS: Final[Mapping[tuple[BreakerState, Verdict], Callable[[Breaker, float, str], None]]] = {
    (BreakerState.CLOSED, Verdict.SUCCESS): Breaker._forgive,
    (BreakerState.CLOSED, Verdict.FAILURE): Breaker._count,
    (BreakerState.CLOSED, Verdict.FATAL): Breaker._open,
    (BreakerState.OPEN, Verdict.SUCCESS): Breaker._close,
    (BreakerState.OPEN, Verdict.FAILURE): Breaker._stay,
    (BreakerState.OPEN, Verdict.FATAL): Breaker._open,
    (BreakerState.HALF_OPEN, Verdict.SUCCESS): Breaker._close,
    (BreakerState.HALF_OPEN, Verdict.FAILURE): Breaker._open,
    (BreakerState.HALF_OPEN, Verdict.FATAL): Breaker._open,
}


class Breakers:
    """One breaker per replica, made on first use; as many as the table has replicas."""

    def __init__(self, config: RoutingConfig, rng: random.Random) -> None:
        self._config = config
        self._rng = rng
        self._breakers: dict[tuple[NodeId, str, int], Breaker] = {}

    def __repr__(self) -> str:
        closed = sum(each.state is BreakerState.CLOSED for each in self._breakers.values())
        return f"<Breakers {closed} closed of {len(self._breakers)}>"

    def states(self) -> Counter[BreakerState]:
        """Return how many breakers are in each state."""
        return Counter(each.state for each in self._breakers.values())

    def of(self, node: NodeId, model: str, version: int) -> Breaker:
        """Return a replica's breaker."""
        key = (node, model, version)
        breaker = self._breakers.get(key)
        if breaker is None:
            breaker = self._breakers[key] = Breaker(self._config, self._rng)
        return breaker

    def forget(self, node: NodeId, model: str, version: int) -> None:
        """Drop a replica's breaker."""
        self._breakers.pop((node, model, version), None)
