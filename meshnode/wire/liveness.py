"""Whether the peer still speaks: pings, round-trip time, stalled and dead.

TCP does not say that a peer is frozen (SIGSTOP, a swapping laptop, a cut cable): its kernel goes
on accepting bytes. So a link watches for silence. How soon silence means something depends on
whether the peer owes us an answer:

| state   | meaning                                       | left by                                        |
|---------|-----------------------------------------------|------------------------------------------------|
| quiet   | the peer answered lately, or owes nothing     | owed and silent `stall_ping_after_s` → probing |
| probing | a ping is out, its answer or another awaited  | an answer → quiet; `stall_after_s` → stalled   |
| stalled | told once; requests should go elsewhere       | an answer → quiet (told: recovered)            |
| dead    | without any byte for `dead_after_s`, told once| never: the driver closes the connection        |

Any byte of a stream counts as an answer, for a peer that sends a large tensor cannot answer a ping
in the middle of a frame. Pings and notes, which a peer sends of its own accord, prove that it lives, but
not that it hears: where a network is broken in one direction, it goes on gossiping and gets no
request. One ping is outstanding at a time: the connection is reliable, so a second one would
arrive no sooner. Another goes out `ping_interval_s` after the last was sent and answered, traffic
or not, which keeps the round-trip time fresh and gives an idle link something to be silent about.

Once `PINGS_UNTIL_IDLE` of them have gone out and this side asked nothing meanwhile, the link is idle
until it asks again, and a ping is due only after `idle_ping_after_s` of silence. The side that
accepted waits `PATIENCE_S` longer, so that one side's pings serve both; for a round-trip time of its
own it pings every `rtt_age_s`. When silence means a stall or death is not touched by that: a stall
needs something owed and brings its own ping, and death is counted from the last byte.

A process that was itself asleep (a blocked event loop, a suspended laptop) must not blame its
peers: `next_tick` remembers the time it asked for, and a `tick` that comes much later than that
restarts the waiting and spoils the sample under way.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshnode.wire.config import LinkConfig

RTT_SMOOTHING: Final = 1 / 8
"""Weight of a new sample in the smoothed round-trip time (RFC 6298, section 2, alpha)."""

STALL_WAIT_RTTS: Final = 2.0
"""A ping's answer may take this many smoothed round trips before its absence means a stall."""

PINGS_UNTIL_IDLE: Final = 8
"""Pings in a row without a question, after which a link is idle: as many as it takes until the mean
has forgotten two thirds of a round trip that was measured in the bustle of a start."""

PATIENCE_S: Final = 1.0
"""How much longer one side of an idle link waits for the other's ping: more than a round trip."""


class Verdict(Enum):
    """What a tick found."""

    FINE = auto()
    PING = auto()
    STALLED = auto()
    DEAD = auto()


