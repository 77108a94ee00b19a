"""What a gateway believes about each replica's load, and about the path to its node.

Three sources, none of them trusted alone:

- what a replica says (`LoadReport`): with each answer, by gossip, or by a probe. It is a hint from
  another machine, so its numbers are brought into range, and a missing one is never read as zero;
- what this gateway sent itself: exact, and so a lower bound of what is in the system there;
- how long answers really took: rho, the ratio of observed over predicted time, corrects replicas
  that are slower than they say (throttled, asleep, lying).

Each request in flight is a `Flight`, which is opened once and closed once, whatever happens to
the request; `outstanding` is the number of open ones.
"""

from __future__ import annotations

import math
from collections import deque
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_CLAIMED_REQUESTS, MAX_CLAIMED_SERVICE_MS

if TYPE_CHECKING:
    from meshnode.types import NodeId
    from meshnode.wire.messages import LoadReport

DECAY_S: Final = 10.0
"""Time constant of rho and of the error rate: what was seen 10 s ago counts for a third."""

MAX_RHO: Final = 8.0
"""Slower than eight times its own word a replica is avoided anyway; one outlier must not cost it
minutes."""

RATIO_GAIN: Final = 0.1
"""Share of the newest answer in the average of observed over predicted time: about the last ten
answers, so that one large request does not look like a slow node."""

ERROR_GAIN: Final = 0.2
"""Share of the newest outcome in the error rate: two failures show, five dominate."""

MAX_ERROR: Final = 0.95
"""A failing replica looks at most twenty times slower, so that it is tried again one day."""

OVERHEAD_MS: Final = 1.0
"""Loop, codec and kernel time in an observed answer that no prediction covers; without it the
ratio of a model that takes microseconds would be noise."""

MIN_SERVICE_MS: Final = 1e-3
"""A tiny model takes a few microseconds; zero would make any queue look free."""


class LinkState(StrEnum):
    """The way to a node, as this gateway's own link sees it."""

    UP = "up"
    GOING_AWAY = "going away"
    STALLED = "stalled"
    DOWN = "down"


class Path:
    """The way to one node: its link's state and round trip in milliseconds (None: not measured)."""

    __slots__ = ("link", "rtt_ms")

    def __init__(self, link: LinkState = LinkState.DOWN, rtt_ms: float | None = None) -> None:
        self.link = link
        self.rtt_ms = rtt_ms

    def __repr__(self) -> str:
        return f"<Path {self.link} {self.rtt_ms} ms>"


class Flight:
    """One request on its way to a replica, from the try to its outcome."""

    __slots__ = ("counted", "load", "predicted_ms", "rtt_ms", "started_at")

    def __init__(self, load: ReplicaLoad, started_at: float, rtt_ms: float, work_ms: float) -> None:
        self.load = load
        self.started_at = started_at
        self.rtt_ms = rtt_ms
        self.predicted_ms = work_ms
        self.counted = False  # whether a report made since then has counted it

    def __repr__(self) -> str:
        return f"<Flight since {self.started_at:.3f}, predicted {self.predicted_ms:.3g} ms>"


