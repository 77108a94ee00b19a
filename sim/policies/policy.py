"""What a policy is: a gateway's part, and for some a part on the servers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshnode.routing.breaker import BreakerState
from meshnode.routing.choice import Route
from meshnode.routing.load import LinkState

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Sequence

    from meshnode.routing.choice import Candidate, Candidates
    from meshnode.routing.request import RoutedRequest
    from meshnode.routing.table import Replica
    from meshnode.types import NodeId


_UP = LinkState.UP
_CLOSED = BreakerState.CLOSED


class Job(NamedTuple):
    """One attempt of one call, as gateway and server both name it.

    Attributes:
        number: Of the request.
        attempt: Of the request's attempts.
    """

    number: int
    attempt: int


class ReplicaKey(NamedTuple):
    """Which replica: a node, and what it serves."""

    node: NodeId
    model: str
    version: int


class ProbeReply(NamedTuple):
    """What a server says when it is probed.

    Attributes:
        in_flight: Requests that run or wait there.
        latency_s: How long those that met about as many took, in the server.
    """

    in_flight: int
    latency_s: float


def key_of(replica: Replica) -> ReplicaKey:
    """Return which replica this is."""
    return ReplicaKey(replica.node, replica.model, replica.version)


class Policy:
    """Chooses replicas for one gateway; a `Chooser` of `meshnode.routing.choice`.

    Subclasses say in `pick` which of those that can take a request gets it. The gateway tells what
    becomes of its sends through the other methods.
    """

    def choose(
        self,
        candidates: Candidates,
        request: RoutedRequest,
        now: float,
        rng: random.Random,
        *,
        tried: Collection[NodeId] = (),
        avoid_regions: Collection[str] = (),
    ) -> Route | None:
        """Choose a replica for one request, or None if there is no candidate.

        The search widens as the mesh's own does: into the regions to avoid, then to replicas whose
        breaker yields as a last resort. `Route.expected_ms` is the mesh's own estimate, since the
        time given to a first byte is made from it.
        """
        able = able_candidates(candidates, request, now, tried, avoid_regions)
        if not able:
            return None
        chosen = able[0] if len(able) == 1 else self.pick(able, now, rng)
        if self.declines(chosen):
            return None
        reason = "only-candidate" if len(able) == 1 else "policy"
        return Route(
            chosen.replica, chosen.expected_ms(request, now), reason, len(able), (), chosen
        )

    def pick(self, able: Sequence[Candidate], now: float, rng: random.Random) -> Candidate:
        """Return one of at least two that can take a request."""
        raise NotImplementedError

    def declines(self, chosen: Candidate) -> bool:
        """Whether nothing should be sent although there is this replica; only an oracle can know."""
        del chosen
        return False

    def facing(self, work_s: float | None, good_until: float = math.inf) -> None:
        """Say what is chosen for next; only who knows everything may look.

        Args:
            work_s: How long it runs on a device of speed 1; None for what the model's behaviour says.
            good_until: When its answer has to be at the gateway, to be of use to the client (seconds
                of the world).
        """

    def sent(self, replica: Replica, job: Job, work_s: float | None, now: float) -> None:
        """The gateway sent an attempt there."""

    def ended(self, replica: Replica, job: Job, now: float, took_s: float) -> None:
        """An attempt that was sent there is over for the gateway, however it ended."""

    def to_probe(self, rng: random.Random) -> Sequence[ReplicaKey]:
        """Return whom to probe now; asked after each send."""
        del rng
        return ()

    def probed(self, replica: ReplicaKey, reply: ProbeReply, now: float, rtt_s: float) -> None:
        """The reply to a probe came after `rtt_s`."""


class Attendant(Protocol):
    """A policy's part on one server: sees what comes and goes there."""

    def arrived(self, replica: ReplicaKey, job: Job, work_s: float | None, now: float) -> None:
        """A request came in."""
        ...

    def ended(self, job: Job, now: float, *, answered: bool) -> None:
        """A request was answered, or refused."""
        ...

    def withdrawn(self, job: Job) -> None:
        """Its gateway does not wait for it any more; one that runs is run to its end."""
        ...

    def closed(self) -> None:
        """The server's process is gone."""
        ...

    def probe(self, replica: ReplicaKey) -> ProbeReply:
        """Answer a probe."""
        ...


class Regime(Protocol):
    """A policy for a whole mesh: makes the part of each gateway and of each server."""

    @property
    def sheds(self) -> bool:
        """Whether servers refuse what they guess would be late; not where gateways know it."""
        ...

    def for_gateway(self, node: NodeId) -> Policy | None:
        """Return what chooses at this node's gateway; None for the mesh's own."""
        ...

    def for_server(self, node: NodeId) -> Attendant | None:
        """Return what attends this node's server, or None."""
        ...


def able_candidates(
    candidates: Candidates,
    request: RoutedRequest,
    now: float,
    tried: Collection[NodeId],
    avoid_regions: Collection[str],
) -> Sequence[Candidate]:
    """Return the candidates that can take a request now, in a stable order: those of the first group that has any."""
    groups = candidates.groups(request.hints)
    for group in groups:
        if tried or avoid_regions:
            able = [
                each
                for each in group.ready
                if not each.drop_reason(request, now, tried, avoid_regions)
            ]
        else:  # the first try of a request, which nearly all are
            able = [
                each
                for each in group.ready
                if each.path.link is _UP
                and (each.breaker.state is _CLOSED or each.breaker.allows(now))
            ]
        if not able and avoid_regions:
            able = [each for each in group.ready if not each.drop_reason(request, now, tried, ())]
        if able:
            return able
    return [
        each
        for group in groups
        for each in group.ready
        if each.path.link is _UP and each.breaker.yields and each.replica.node not in tried
    ]
