"""What a gateway believes about each replica's load, and about the path to its node.

Three sources, none of them trusted alone:

- what a replica says (`LoadReport`): with each answer, by gossip, or by a probe. It is a hint from
  another machine, so its numbers are brought into range, and a missing one is never read as zero;
- what this gateway sent itself: exact, and so a lower bound of what is in the system there;
- how long answers really took: rho, the ratio of observed over predicted time, corrects replicas
  that are slower than they say (throttled, asleep, lying).

**rho.** Run times differ by chance and by size, so one slow answer proves nothing. Observed times, as multiples of
what was predicted, are taken to be exponentially distributed around rho. Then the best guess is their sum over
their number, where a request that is still in flight, or that nobody waited for to its end, counts with the time
that it took so far, but not in the number: a replica that says nothing at all looks slower by the second. A few
answers as predicted are assumed beforehand, one standard deviation is taken off, since who is not proven slow is
not slow, and what was seen fades within ten seconds. The sums are kept in service times, so that a replica that
says by itself how slow it has become is not punished twice.

Each request in flight is a `Flight`, which is opened once and closed once, whatever happens to
the request; `outstanding` is the number of open ones.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CLAIMED_REQUESTS, MAX_CLAIMED_SERVICE_MS
from meshnode.routing.doubts import Doubts
from meshnode.routing.queues import UsualQueue
from meshnode.routing.trials import Trials
from meshnode.routing.waits import LEAST_ANSWERS, Waits

if TYPE_CHECKING:
    from meshnode.routing.alike import Alike
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.service_model import SizeModel
    from meshnode.wire.messages import LoadReport

DECAY_S: Final = 10.0
"""Time constant of rho and of the error rate: what was seen 10 s ago counts for a third."""

MAX_RHO: Final = 8.0
"""Slower than eight times its own word a replica is avoided anyway; one outlier must not cost it
minutes."""

ASSUMED_ANSWERS: Final = 4.0
"""Answers as predicted that are assumed before any was seen: one large request does not look like a slow node."""

ANOTHER_SPEED: Final = 1.5
"""A replica that says that it has become so many times faster is judged anew: what was seen was another speed."""

QUICK_FACTOR: Final = 3.0
"""A trial that takes up to so many times the usual run time was quick: run times differ by chance."""

RAMP: Final = 2.0
"""A replica that has just begun to serve seems so many times slower at first, and less each moment, as its first runs
are its slowest and all gateways hear of it at once."""

RAMP_S: Final = 3.0
"""Seconds until a new replica seems as fast as it says."""

ERROR_GAIN: Final = 0.2
"""Share of the newest outcome in the error rate: two failures show, five dominate."""

MAX_ERROR: Final = 0.95
"""A failing replica looks at most twenty times slower, so that it is tried again one day."""

OVERHEAD_MS: Final = 1.0
"""Loop, codec and kernel time in an observed answer that no prediction covers; without it the
ratio of a model that takes microseconds would be noise."""

WITH_ANSWER_S: Final = 0.01
"""A report that is heard of at most so long before an answer's end came with it."""

HALF_BUSY: Final = 0.5
"""Share of the slots that are taken to be in use where a request had not to wait."""

MIN_SERVICE_MS: Final = 1e-3
"""A tiny model takes a few microseconds; zero would make any queue look free."""


class LinkState(StrEnum):
    """The way to a node, as this gateway's own link sees it."""

    UP = "up"
    GOING_AWAY = "going away"
    STALLED = "stalled"
    DOWN = "down"


class Path:
    """The way to one node.

    Attributes:
        link: The state of its link.
        rtt_ms: Its round trip in milliseconds; None if it was not measured.
        is_relayed: Whether the link that is up, or was up last, goes through another node.
    """

    __slots__ = ("is_relayed", "link", "rtt_ms")

    def __init__(self, link: LinkState = LinkState.DOWN, rtt_ms: float | None = None) -> None:
        self.link = link
        self.rtt_ms = rtt_ms
        self.is_relayed = False

    def __repr__(self) -> str:
        return f"<Path {self.link} {self.rtt_ms} ms>"


class Flight:
    """One request on its way to a replica, from the try to its outcome."""

    __slots__ = (
        "counted", "load", "predicted_ms", "request", "rtt_ms", "sizes", "started_at", "told_wait", "trial_ms", "weight",
    )  # fmt: skip

    def __init__(self, load: ReplicaLoad, started_at: float, rtt_ms: float, work_ms: float) -> None:
        self.load = load
        self.started_at = started_at
        self.rtt_ms = rtt_ms
        self.predicted_ms = work_ms
        self.weight = load.service_ms / (work_ms + OVERHEAD_MS)  # makes service times of its time
        self.counted = False  # whether a report made since then has counted it
        self.told_wait = 0.0  # the wait that the replica's report made expect, in service times
        self.trial_ms = (
            0.0  # the time that would show that its replica is well again; 0 if it is no trial
        )
        self.request: RoutedRequest | None = None
        self.sizes: SizeModel | None = None  # what its run time teaches

    def __repr__(self) -> str:
        return f"<Flight since {self.started_at:.3f}, predicted {self.predicted_ms:.3g} ms>"