class ReplicaLoad:
    """The beliefs about one replica.

    Attributes:
        in_system: Requests running and queued there, as last reported.
        slots: Requests that it runs at once.
        service_ms: Its own average of one request's run time, or a first guess.
        reported_at: When that report was made (local monotonic seconds); -inf for never.
        outstanding: This gateway's requests in flight there.
    """

    __slots__ = (
        "_error",
        "_error_at",
        "_ratio",
        "_rho",
        "_rho_at",
        "_since_report",
        "in_system",
        "outstanding",
        "reported_at",
        "service_ms",
        "slots",
    )

    def __init__(self, slots: int, service_ms: float) -> None:
        self.in_system = 0
        self.slots = slots
        self.service_ms = service_ms
        self.reported_at = -math.inf
        self.outstanding = 0
        # Own requests that the last report cannot have counted, oldest first. Each is in flight,
        # so these are `outstanding` at most, which the link's stream limit bounds.
        self._since_report: deque[Flight] = deque()
        self._ratio = 1.0
        self._rho = 1.0
        self._rho_at = -math.inf
        self._error = 0.0
        self._error_at = -math.inf

    def __repr__(self) -> str:
        return (
            f"<ReplicaLoad {self.queued}/{self.slots} in system, {self.outstanding} own, "
            f"{self.service_ms:.3g} ms, rho {self._rho:.2f}, errors {self._error:.2f}>"
        )

    @property
    def queued(self) -> int:
        """Requests believed to be there: never less than those of this gateway itself."""
        return max(self.in_system + len(self._since_report), self.outstanding)

    def rho(self, now: float) -> float:
        """Return how many times slower than predicted answers are, 1 to `MAX_RHO`."""
        if self._rho <= 1.0:
            return 1.0
        return 1.0 + (self._rho - 1.0) * math.exp((self._rho_at - now) / DECAY_S)

    def error_rate(self, now: float) -> float:
        """Return the share of failures expected, 0 to `MAX_ERROR`."""
        if self._error <= 0.0:
            return 0.0
        return self._error * math.exp((self._error_at - now) / DECAY_S)

    def start(self, now: float, rtt_ms: float) -> Flight:
        """Count a request that is sent now."""
        waiting = self.queued + 1 - self.slots
        wait_ms = waiting / self.slots * self.service_ms if waiting > 0 else 0.0
        flight = Flight(self, now, rtt_ms, wait_ms + self.service_ms)
        self.outstanding += 1
        self._since_report.append(flight)
        return flight

    def finish(
        self, flight: Flight, now: float, ok: bool | None, report: LoadReport | None = None
    ) -> None:
        """Take a request's outcome; call it once for each `start`.

        Args:
            flight: What `start` returned.
            now: Monotonic seconds.
            ok: True for an answer, False for a failure that the replica or the path is to blame
                for, None for anything else (cancelled, refused, the caller's own mistake).
            report: The load that came with the answer.
        """
        self.outstanding -= 1
        if not flight.counted:
            self._since_report.remove(flight)
        if report is not None:
            self.report(report, now - flight.rtt_ms / 2000, flight.rtt_ms)
        if ok is not None:
            self._observe(flight, now, ok)

    def report(self, report: LoadReport, made_at: float, rtt_ms: float) -> None:
        """Take what a replica says about its load; older word than the last one is ignored.

        Args:
            report: Its numbers, brought into range here.
            made_at: When it said so (local monotonic seconds).
            rtt_ms: Round trip to it: what was sent less than half of it before cannot be counted.
        """
        if made_at < self.reported_at:
            return
        self.reported_at = made_at
        self.in_system = min(MAX_CLAIMED_REQUESTS, max(0, report.in_system))
        self.slots = min(MAX_CLAIMED_REQUESTS, max(1, report.slots))
        if math.isfinite(report.service_ms):
            self.service_ms = min(MAX_CLAIMED_SERVICE_MS, max(MIN_SERVICE_MS, report.service_ms))
        sent_before = made_at - rtt_ms / 2000
        since = self._since_report
        while since and since[0].started_at <= sent_before:
            since.popleft().counted = True

    def _observe(self, flight: Flight, now: float, ok: bool) -> None:
        observed_ms = (now - flight.started_at) * 1000 - flight.rtt_ms
        ratio = min(MAX_RHO, max(0.0, observed_ms) / (flight.predicted_ms + OVERHEAD_MS))
        # A failure says how long it took at least; a quick one says nothing about speed.
        if ok or ratio > self._ratio:
            self._ratio += RATIO_GAIN * (ratio - self._ratio)
            # Peak-EWMA (Finagle's PeakEwma): up at once, down with the time constant.
            self._rho = max(self.rho(now), self._ratio, 1.0)
            self._rho_at = now
        error = self.error_rate(now)
        self._error = min(MAX_ERROR, error + ERROR_GAIN * ((0.0 if ok else 1.0) - error))
        self._error_at = now


class LoadBook:
    """The beliefs about all replicas and paths.

    It holds an entry per replica of the table and a path per member, and is bounded with them:
    whoever removes a replica or node there removes it here (`Router` does both).
    """

    def __init__(self, first_service_ms: float) -> None:
        self._first_service_ms = first_service_ms
        self._loads: dict[tuple[str, int], dict[NodeId, ReplicaLoad]] = {}
        self._paths: dict[NodeId, Path] = {}

    def __repr__(self) -> str:
        loads = sum(len(group) for group in self._loads.values())
        return f"<LoadBook {loads} replicas, {len(self._paths)} paths>"

    def load(self, node: NodeId, model: str, version: int, slots: int = 1) -> ReplicaLoad:
        """Return the beliefs about a replica, made on first use.

        A replica that has not reported yet is taken to be as fast as the fastest of the same
        version: high enough in the ranking to be tried, and one report corrects it.
        """
        group = self._loads.setdefault((model, version), {})
        load = group.get(node)
        if load is None:
            known = [each.service_ms for each in group.values() if each.reported_at > -math.inf]
            load = group[node] = ReplicaLoad(slots, min(known, default=self._first_service_ms))
        return load

    def path(self, node: NodeId) -> Path:
        """Return the path to a node, made on first use (down, not measured)."""
        path = self._paths.get(node)
        if path is None:
            path = self._paths[node] = Path()
        return path

    def forget(self, node: NodeId, model: str, version: int) -> None:
        """Drop the beliefs about a replica; requests in flight there keep theirs."""
        group = self._loads.get((model, version), {})
        group.pop(node, None)
        if not group:
            self._loads.pop((model, version), None)

    def forget_path(self, node: NodeId) -> None:
        """Drop the path to a node."""
        self._paths.pop(node, None)
