"""Watches what gateways answer: each request once, by its deadline, and running no more often than they say.

It looks at both ends of the client's connection, as only a simulator can: a gateway owes an answer from the
moment at which its program has read the whole request, by its own clock. What the network delays, in
either direction, is not held against it; nor is the time in which its process stood still or was slow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.routing.config import RoutingConfig
from meshnode.sim.clients import GRACE_S, unanswered

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.sim.http_calls import HttpAnswer
    from meshnode.sim.stage import Call
    from meshnode.sim.virtual.daemon import VirtualNode
    from meshnode.sim.virtual.streams import StreamEnd
    from meshnode.types import Address

MAX_ENDED: Final = 10_000
"""Requests that have ended whose late runs are looked for; the oldest are forgotten."""

_MOST_RUNS: Final = 1 + RoutingConfig().max_retries
_PREFIX: Final = "call-"


def request_id(call: Call, asked: int) -> str:
    """Return the id that a call has at one gateway.

    Args:
        call: The call.
        asked: Counts the gateways that it asks, from 1.
    """
    return f"{_PREFIX}{call.number}-{asked}"


def owes(end: StreamEnd) -> bool:
    """Whether who has the other end of a connection has read all that was asked, and said nothing since."""
    peer = end.peer
    return end.was_read and not peer.outbox_bytes and peer.sent_at < peer.read_at


def is_late(end: StreamEnd, timeout_s: float) -> bool:
    """Whether the program at the other end had all the time for its answer, undisturbed, and has not begun it.

    Args:
        end: The client's end of the connection.
        timeout_s: What it was told to take at most.
    """
    peer, process = end.peer, end.peer.process
    clock = peer.host.clock
    if not owes(end) or peer.closed or process.dead or process.frozen or process.factor != 1.0:
        return False
    if process.hindered_at >= peer.read_at or clock.rate_since_s > peer.read_at:
        return False
    took_s = clock.now() - clock.read(peer.read_at)
    return took_s > timeout_s + GRACE_S


class GatewayWatch:
    """What all clients of a mesh tell of its gateways.

    Attributes:
        broken: Told the name of an invariant and what was seen.
    """

    def __init__(self, gateway_at: Callable[[Address], VirtualNode]) -> None:
        """Watch the gateways of a mesh.

        Args:
            gateway_at: Returns the node whose gateway listens at an address.
        """
        self.broken: Callable[[str, str], None] = lambda _invariant, _what: None
        self._gateway_at = gateway_at
        self._runs: dict[str, int] = {}  # of requests that are open
        self._allowed: dict[str, int] = {}  # that may still come, of requests that have ended

    def __repr__(self) -> str:
        return f"<GatewayWatch: {len(self._runs)} requests run>"

    # Answers.

    def unasked(self, gateway: Address, last: str, size_bytes: int) -> None:
        """Take note of bytes that came without a question.

        Args:
            gateway: From where.
            last: What it was asked last on that connection.
            size_bytes: How many.
        """
        name = self._gateway_at(gateway).name
        after = f"after its answer to {last}, which had one already" if last else "unasked"
        self.broken("one-answer", f"{name} sent {size_bytes} bytes {after}")

    def crossed(self, gateway: Address, wanted: str, got: str) -> None:
        """Take note of an answer to another request than the one that was asked."""
        name = self._gateway_at(gateway).name
        self.broken("one-answer", f"{name} answered {wanted} with the answer to {got or 'nobody'}")

    def silent(self, end: StreamEnd, gateway: Address, call: Call, timeout_s: float) -> None:
        """A client has given up its call: look whether the gateway had its time."""
        if is_late(end, timeout_s):
            node = self._gateway_at(gateway)
            had_s = node.host.loop.now() - end.peer.read_at
            self.broken("one-answer", unanswered(node.name, call, had_s, timeout_s))

    def hung_up(self, end: StreamEnd, gateway: Address, call: Call) -> None:
        """A connection ended before its answer: look whether the gateway closed it without need."""
        process = end.peer.process
        if not end.peer.closed or process.dead or process.frozen or not owes(end):
            return  # it was lost on the way, or with its gateway
        node = self._gateway_at(gateway)
        if not node.is_going:
            self.broken(
                "one-answer",
                f"{node.name} closed the connection of call {call.number} of {call.model!r}, which it "
                "had read, and did not answer it",
            )

    # Runs.

    def ran(self, request: str) -> None:
        """A model server was given a request."""
        if not request.startswith(_PREFIX):
            return
        left = self._allowed.get(request)
        if left is None:
            self._runs[request] = self._runs.get(request, 0) + 1
            return
        self._allowed[request] = left - 1
        if left <= 0:
            self._ran_too_often(request, "once more, after it was answered")

    def answered(self, request: str, answer: HttpAnswer | None) -> None:
        """A gateway has answered a request, or is not waited for any more (None)."""
        runs = self._runs.pop(request, 0)
        sends = _MOST_RUNS if answer is None else answer.attempts
        self._allowed[request] = sends - runs
        if len(self._allowed) > MAX_ENDED:
            del self._allowed[next(iter(self._allowed))]
        if runs > sends:
            self._ran_too_often(request, f"{runs} times; it was sent {sends} times")

    def _ran_too_often(self, request: str, how_often: str) -> None:
        number, asked = request.removeprefix(_PREFIX).split("-")
        self.broken(
            "attempts-within-budget",
            f"call {number} ran {how_often}, as its gateway (the {asked}. asked) says",
        )
