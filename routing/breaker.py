"""A circuit breaker: what fails is left alone for a while, then tried with one request.

Each gateway keeps one per replica and one per node (`meshnode.routing.breakers`), driven by its own
requests. Gossip has no say: a node may look dead to others and answer us, or look alive and answer
nobody.

How it works
    A request that is sent to a replica takes a *permit* and hands it back with a *verdict* at its
    end (of a stream: at the stream's end). Every change of state starts a new *epoch*, and a
    permit of an earlier epoch no longer counts: when a link dies under fifty requests, the first
    of their failures opens the breaker and the other forty-nine say nothing new; and none of them
    can pass for the outcome of the probe that is sent a second later.

    closed      The normal state. Three failures in a row open it, a success in between starts the
                count again. A lost or stalled link opens it at once, since every further request
                would pay for it; so does "not serving", the replica's own word; and so does an
                ejection (`meshnode.routing.outliers`).
    open        No request is sent, for 1 s at first; each time that the breaker opens again before
                it stayed closed for 30 s, twice as long, up to 30 s, with jitter so that gateways
                do not probe in step. While the way to the node is down nothing probes it, so the
                time does not grow. When the way is back, a first opening is over at once; of a
                node that was lost again and again the time begins then, so that it is the node
                that has to stay, not the clock that has to run.
    half-open   The time is over: one request is let through as a probe. Its success closes the
                breaker, its failure opens it again. A probe without a verdict (cancelled, or a
                long stream) blocks the next one no longer than the last opening lasted.

    Where there is nobody else, a breaker *yields* (`yields`): requests go out all the same, on the
    permit of the state that it is in, and the first success closes it. A refusal would be an error
    for certain; a try may be answered. Only an open one that the replica opened by its own word,
    "not serving", does not yield before its time.

    A replica that fails for every gateway says how many runs failed in a row (`told`). What others
    tried there in vain need not be tried once more from here: each further failure begins the time
    anew, longer the more there were, and by chance up to twice as long, so that one gateway is the
    first to try and the others hear of it. The word that a run succeeded ends it for all.

    A failure that turns out to be the request's own (it failed in the same way elsewhere) is
    pardoned: one client's bad input must not take a model from all others.

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

import math
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
    SequenceMoved,
    UsageError,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping

    from meshnode.routing.config import RoutingConfig


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
    SequenceMoved: Verdict.NEUTRAL,  # it is being emptied, as it was asked to
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
    """One breaker.

    Attributes:
        state: As of the last event; an open one whose time is over is half-open from the next
            permit on.
        epoch: Number of changes of state so far; the permit of a closed breaker.
        cause: Code of the error that opened it last, or why it was ejected, or empty.
        retry_at: While open: when a probe may go out (monotonic seconds).
        open_s: How long the last opening lasts, without its jitter; 0 before the first.
    """

    __slots__ = (
        "_closed_at",
        "_config",
        "_failing",
        "_failures",
        "_may_open",
        "_openings",
        "_probe_until",
        "_rng",
        "_told_at",
        "cause",
        "epoch",
        "open_s",
        "retry_at",
        "state",
    )

    def __init__(
        self,
        config: RoutingConfig,
        rng: random.Random,
        may_open: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin closed.

        Args:
            config: When it opens, and for how long.
            rng: Draws the jitter.
            may_open: Asked before failures in a row open it: the ejected share has a cap.
        """
        self._config = config
        self._rng = rng
        self._may_open = may_open
        self.state = BreakerState.CLOSED
        self.epoch = 0
        self.cause = ""
        self.retry_at = 0.0
        self.open_s = 0.0
        self._failures = 0
        self._closed_at: float | None = None  # None: never opened
        self._openings = 0  # since it last stayed closed for long
        self._probe_until = 0.0
        self._failing = 0
        self._told_at = -math.inf

    def __repr__(self) -> str:
        return f"<Breaker {self.state} {self.cause} epoch {self.epoch}>"

    @property
    def yields(self) -> bool:
        """Whether requests may go there when there is nobody else (see the module's text)."""
        return self.state is not BreakerState.OPEN or self.cause != NotServing.code

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
            self._probe_until = now + self.open_s
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

    def pardon(self, permit: int, now: float) -> None:
        """The failure that was recorded for this permit was the request's own: it counts no more."""
        if permit == self.epoch:
            self._failures = max(0, self._failures - 1)
        elif permit == self.epoch - 1 and self.cause == InferenceFailed.code:
            self.retry_at = min(self.retry_at, now)  # it opened for that, or for its last third

    def eject(self, now: float, cause: str) -> None:
        """Others are so much better that this one is to be left alone, as if it had failed."""
        if self.state is BreakerState.CLOSED:
            self._open(now, cause)

    def renewed(self, now: float) -> None:
        """The replica announced itself anew: an opening by its own word no longer holds."""
        if self.state is not BreakerState.CLOSED and self.cause == NotServing.code:
            self._close(now, "")

    def reachable(self, now: float) -> None:
        """The way there is back: a first loss is forgiven, of a repeated one the time begins now."""
        if self.state is BreakerState.OPEN and self.cause == LinkLost.code:
            self.retry_at = now if self._openings == 1 else now + self._jittered_s()

    def told(self, failing: int, made_at: float, now: float) -> None:
        """The replica said how many runs failed in a row there, whoever asked.

        Args:
            failing: That number, 0 after a success; negative of those that do not say.
            made_at: When it said so (local monotonic seconds).
            now: Monotonic seconds.
        """
        if failing < 0 or made_at <= self._told_at:
            return
        before, self._failing = self._failing, failing
        if self.state is not BreakerState.OPEN or self.cause != InferenceFailed.code:
            return
        if failing == 0:
            self.retry_at = min(self.retry_at, now)
        elif failing > before:
            self._wait_for_others(now)

    # The actions of the table.

    def _forgive(self, _now: float, _cause: str) -> None:
        self._failures = 0

    def _count(self, now: float, cause: str) -> None:
        self._failures += 1
        if self._failures >= self._config.breaker_failures and self._may_open():
            self._open(now, cause)

    def _open(self, now: float, cause: str) -> None:
        config = self._config
        if self._closed_at is None or (
            self.state is BreakerState.CLOSED and now - self._closed_at >= config.breaker_max_s
        ):
            self.open_s = config.breaker_base_s
            self._openings = 1
        else:
            self.open_s = min(config.breaker_max_s, 2 * self.open_s)
            self._openings += 1
        self._closed_at = now
        self._told_at = now
        self.cause = cause
        self.retry_at = now + self._jittered_s()
        if cause == InferenceFailed.code:
            self._wait_for_others(now)
        self._enter(BreakerState.OPEN)

    def _wait_for_others(self, now: float) -> None:
        """Begin the time anew, as others are trying there, too."""
        config = self._config
        times = self._failing / config.breaker_failures
        if times > 1:
            wait_s = config.breaker_base_s * (1.0 + math.log2(times))
            self.open_s = min(config.breaker_max_s, max(self.open_s, wait_s))
            self.retry_at = max(self.retry_at, now + self.open_s * (1.0 + self._rng.random()))

    def _jittered_s(self) -> float:
        jitter = self._config.breaker_jitter
        return self.open_s * (1.0 + jitter * (2.0 * self._rng.random() - 1.0))

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
