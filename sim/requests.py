"""Requests in virtual time: what a client asks, and what goes to and fro about it.

A `Request` is made once and ends once: with `ok`, with an error's code, or with `gateway_lost` where
its gateway went away. Between the two its gateway (`meshnode.sim.gateway`) sends tries to replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from meshnode.effects import Effect
from meshnode.events import Event
from meshnode.types import NO_HINTS, RoutingHints

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.policies.policy import ProbeReply, ReplicaKey
    from meshnode.sim.serving import Asked
    from meshnode.types import NodeId
    from meshnode.wire.messages import LoadReport

OK: Final = "ok"
GATEWAY_LOST: Final = "gateway_lost"
"""Outcomes that are no error's code: an answer; a gateway that is down, crashed or stopped."""


class EndedTwice(AssertionError):
    """A request got a second outcome.

    Attributes:
        invariant: Its name in `meshnode.sim.invariants`.
    """

    invariant = "one-answer"


@dataclass(eq=False, slots=True)
class Request:
    """One client's request, from its making to its outcome.

    Attributes:
        number: Counts the requests of a mesh.
        gateway: Name of the node it was sent to.
        model: What it asks for.
        version: The version it insists on, or None.
        timeout_s: Seconds that it may take.
        made_at: When it was made (virtual seconds).
        work_s: How long it runs on a device of speed 1; None for what the model's behaviour says.
        request_bytes: Size of its body.
        response_bytes: Size of the answer's body.
        on_end: Told of it once it has its outcome.
        good_until: When the answer has to be at the gateway, to be of use to the client.
        hints: Where it may run.
        outcome: `ok`, an error's code, `gateway_lost`, or None while it is open.
        ended_at: When it ended.
        served_by: The node that answered.
        served_version: The version that answered.
        tried: Node name and error code of each try that failed.
        sends: How often it was sent to a replica.
    """

    number: int
    gateway: str
    model: str
    version: int | None
    timeout_s: float
    made_at: float
    work_s: float | None = None
    request_bytes: int = 1024
    response_bytes: int = 1024
    on_end: Callable[[Request], None] | None = None
    good_until: float = math.inf
    hints: RoutingHints = NO_HINTS
    outcome: str | None = None
    ended_at: float = 0.0
    served_by: NodeId | None = None
    served_version: int | None = None
    tried: tuple[tuple[str, str], ...] = ()
    sends: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.outcome == OK

    @property
    def latency_s(self) -> float:
        """Seconds from its making to its end."""
        return self.ended_at - self.made_at

    def end(self, outcome: str, now: float) -> None:
        """Take the outcome; there is exactly one."""
        if self.outcome is not None:
            raise EndedTwice(f"{self} ended a second time, with {outcome}")
        self.outcome = outcome
        self.ended_at = now


@dataclass(frozen=True, slots=True)
class RequestMade(Event):
    """A client sends a request to this node."""

    request: Request


@dataclass(frozen=True, slots=True)
class ClientGone(Event):
    """A client does not wait for its answer any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Withdrawn(Event):
    """A gateway no longer waits for a try."""

    number: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Probed(Event):
    """A gateway asks how busy a replica is."""

    gateway: NodeId
    replica: ReplicaKey
    sent_at: float


@dataclass(frozen=True, slots=True)
class ProbeAnswered(Event):
    """What a probed replica says."""

    probed: Probed
    reply: ProbeReply | LoadReport


@dataclass(frozen=True, slots=True)
class Stream(Effect):
    """Send this to a peer over its link."""

    to: NodeId
    event: Event


@dataclass(frozen=True, slots=True)
class Ask(Effect):
    """Run this on the own host."""

    asked: Asked


@dataclass(frozen=True, slots=True)
class GatewayTimer:
    """A try, a link or all that wait for a replica are to be looked at, or a request is to go on.

    Attributes:
        number: Of the request; None for a peer's link, and for those that wait.
        attempt: Of the request; 0 where it is to go on after a pause.
        peer: Whom it is about; the own node for those that wait.
    """

    number: int | None
    attempt: int
    peer: NodeId
