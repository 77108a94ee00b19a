"""Which gateway a call tries next, for how long, and when it gives up. Pure.

A client knows several gateways, and any of them answers for the whole mesh. One `CallPlan` decides
for one call; the `Gateways` of a client remember how each gateway has behaved, for all its calls::

    plan.next(now) -> Try(gateway, ...)   connect, send, wait; then plan.failed(...) or plan.answered(...)
                   -> Wait(seconds)       every gateway has failed; some may be asked again then
                   -> GiveUp(...)         the end: the failures say each gateway and why

- The gateway that answered last comes first; one that failed goes behind the others until its
  back-off is over. Each is tried once before any is tried twice.
- What ends a call well or badly at once is no failure: any answer but 429, 502 and 503.
- A gateway whose certificate is not trusted is not asked again in the call.
- A call that must not be carried out twice goes elsewhere only when it certainly was not carried
  out: the connection was never made, or the gateway said that it did nothing. Where it has an
  idempotency key, a gateway that broke off is asked again, and no other: it knows what it has done.
- A gateway may accept a connection and then say nothing (a stopped process, a dead NAT entry), and a
  model may simply be slow. Silence alone does not tell them apart, so a try that has been silent for
  `silence_s` asks the gateway for a sign of life on a second connection. Both together take a share
  of the time that remains, so that the other gateways still have theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from meshnode.limits import (
    CLIENT_CONNECT_TIMEOUT_S,
    CLIENT_PROBE_TIMEOUT_S,
    MAX_CLIENT_BACKOFF_S,
    MAX_CLIENT_SILENCE_S,
    MAX_TRIES_PER_GATEWAY,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from meshnode.errors import MeshError

MIN_TRY_S: Final = 0.001
"""Less time than this is not worth a try: connecting on loopback alone takes about as long."""

FIRST_PAUSE_S: Final = 0.1
"""Before a gateway is tried a second time in a call; doubled for the third. A daemon that restarts
listens again within about a second, and a person does not notice a tenth of one."""

FIRST_BACKOFF_S: Final = 0.5
"""How long a gateway stays behind the others after one failure; doubled with each in a row."""

SHORTEST_SILENCE_S: Final = 0.25
"""The earliest that a silent gateway is asked for a sign of life; most answers are there by then."""

SILENCE_FACTOR: Final = 4.0
"""Silence is suspicious after this many times what answers take on average."""

_SMOOTHING: Final = 0.2  # the weight of the latest answer: about the last ten count


class Fault(StrEnum):
    """How a try ended without an answer that counts."""

    UNREACHABLE = "unreachable"
    """No connection was made: nothing can have been carried out."""
    UNTRUSTED = "untrusted"
    """Its certificate is not trusted, so nothing was sent; asking it again changes nothing."""
    REFUSED = "refused"
    """The gateway answered that it did nothing and may be asked again: its queues are full."""
    UNWELL = "unwell"
    """The gateway, or a proxy before it, answered 502 or 503; the call may have been carried out."""
    BROKEN = "broken"
    """The connection ended, or what came was no HTTP; the call may have been carried out."""
    SILENT = "silent"
    """No answer, and no sign of life either; the call may have been carried out."""


_NOTHING_RAN: Final = frozenset({Fault.UNREACHABLE, Fault.UNTRUSTED, Fault.REFUSED})
_ASKED_AGAIN: Final = frozenset({Fault.BROKEN, Fault.UNWELL})
"""After which a gateway that remembers idempotency keys is worth asking once more."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One try that failed.

    Attributes:
        gateway: Its index among the client's gateways.
        fault: How it ended.
        reason: The same for a person: a clause without a full stop.
        retry_after_s: When the gateway wants to be asked again, in seconds; None if it did not say.
        error: What the gateway answered, if it answered.
    """

    gateway: int
    fault: Fault
    reason: str
    retry_after_s: float | None = None
    error: MeshError | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """Ask this gateway now.

    Attributes:
        gateway: Its index.
        timeout_s: Seconds until the whole answer must be there.
        connect_s: Seconds for connecting, TLS included; at most `timeout_s`.
        silence_s: Seconds without a byte after which to ask for a sign of life; None for never,
            where no other gateway could be asked instead.
        probe_s: Seconds for that sign of life.
    """

    gateway: int
    timeout_s: float
    connect_s: float
    silence_s: float | None
    probe_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask for the next step again after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The call has failed.

    Attributes:
        cause: `deadline`: the time is over; `exhausted`: every gateway has failed as often as it may;
            `unrepeatable`: the call may have been carried out and must not be twice.
        failures: Every try, in order.
    """

    cause: Literal["deadline", "exhausted", "unrepeatable"]
    failures: tuple[Failure, ...]


Step = Try | Wait | GiveUp


@dataclass(slots=True)
class _Health:
    strikes: int = 0  # failures in a row
    behind_until: float = 0.0


