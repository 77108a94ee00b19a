"""Candidates made by hand: what a gateway believes of each replica is said in one line."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from meshnode.routing.breakers import Breakers
from meshnode.routing.choice import Candidate, Candidates
from meshnode.routing.config import RoutingConfig
from meshnode.routing.load import LinkState, Path, ReplicaLoad
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

MakeCandidate = Callable[..., Candidate]
MakeCandidates = Callable[..., Candidates]


@pytest.fixture
def make_candidate() -> MakeCandidate:
    """Make a candidate that can take requests, with so many reported and own ones."""

    def make(
        name: str,
        *,
        reported: int = 0,
        own: int = 0,
        slots: int = 4,
        service_ms: float = 10.0,
        measured_ms: float = 0.0,
        link: LinkState = LinkState.UP,
        region: str = "eu",
    ) -> Candidate:
        replica = Replica(
            NodeId(name),
            name,
            region,
            "",
            "digits",
            1,
            ReplicaState.READY,
            slots=slots,
            service_ms=measured_ms,
        )
        load = ReplicaLoad(slots, service_ms)
        load.report(LoadReport(reported, slots, service_ms), 0.0, 0.0)
        for _ in range(own):
            load.start(0.0, 1.0)
        breaker = Breakers(RoutingConfig(), random.Random(1)).of(replica.node, "digits", 1)
        return Candidate(replica, load, Path(link, 1.0), breaker, 1.0)

    return make


@pytest.fixture
def make_candidates(make_candidate: MakeCandidate) -> MakeCandidates:
    """Make candidates of these names, alike, or take those that are given."""

    def make(*each: str | Candidate) -> Candidates:
        return Candidates(
            tuple(make_candidate(one) if isinstance(one, str) else one for one in each)
        )

    return make