class Liveness:
    """Watches one connection; see the module's text.

    Attributes:
        rtt_s: Smoothed round-trip time in seconds, None until the first ping is answered.
        stalled: Whether the peer is silent although it owes something.
        dead: Whether the connection was given up.
        token: Number of the last ping.
    """

    __slots__ = (
        "_asked_at", "_config", "_deaf_since", "_idle_after_s", "_idle_pings", "_pinged_at",
        "_probing_since", "_sample_valid", "_silent_since", "_unanswered", "dead", "rtt_s",
        "stalled", "token",
    )  # fmt: skip

    def __init__(self, config: LinkConfig, now: float, *, dialler: bool = True) -> None:
        """Begin at `now`, with the first ping due at once."""
        self._config = config
        self._idle_after_s = config.idle_ping_after_s + (0.0 if dialler else PATIENCE_S)
        self._silent_since = now  # without any byte
        self._deaf_since = now  # without one that shows that the peer hears
        self._pinged_at = now - config.ping_interval_s
        self._idle_pings = 0  # in a row
        self._unanswered = False
        self._sample_valid = False
        self._probing_since: float | None = None
        self._asked_at: float | None = None
        self.rtt_s: float | None = None
        self.stalled = False
        self.dead = False
        self.token = 0

    def __repr__(self) -> str:
        state = "quiet" if self._probing_since is None else "probing"
        state = "dead" if self.dead else "stalled" if self.stalled else state
        rtt = "unknown" if self.rtt_s is None else f"{self.rtt_s * 1000:.1f} ms"
        return f"<Liveness {state} rtt={rtt}>"

    @property
    def ping_is_out(self) -> bool:
        """Whether a ping waits for its answer; the next is due only after that."""
        return self._unanswered

    def heard(self, now: float, *, unasked: bool = False) -> bool:
        """Note that bytes came; `unasked` if a peer that hears nothing sends them too.

        Returns whether that ends a stall.
        """
        self._silent_since = now
        if unasked:
            return False
        self._deaf_since = now
        self._probing_since = None
        recovered = self.stalled
        self.stalled = False
        return recovered

    def answered(self, token: int, now: float) -> float | None:
        """Note a PONG. Returns the round-trip time in seconds if it is a valid sample."""
        if not self._unanswered or token != self.token:
            return None
        self._unanswered = False
        if not self._sample_valid:
            return None
        sample_s = now - self._pinged_at
        if self.rtt_s is None:
            self.rtt_s = sample_s
        else:
            self.rtt_s += RTT_SMOOTHING * (sample_s - self.rtt_s)
        return sample_s

    def ask(self, now: float) -> int:
        """Note that a ping goes out now, whatever is due; return its token. Only its answer counts."""
        self._ping(now)
        return self.token

    def tick(self, now: float, *, owed: bool) -> Verdict:
        """Say what is due now; `owed` is whether the peer owes an answer.

        On PING the caller sends one with `token`. A call says one thing; if more is due,
        `next_tick` names the present.
        """
        self._forgive_own_sleep(now)
        if owed:
            self._idle_pings = 0
        if self.dead:
            return Verdict.FINE
        if now >= self._silent_since + self._config.dead_after_s:
            self.dead = True
            return Verdict.DEAD
        if owed and not self.stalled and now >= self._stall_step_at():
            if self._probing_since is not None:
                self.stalled = True
                self._sample_valid = False
                return Verdict.STALLED
            self._probing_since = now
            return Verdict.FINE if self._unanswered else self._ping(now)
        if not self._unanswered and now >= self._ping_at():
            return self._ping(now)
        return Verdict.FINE

    def next_tick(self, now: float, *, owed: bool) -> float | None:
        """Return when `tick` is due, at the earliest `now`; None once dead."""
        if self.dead:
            return None
        if owed:
            self._idle_pings = 0
        due = self._silent_since + self._config.dead_after_s
        if not self._unanswered:
            due = min(due, self._ping_at())
        if owed and not self.stalled:
            due = min(due, self._stall_step_at())
        self._asked_at = max(due, now)  # what is overdue already is not the caller's lateness
        return self._asked_at

    def _ping_at(self) -> float:
        """When the next regular ping goes out, if the last was answered."""
        if self._idle_pings < PINGS_UNTIL_IDLE:
            return self._pinged_at + self._config.ping_interval_s
        return min(
            self._silent_since + self._idle_after_s, self._pinged_at + self._config.rtt_age_s
        )

    def _stall_step_at(self) -> float:
        """When silence turns quiet into probing, or probing into stalled."""
        if self._probing_since is None:
            return self._deaf_since + self._config.stall_ping_after_s
        wait_s = max(self._config.stall_after_s, STALL_WAIT_RTTS * (self.rtt_s or 0.0))
        return self._probing_since + wait_s

    def _ping(self, now: float) -> Verdict:
        self._pinged_at = now
        self._idle_pings += 1
        self._unanswered = True
        self._sample_valid = True
        self.token += 1
        return Verdict.PING

    def _forgive_own_sleep(self, now: float) -> None:
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is None or now - asked_at <= self._config.late_tick_s:
            return
        self._silent_since = self._deaf_since = now
        self._sample_valid = False
        if self._probing_since is not None:
            self._probing_since = now
