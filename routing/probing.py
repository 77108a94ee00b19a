"""Whom to ask how busy it is, off the way of requests, so that a decision never waits for news and seldom lacks it.

Every answer brings the load of the replica that gave it, and each node tells its own about once a second. What lies
between is what this gateway does not use itself: replicas that others fill and empty meanwhile. Those are asked, within
limits (Prequal, NSDI'24, section 4, asks some replicas per request and lets what they said age):

| limit | here |
|---|---|
| probes per request | `PROBES_PER_REQUEST`, only for models that are asked for now |
| probes per second | `PROBES_PER_S` of a gateway, with a burst of `PROBES_BURST` |
| age | only replicas of whose load nothing was heard for `FRESH_S`; what was said ages in the score |
| uses | a request that is sent counts at once (`ReplicaLoad.start`), so that a report is not used twice for one place |
| pool | the candidates themselves, of whom a decision sees `MAX_CANDIDATES_SCORED` at most |
| worth | only replicas that could be chosen if they turned out to be idle |

One probe at a time is on its way to a replica; it is given up after `LOAD_PROBE_TIMEOUT_S`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

from meshnode.limits import LOAD_PROBE_TIMEOUT_S, MAX_PROBES_IN_FLIGHT
from meshnode.routing.breaker import BreakerState
from meshnode.routing.load import LinkState
from meshnode.routing.picking import NEAR_LOWEST

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from meshnode.routing.choice import Candidate, Candidates
    from meshnode.routing.request import RoutedRequest
    from meshnode.types import NodeId

PROBES_PER_REQUEST: Final = 2
"""Prequal asks two or three per request."""

PROBES_PER_S: Final = 50.0
"""Of one gateway: at some 100 microseconds on both ends half a percent of a processor."""

PROBES_BURST: Final = 10.0
"""After a pause: enough to look at all that are near."""

FRESH_S: Final = 0.1
"""Word of a load that is younger needs no probe: a round trip to far regions takes as long. Of runs of a tenth of a second
hardly anything that was told a fifth of a second ago is still true."""


class Probe(NamedTuple):
    """Ask a replica how busy it is.

    Attributes:
        node: Where it is.
        model: Public name.
        version: Of the model.
        sent_at: When (monotonic seconds).
    """

    node: NodeId
    model: str
    version: int
    sent_at: float


class Probing:
    """Decides for one gateway; whoever sends probes asks `due` from time to time, and tells `ended`."""

    def __init__(self, me: NodeId) -> None:
        """Probe for node `me`, which knows its own load."""
        self._me = me
        self._asked: dict[tuple[str, int | None], tuple[int, RoutedRequest]] = {}
        self._tokens = PROBES_BURST
        self._filled_at = -math.inf
        self._sent: dict[tuple[NodeId, str, int], float] = {}

    def __repr__(self) -> str:
        return f"<Probing: {len(self._sent)} on their way>"

    def asked(self, request: RoutedRequest) -> None:
        """A request is planned: what it needs to know, the next will."""
        key = (request.model, request.version)
        known = self._asked.get(key)
        count = 1 if known is None else known[0] + 1
        if known is not None or len(self._asked) < MAX_PROBES_IN_FLIGHT:
            self._asked[key] = (count, request)

    def due(
        self,
        candidates_of: Callable[[RoutedRequest], Candidates | None],
        now: float,
        rng: random.Random,
    ) -> list[Probe]:
        """Return whom to ask now.

        Args:
            candidates_of: Returns who could take a request; None for nobody.
            now: Monotonic seconds.
            rng: Draws among those that are worth it.
        """
        if not self._asked:
            return []
        self._fill(now)
        asked, self._asked = self._asked, {}
        probes: list[Probe] = []
        for count, request in asked.values():
            room = min(int(self._tokens), MAX_PROBES_IN_FLIGHT - len(self._sent))
            if room <= 0:
                break
            candidates = candidates_of(request)
            if candidates is None or len(candidates.ready) < 2:
                continue  # there is nothing to choose between
            worth = self._worth_asking(candidates, request, now, rng)
            few = min(room, PROBES_PER_REQUEST * count, len(worth))
            for each in rng.sample(worth, few):
                replica = each.replica
                probe = Probe(replica.node, replica.model, replica.version, now)
                self._sent[probe[:3]] = now
                self._tokens -= 1
                probes.append(probe)
        return probes

    def ended(self, probe: Probe) -> None:
        """A probe was answered, or is given up."""
        if self._sent.get(probe[:3]) == probe.sent_at:
            del self._sent[probe[:3]]

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            grown = self._tokens + (now - self._filled_at) * PROBES_PER_S
            self._tokens, self._filled_at = min(PROBES_BURST, grown), now
        for key, sent_at in [*self._sent.items()]:
            if now - sent_at > LOAD_PROBE_TIMEOUT_S:
                del self._sent[key]

    def _worth_asking(
        self, candidates: Candidates, request: RoutedRequest, now: float, rng: random.Random
    ) -> list[Candidate]:
        """Return those of whom nothing was heard lately, and who would be near the best if they were idle."""
        groups = candidates.groups(request.hints)
        if not groups:
            return []
        able = [
            each
            for each in groups[0].sample(now, rng)
            if each.path.link is LinkState.UP and each.breaker.state is BreakerState.CLOSED
        ]
        if len(able) < 2:
            return []
        bound = NEAR_LOWEST * min(each.expected_ms(request, now) for each in able)
        return [
            each
            for each in able
            if now - each.load.reported_at > FRESH_S
            and each.replica.node != self._me
            and (each.replica.node, each.replica.model, each.replica.version) not in self._sent
            and each.rtt_ms + each.load.tried_ms(now) <= bound
        ]