class ReplicaLoad:
    """The beliefs about one replica.

    Attributes:
        in_system: Requests running and queued there, as last reported.
        slots: Requests that it runs at once.
        service_ms: Its own average of one request's run time, evened out with alike replicas'; before that, its
            profile's or a guess.
        reported_at: When that report was made (local monotonic seconds); -inf for never.
        outstanding: This gateway's requests in flight there.
        waits: How long its own requests waited there.
        trials: Whether it was slow, and is tried again.
        doubts: Whether its reports count what is there. While they do not, `in_system` is what own requests met.
        alike: Replicas that should be as fast; None if none is known.
        usual_queue: What it has on average.
    """

    __slots__ = (
        "_answers",
        "_counted_at",
        "_error",
        "_error_at",
        "_open",
        "_open_from",
        "_open_weight",
        "_seen_at",
        "_seen_ms",
        "_since_report",
        "alike",
        "doubts",
        "in_system",
        "outstanding",
        "ramp_until",
        "reported_at",
        "service_ms",
        "slots",
        "trials",
        "usual_queue",
        "waits",
    )

    def __init__(self, slots: int, service_ms: float) -> None:
        self.in_system = 0
        self.slots = slots
        self.service_ms = service_ms
        self.reported_at = -math.inf
        self.outstanding = 0
        self.waits = Waits()
        self.usual_queue = UsualQueue()
        self.alike: Alike | None = None
        # Own requests that the last report cannot have counted, oldest first. Each is in flight,
        # so these are `outstanding` at most, which the link's stream limit bounds.
        self._since_report: deque[Flight] = deque()
        self._open: dict[Flight, None] = {}  # all of them, in the same order
        self._counted_at = -math.inf  # when `in_system` was what it says
        self.doubts = Doubts()
        self.trials = Trials()
        # What was observed, in service times (see the module's text): of those that ended, faded to
        # `_seen_at`, and of those in flight as sums of weights, and of weights times their beginnings.
        self._answers = 0.0
        self._seen_ms = 0.0
        self._seen_at = 0.0
        self._open_weight = 0.0
        self._open_from = 0.0
        self._error = 0.0
        self._error_at = -math.inf
        self.ramp_until = -math.inf

    def __repr__(self) -> str:
        return (
            f"<ReplicaLoad {self.queued}/{self.slots} in system, {self.outstanding} own, "
            f"{self.service_ms:.3g} ms, errors {self._error:.2f}>"
        )

    @property
    def queued(self) -> int:
        """Requests believed to be there: never less than those of this gateway itself."""
        return max(self.in_system + len(self._since_report), self.outstanding)

    def wait_ms(self, now: float) -> float:
        """Return how long one more request waits for its turn."""
        wait = self._told_wait(now)
        waits = self.waits
        if waits.answers >= LEAST_ANSWERS and (wait > 0.0 or waits.level > 0.0):
            wait = waits.expected(wait, now)
            own = (self.outstanding + 1 - self.slots) / self.slots
            if own > wait:
                wait = own
        return wait * self.service_ms

    def _told_wait(self, now: float) -> float:
        """Return the wait, in service times, that the last report makes expect, and what was sent since."""
        slots, usual = self.slots, self.usual_queue
        queued: float = self.in_system
        sent = len(self._since_report)
        if usual.is_known:
            level = usual.level
            # What is there lies between the two: where neither fills the slots, nobody waits.
            if queued + sent < slots and level + sent + 1 <= slots and self.outstanding < slots:
                return 0.0
            if queued != level and now > self._counted_at:
                # As `UsualQueue.expected`, written out: it is done for each candidate of each request.
                queued = level + math.exp((self._counted_at - now) / usual.kept_s) * (
                    queued - level
                )
        elif self.alike is not None and self.alike.crowd is not None:
            queued = (
                self.alike.crowd * slots
            )  # nothing was heard of it, which is not to say that it is idle
        queued += sent
        if self.outstanding > queued:
            queued = self.outstanding
        return (queued + 1 - slots) / slots if queued + 1 > slots else 0.0

    def rho(self, now: float) -> float:
        """Return how many times slower than predicted answers are, 1 to `MAX_RHO`."""
        seen_ms, service_ms = self._seen_ms, self.service_ms
        if not self.outstanding and (seen_ms <= 0.0 or now - self._seen_at >= self.trials.after_s):
            return 1.0
        open_ms = (now * self._open_weight - self._open_from) * 1000
        if open_ms < 0.0:
            open_ms = 0.0
        excess_ms = seen_ms - self._answers * service_ms
        if excess_ms < 0.0:
            excess_ms = 0.0
        # However little has faded: with up to four runs more than there were answers the formula below gives no
        # more than 1. That is nearly always so, and the exponential is what costs.
        if excess_ms + open_ms <= ASSUMED_ANSWERS * service_ms:
            return 1.0
        fade = math.exp((self._seen_at - now) / DECAY_S)
        answers = ASSUMED_ANSWERS + fade * self._answers
        seen = (fade * seen_ms + open_ms) / service_ms
        rho = (ASSUMED_ANSWERS + seen) / answers * (1.0 - 1.0 / math.sqrt(answers))
        return min(MAX_RHO, max(1.0, rho))

    def tried_ms(self, now: float) -> float:
        """Return the run time to reckon with: what it says, or what is usual of one that is due for a trial."""
        trials = self.trials
        if (
            self.service_ms <= trials.slow_above_ms
            or self.queued > trials.quick
            or now - self._seen_at < trials.after_s
        ):
            return self.service_ms
        return trials.usual_ms

    def ramp(self, now: float) -> float:
        """Return the factor for a replica that has just begun to serve, 1 to `RAMP`."""
        return 1.0 + (RAMP - 1.0) * min(1.0, max(0.0, self.ramp_until - now) / RAMP_S)

    @property
    def errs(self) -> bool:
        """Whether there was a failure."""
        return self._error > 0.0

    def error_rate(self, now: float) -> float:
        """Return the share of failures expected, 0 to `MAX_ERROR`."""
        if self._error <= 0.0:
            return 0.0
        return self._error * math.exp((self._error_at - now) / DECAY_S)

    def start(self, now: float, rtt_ms: float, service_ms: float | None = None) -> Flight:
        """Count a request that is sent now.

        Args:
            now: Monotonic seconds.
            rtt_ms: Round trip to the replica.
            service_ms: Its own run time there, as its size says; None for the average.
        """
        own_ms = self.service_ms if service_ms is None else service_ms
        flight = Flight(self, now, rtt_ms, self.wait_ms(now) + own_ms)
        flight.told_wait = self._told_wait(now)
        tried_ms = self.tried_ms(now)
        if tried_ms < self.service_ms or self._overlooks_rho(now):
            flight.trial_ms = own_ms * tried_ms / self.service_ms
        self.outstanding += 1
        self._open_weight += flight.weight
        self._open_from += flight.weight * (now + rtt_ms / 1000)
        self._since_report.append(flight)
        self._open[flight] = None
        return flight

    def _overlooks_rho(self, now: float) -> bool:
        """Whether it was slower than it says, and is due for a trial."""
        is_due = not self.outstanding and now - self._seen_at >= self.trials.after_s
        return is_due and self._seen_ms > self._answers * self.service_ms

    def finish(
        self,
        flight: Flight,
        now: float,
        ok: bool | None,
        report: LoadReport | None = None,
        run_ms: float = 0.0,
        *,
        timed: bool = True,
    ) -> None:
        """Take a request's outcome; call it once for each `start`.

        Args:
            flight: What `start` returned.
            now: Monotonic seconds.
            ok: True for an answer, False for a failure that the replica or the path is to blame
                for, None for anything else (cancelled, refused, the caller's own mistake).
            report: The load that came with the answer.
            run_ms: How long the request ran there, as the replica says; 0 if it does not.
            timed: Whether the time that it took says how fast the replica is. That of a failure says nothing:
                its link may be to blame, and the breaker and the error rate count it.
        """
        self.outstanding -= 1
        del self._open[flight]
        if not flight.counted:
            self._since_report.remove(flight)
        self._observe(flight, now, ok, timed=timed and ok is not False)
        if run_ms > 0.0:
            self._ran(flight, now, run_ms)
        if ok is not None:
            self._count_error(now, 0.0 if ok else 1.0)
        if report is not None:
            self.report(report, now - flight.rtt_ms / 2000, flight.rtt_ms)
        if ok and run_ms > 0.0 and self.service_ms > OVERHEAD_MS:
            self._check_report(flight, now, run_ms)

    def _check_report(self, flight: Flight, now: float, run_ms: float) -> None:
        """Hold the report that came with an answer against what is there for certain; take what was met instead, if need be."""
        rtt_s = flight.rtt_ms / 1000
        if now - self.reported_at <= rtt_s + WITH_ANSWER_S:
            self.doubts.check((each.started_at for each in self._open), rtt_s, now)
        arrived_at = flight.started_at + rtt_s / 2
        if not self.doubts.are_grave or arrived_at < self._counted_at:
            return
        took_ms = (now - flight.started_at) * 1000
        waited_ms = took_ms - flight.rtt_ms - run_ms
        if waited_ms > OVERHEAD_MS:
            found = self.slots - 1 + self.slots * waited_ms / self.service_ms
        else:
            found = HALF_BUSY * self.slots
        self._count(min(MAX_CLAIMED_REQUESTS, round(found)), arrived_at)
        self._since_report.clear()
        for each in self._open:
            each.counted = each.started_at <= flight.started_at
            if not each.counted:
                self._since_report.append(each)

    def _count(self, in_system: int, at: float) -> None:
        """So many requests were there at that time."""
        if -math.inf < self._counted_at < at:
            self.usual_queue.held(self.in_system, at - self._counted_at)
        self._counted_at = at
        self.in_system = in_system
        crowd = None if self.alike is None else self.alike.crowd
        self.usual_queue.told(self.slots, self.service_ms, crowd)

    def report(self, report: LoadReport, made_at: float, rtt_ms: float) -> None:
        """Take what a replica says about its load; older word than the last one is ignored.

        Args:
            report: Its numbers, brought into range here.
            made_at: When it said so (local monotonic seconds).
            rtt_ms: Round trip to it: what was sent less than half of it before cannot be counted.
        """
        if made_at < self.reported_at:
            return
        if self.reported_at > -math.inf:
            self.trials.held(self.service_ms, made_at)
        else:
            self.trials.begins(made_at)
        self.reported_at = made_at
        told = self.doubts.told = min(MAX_CLAIMED_REQUESTS, max(0, report.in_system))
        self.slots = min(MAX_CLAIMED_REQUESTS, max(1, report.slots))
        if self.alike is not None:
            self.alike.heard(told / self.slots)
        if math.isfinite(report.service_ms):
            before_ms = self.service_ms
            told_ms = min(MAX_CLAIMED_SERVICE_MS, max(MIN_SERVICE_MS, report.service_ms))
            alike = self.alike
            self.service_ms = told_ms if alike is None else alike.evened(self, told_ms, made_at)
            if self.service_ms * ANOTHER_SPEED < before_ms:
                self._answers = self._seen_ms = 0.0
        if self.doubts.are_grave:
            return
        self._count(told, made_at)
        sent_before = made_at - rtt_ms / 2000
        since = self._since_report
        while since and since[0].started_at <= sent_before:
            since.popleft().counted = True

    def _observe(self, flight: Flight, now: float, ok: bool | None, *, timed: bool) -> None:
        """Take how long a request took, and of one that was given up that it would have taken longer."""
        if self.outstanding:
            self._open_weight -= flight.weight
            self._open_from -= flight.weight * (flight.started_at + flight.rtt_ms / 1000)
        else:  # so that no rounding remains
            self._open_weight = self._open_from = 0.0
        if not timed:
            return
        observed_ms = max(0.0, (now - flight.started_at) * 1000 - flight.rtt_ms)
        most_ms = 2 * MAX_RHO * flight.load.service_ms  # one outlier must not cost it minutes
        if flight.trial_ms > 0.0:
            quick_ms = QUICK_FACTOR * (flight.trial_ms + OVERHEAD_MS)
            self.trials.ended(quick=bool(ok) and observed_ms <= quick_ms)
            if self.trials.quick:  # as good as ever: what was seen before counts no more
                self._answers = self._seen_ms = 0.0
        fade = math.exp((self._seen_at - now) / DECAY_S)
        self._seen_ms = fade * self._seen_ms + min(most_ms, observed_ms * flight.weight)
        self._answers = fade * self._answers + (1.0 if ok else 0.0)
        self._seen_at = now

    def _ran(self, flight: Flight, now: float, run_ms: float) -> None:
        """Learn from how long a request ran what its size costs, and how long it had waited."""
        took_ms = (now - flight.started_at) * 1000
        run_ms = min(run_ms, took_ms)  # whatever it says, it cannot have run for longer
        waited_ms = max(0.0, took_ms - flight.rtt_ms - run_ms)
        if self.service_ms > OVERHEAD_MS:
            self.waits.observe(flight.told_wait, waited_ms / self.service_ms, now)
        if flight.sizes is not None and flight.request is not None:
            flight.sizes.observe(flight.request, run_ms, self.service_ms)

    def _count_error(self, now: float, error: float) -> None:
        known = self.error_rate(now)
        self._error = min(MAX_ERROR, known + ERROR_GAIN * (error - known))
        self._error_at = now