class Gateways:
    """How the gateways of one client have behaved lately.

    Not safe for threads by itself: a client that is shared guards it and its plans with one lock.
    """

    def __init__(self, count: int) -> None:
        """`count` gateways, all unknown; the first in the list is the first to be tried."""
        self._health = [_Health() for _ in range(count)]
        self._last_good: int | None = None
        self._answer_s = 0.0

    def __repr__(self) -> str:
        strikes = [health.strikes for health in self._health]
        return f"<Gateways last good {self._last_good}, strikes {strikes}>"

    def __len__(self) -> int:
        return len(self._health)

    def ranked(self, now: float) -> list[int]:
        """Return all gateways, the one to try first at the front."""

        def key(gateway: int) -> tuple[float, bool, int]:
            behind = self._health[gateway].behind_until
            return (behind if behind > now else 0.0, gateway != self._last_good, gateway)

        return sorted(range(len(self._health)), key=key)

    def answered(self, gateway: int, took_s: float) -> None:
        """Note that a gateway answered, after so many seconds."""
        self._health[gateway] = _Health()
        self._last_good = gateway
        self._answer_s += _SMOOTHING * (took_s - self._answer_s)

    def failed(self, failure: Failure, now: float, rng: random.Random) -> None:
        """Put a gateway behind the others for a while."""
        health = self._health[failure.gateway]
        backoff_s = min(FIRST_BACKOFF_S * 2.0**health.strikes, MAX_CLIENT_BACKOFF_S) * _jitter(rng)
        health.strikes = min(health.strikes + 1, 16)  # beyond it the doubling no longer counts
        health.behind_until = now + max(
            backoff_s, min(failure.retry_after_s or 0.0, MAX_CLIENT_BACKOFF_S)
        )
        if self._last_good == failure.gateway:
            self._last_good = None

    @property
    def silence_s(self) -> float:
        """Seconds of silence that are out of the ordinary."""
        return min(max(SILENCE_FACTOR * self._answer_s, SHORTEST_SILENCE_S), MAX_CLIENT_SILENCE_S)


class CallPlan:
    """The tries of one call."""

    def __init__(
        self,
        gateways: Gateways,
        *,
        now: float,
        deadline: float,
        rng: random.Random,
        repeatable: bool = True,
        keyed: bool = False,
        only: int | None = None,
        max_tries: int = MAX_TRIES_PER_GATEWAY,
    ) -> None:
        """Begin a call.

        Args:
            gateways: The client's, shared by its calls.
            now: Monotonic seconds.
            deadline: When the whole call must have ended, on the same clock.
            rng: For the pauses.
            repeatable: Whether the call may be carried out twice.
            keyed: Whether it has an idempotency key.
            only: The one gateway that can answer it; None for any.
            max_tries: How often each gateway is tried.
        """
        self._gateways = gateways
        self._deadline = deadline
        self._rng = rng
        self._repeatable = repeatable
        self._keyed = keyed
        self._max_tries = max_tries
        mine: Sequence[int] = range(len(gateways)) if only is None else (only,)
        self._tries = dict.fromkeys(mine, 0)
        self._due = dict.fromkeys(mine, now)
        self._began = now
        self._may_have_run = False
        self._unrepeatable = False
        self.failures: list[Failure] = []

    def __repr__(self) -> str:
        return f"<CallPlan tries {self._tries}, until {self._deadline:.3f}>"

    def next(self, now: float) -> Step:
        """Say what to do now."""
        if self._unrepeatable:
            return self._give_up("unrepeatable")
        if self._deadline - now < MIN_TRY_S:
            return self._give_up("deadline")
        left = [each for each, tries in self._tries.items() if tries < self._max_tries]
        if not left:
            return self._give_up("exhausted")
        due = {each for each in left if self._due[each] <= now}
        if due:
            ranked = [each for each in self._gateways.ranked(now) if each in due]
            return self._try(min(ranked, key=self._tries.__getitem__), now)
        soonest = min(self._due[each] for each in left)
        if self._deadline - soonest < MIN_TRY_S:
            return self._give_up("exhausted")
        return Wait(soonest - now)

    def answered(self, gateway: int, now: float) -> None:
        """Note the answer that ends the call."""
        self._gateways.answered(gateway, now - self._began)

    def failed(self, failure: Failure, now: float) -> None:
        """Note how the last try ended."""
        gateway = failure.gateway
        self.failures.append(failure)
        self._gateways.failed(failure, now, self._rng)
        pause_s = FIRST_PAUSE_S * 2.0 ** (self._tries[gateway] - 1) * _jitter(self._rng)
        self._due[gateway] = now + max(pause_s, failure.retry_after_s or 0.0)
        if failure.fault is Fault.UNTRUSTED:
            self._tries[gateway] = self._max_tries
        if self._repeatable or failure.fault in _NOTHING_RAN:
            return
        self._may_have_run = True
        if self._keyed and failure.fault in _ASKED_AGAIN:
            self._tries = {gateway: self._tries[gateway]}
        else:
            self._unrepeatable = True

    def _try(self, gateway: int, now: float) -> Try:
        self._tries[gateway] += 1
        self._began = now
        remaining_s = self._deadline - now
        untried = sum(1 for tries in self._tries.values() if not tries)
        if len(self._gateways) == 1:
            connect_s = min(CLIENT_CONNECT_TIMEOUT_S, remaining_s)
            return Try(gateway, remaining_s, connect_s, None, CLIENT_PROBE_TIMEOUT_S)
        # The others, or another try, shall have as much time as this one.
        share_s = remaining_s / (max(untried, 1) + 1)
        return Try(
            gateway,
            timeout_s=remaining_s,
            connect_s=min(CLIENT_CONNECT_TIMEOUT_S, share_s),
            silence_s=min(self._gateways.silence_s, share_s / 2),
            probe_s=min(CLIENT_PROBE_TIMEOUT_S, share_s / 2),
        )

    def _give_up(self, cause: Literal["deadline", "exhausted", "unrepeatable"]) -> GiveUp:
        return GiveUp("unrepeatable" if self._may_have_run else cause, tuple(self.failures))


def _jitter(rng: random.Random) -> float:
    """Return a factor around 1, so that clients that failed together do not come back together."""
    return rng.uniform(0.5, 1.5)
