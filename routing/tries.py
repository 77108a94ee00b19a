"""What the plan of a request says, what it draws on, and a try that is out; see `meshnode.routing.attempts`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshnode.routing.load import OVERHEAD_MS

if TYPE_CHECKING:
    import random

    from meshnode.errors import MeshError
    from meshnode.routing.breakers import Permit
    from meshnode.routing.budget import RetryBudget
    from meshnode.routing.choice import Candidates, Chooser, Route
    from meshnode.routing.config import RoutingConfig
    from meshnode.routing.hedging import AnswerTimes
    from meshnode.routing.load import Flight
    from meshnode.routing.releasing.split import Releases
    from meshnode.routing.request import RoutedRequest
    from meshnode.types import NodeId


class Try(NamedTuple):
    """Send the request there.

    Attributes:
        route: The decision.
        remaining_s: Time left for the whole request, to be sent along; `timed_out` at its end.
        number: Counts the request's tries from 1.
        has_others: Whether it begins a sequence, and may begin it on another replica if this one has no place for it.
    """

    route: Route
    remaining_s: float
    number: int
    has_others: bool = False


class Wait(NamedTuple):
    """Let so many seconds pass, then ask again."""

    pause_s: float


class Await(NamedTuple):
    """Another try is out still: wait for that."""


class GiveUp(NamedTuple):
    """Answer with this error; nothing else is tried, and tries that are out still are to be cancelled."""

    error: MeshError


class Source(Protocol):
    """What a plan draws on: the router."""

    @property
    def budget(self) -> RetryBudget:
        """The retries that are left."""
        ...

    @property
    def hedges(self) -> RetryBudget:
        """The hedges that are left."""
        ...

    @property
    def releases(self) -> Releases:
        """The releases under way."""
        ...

    @property
    def rng(self) -> random.Random:
        """Draws each pick."""
        ...

    @property
    def config(self) -> RoutingConfig:
        """Limits on retries."""
        ...

    @property
    def choose(self) -> Chooser:
        """Decides between candidates."""
        ...

    def candidates(self, model: str, version: int | None) -> Candidates:
        """Return who could serve now; raises ModelNotFound or NoReplica."""
        ...

    def is_draining(self, node: NodeId) -> bool:
        """Whether a node is being emptied, or is empty."""
        ...

    def answer_times(self, model: str, version: int) -> AnswerTimes:
        """Return how long a model version's answers take."""
        ...

    def answered(self, request: RoutedRequest, node: NodeId, now: float) -> None:
        """Take that a node answered a request to its end."""
        ...


class Flying:
    """A try that is out.

    Attributes:
        step: What was sent where.
        flight: Its place in its replica's load.
        permit: Of its replica's guard.
        patience_s: After so many seconds it is late.
        times: How long its model version's answers take.
        is_relayed: Whether it went over a link through another node.
    """

    __slots__ = ("flight", "is_relayed", "patience_s", "permit", "step", "times")

    def __init__(
        self, step: Try, flight: Flight, permit: Permit, patience_s: float, times: AnswerTimes
    ) -> None:
        self.step = step
        self.flight = flight
        self.permit = permit
        self.patience_s = patience_s
        self.times = times
        self.is_relayed = step.route.candidate.path.is_relayed

    def waited_s(self, now: float) -> float:
        """Return the seconds since it was sent."""
        return now - self.flight.started_at

    def is_late(self, now: float) -> bool:
        """Whether it has taken longer than its replica is trusted to take."""
        return self.waited_s(now) >= self.patience_s

    def slowness(self, now: float) -> float:
        """Return observed over predicted time."""
        observed_ms = 1000 * self.waited_s(now) - self.flight.rtt_ms
        return observed_ms / (self.flight.predicted_ms + OVERHEAD_MS)

    def hedge_at(self, config: RoutingConfig) -> float:
        """Return when a hedge may be sent beside it (monotonic seconds); infinite for never."""
        hedge_s = self.times.slow * self.step.route.expected_ms / 1000
        if config.hedge_ratio <= 0 or hedge_s >= self.patience_s:
            return math.inf
        return self.flight.started_at + max(config.hedge_floor_s, hedge_s)

    @property
    def late_at(self) -> float:
        """When it is late (monotonic seconds)."""
        return self.flight.started_at + self.patience_s


def patience_s(config: RoutingConfig, times: AnswerTimes, expected_ms: float) -> float:
    """Return after how many seconds a try is late.

    Args:
        config: The floor, and the factor on what is expected.
        times: What answers of the model version take: twice what 99 % of them take is not late.
        expected_ms: What was expected of the replica, in milliseconds.
    """
    slowest = 2 * times.slowest if times.slowest < math.inf else 0.0
    factor = max(config.first_byte_factor, slowest)
    return max(config.first_byte_floor_s, factor * expected_ms / 1000)
