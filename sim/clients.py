"""Clients at depth A: what they do when a gateway is lost, and how long they wait.

A client is in the region of the gateway that it asks first, so asking another one may be a long way. It
goes elsewhere as the client library does: at once where a connection is refused or breaks, after a
while where nothing answers. A call has one outcome, whatever its gateways do later.

| the gateway | what its client sees |
|---|---|
| its process is down | refused after a round trip |
| its machine is off or asleep | no connection after `CLIENT_CONNECT_TIMEOUT_S` |
| it stops while it has the call | the connection breaks, half a round trip later |
| it loses its power, falls asleep or freezes while it has the call | silence, and after `SILENT_S` no sign of life |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from meshnode.limits import (
    CLIENT_CONNECT_TIMEOUT_S,
    CLIENT_PROBE_TIMEOUT_S,
    MAX_CLIENT_SILENCE_S,
)
from meshnode.sim.requests import ClientGone
from meshnode.sim.stage import GATEWAY_LOST, TIMED_OUT, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.mesh import SimMesh
    from meshnode.sim.requests import Request
    from meshnode.sim.stage import Call

SILENT_S: Final = MAX_CLIENT_SILENCE_S + CLIENT_PROBE_TIMEOUT_S
"""Seconds of silence after which a client that can ask another gateway leaves one that shows no life."""

PATIENCE_S: Final = 0.25
"""For how long a client waits beyond its own limit for the gateway to say that the time is over."""

GRACE_S: Final = 0.05
"""Seconds by which a gateway's answer may come after its deadline; where computing takes no time, that is long."""


@dataclass(eq=False, slots=True)
class _Client:
    """One client with its one call."""

    call: Call
    done: Callable[[Call, Outcome], None]
    made_at: float
    left: list[str]
    gateway: str = ""
    request: Request | None = None
    is_over: bool = False
    asked: int = 0
    attempts: int = 0
    failed_on: list[tuple[str, str]] = field(default_factory=list)

    @property
    def until(self) -> float:
        return self.made_at + self.call.timeout_s


class Clients:
    """All clients of a mesh.

    Attributes:
        open_calls: How many calls have no outcome yet.
    """

    def __init__(self, mesh: SimMesh) -> None:
        """Begin without calls."""
        self.open_calls = 0
        self._mesh = mesh
        self._world = mesh.world
        self._at = mesh.world.scheduler.at
        self._now = mesh.world.scheduler.now

    def __repr__(self) -> str:
        return f"<Clients with {self.open_calls} calls open>"

    def send(self, call: Call, done: Callable[[Call, Outcome], None]) -> None:
        """Make a call now; `done` is told its outcome."""
        self.open_calls += 1
        client = _Client(call, done, self._now(), [call.gateway, *call.others])
        self._at(client.until + PATIENCE_S, self._time_is_over, client)
        self._ask_next(client)

    def _rtt_s(self, client: _Client) -> float:
        """Return the round trip between a client and the gateway that it asks."""
        home, there = self._world.id_of(client.call.gateway), self._world.id_of(client.gateway)
        return self._world.network.rtt_s(home, there)

    def _ask_next(self, client: _Client) -> None:
        now = self._now()
        if not client.left or now >= client.until:
            self._end(client, GATEWAY_LOST if now < client.until else TIMED_OUT)
            return
        gateway = client.gateway = client.left.pop(0)
        client.asked += 1
        client.request = None
        world = self._world
        if not world.is_reachable(gateway):
            wait_s = min(CLIENT_CONNECT_TIMEOUT_S, (client.until - now) / (len(client.left) + 1))
            self._at(now + wait_s, self._lost, client, client.asked)
        elif not world.is_running(gateway):
            self._at(now + self._rtt_s(client), self._lost, client, client.asked)
        else:
            # The first connection is there already; another one takes a round trip to make.
            trips = 0.5 if client.asked == 1 else 1.5
            self._at(now + trips * self._rtt_s(client), self._arrive, client, client.asked)

    def _arrive(self, client: _Client, asked: int) -> None:
        """The call is at a gateway, or where one was a moment ago."""
        if client.is_over or client.asked != asked:
            return
        call, now = client.call, self._now()
        if not self._world.is_reachable(client.gateway):
            self._at(now + SILENT_S, self._lost, client, asked)
            return

        def ended(request: Request) -> None:
            way_s = self._rtt_s(client) / 2
            self._at(self._now() + way_s, self._answered, client, asked, request)

        client.request = self._mesh.request(
            client.gateway,
            call.model,
            timeout_s=max(client.until - now, 0.0),
            work_s=call.work_s,
            sizes=(call.request_bytes, call.response_bytes),
            on_end=ended,
            good_until=client.made_at + call.deadline_s - self._rtt_s(client) / 2,
            hints=call.hints,
        )
        if client.left and now + SILENT_S < client.until:
            boot = self._world.boot_of(client.gateway)
            self._at(now + SILENT_S, self._look_for_life, client, asked, boot)

    def _look_for_life(self, client: _Client, asked: int, boot: int) -> None:
        """Leave a gateway that has said nothing for long and shows no sign of life, or has booted since."""
        if client.is_over or client.asked != asked:
            return
        world = self._world
        is_alive = world.is_reachable(client.gateway) and not world.is_frozen(client.gateway)
        if is_alive and world.boot_of(client.gateway) == boot:
            self._at(self._now() + SILENT_S, self._look_for_life, client, asked, boot)
        else:
            if client.request is not None:
                self._hang_up(client.gateway, client.request)
            self._lost(client, asked)

    def _answered(self, client: _Client, asked: int, request: Request) -> None:
        """A request's outcome is at the client; one that it gave up counts in the attempts only."""
        if client.is_over or client.asked != asked:
            return
        assert request.outcome is not None
        if request.outcome == GATEWAY_LOST:
            self._lost(client, asked)
            return
        self._end(client, request.outcome)

    def _lost(self, client: _Client, asked: int) -> None:
        if client.is_over or client.asked != asked:
            return
        self._count(client)
        client.request = None
        self._ask_next(client)

    def _time_is_over(self, client: _Client) -> None:
        if client.is_over:
            return
        request = client.request
        if (
            request is not None
            and request.outcome is None
            and self._world.is_running(client.gateway)
        ):
            self._look_whether_late(client, request)
            # The connection is closed under the gateway, half a round trip later.
            gone_at = self._now() + self._rtt_s(client) / 2
            self._at(gone_at, self._hang_up, client.gateway, request)
        self._end(client, TIMED_OUT)

    def _look_whether_late(self, client: _Client, request: Request) -> None:
        """A gateway that ran all the time, and was told the deadline, must have answered by now."""
        gateway, world, invariants = client.gateway, self._world, self._mesh.invariants
        if invariants is None or not world.ran_freely(gateway, request.made_at):
            return
        had_s = (self._now() - request.made_at) * world.clock_of(gateway).rate
        if had_s > request.timeout_s + GRACE_S:
            invariants.broken(
                "one-answer", unanswered(gateway, client.call, had_s, request.timeout_s)
            )

    def _hang_up(self, gateway: str, request: Request) -> None:
        if request.outcome is None and self._world.is_running(gateway):
            self._world.tell(gateway, ClientGone(request.number))

    def _count(self, client: _Client) -> None:
        """Add up what a gateway tried for a call."""
        request = client.request
        if request is not None:
            client.attempts += request.sends
            client.failed_on += request.tried

    def _end(self, client: _Client, code: str) -> None:
        client.is_over = True
        self.open_calls -= 1
        self._count(client)
        request = client.request if code == "ok" else None
        served = request is not None and request.served_by is not None
        client.done(
            client.call,
            Outcome(
                code=code,
                took_s=self._now() - client.made_at,
                served_by=self._mesh.name_of(request.served_by) if request and served else "",
                attempts=client.attempts,
                failed_on=tuple(client.failed_on),
                version=(request.served_version or 0) if request else 0,
                gateways=client.asked,
            ),
        )


def unanswered(gateway: str, call: Call, had_s: float, timeout_s: float) -> str:
    """Return in words that a gateway owes an answer: it has had a call for so long, with this deadline."""
    return (
        f"{gateway} lives, has had call {call.number} of {call.model!r} for {had_s:.3f} s, and has not "
        f"answered it; its deadline was {timeout_s:g} s"
    )
