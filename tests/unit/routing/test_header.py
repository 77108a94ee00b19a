from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.routing.breakers import Breakers
from meshnode.routing.choice import Candidate, Route
from meshnode.routing.config import RoutingConfig
from meshnode.routing.header import escape, mesh_route_header
from meshnode.routing.load import Path, ReplicaLoad
from meshnode.routing.table import Replica
from meshnode.types import NodeId, ReplicaState

if TYPE_CHECKING:
    from collections.abc import Callable

import random

SAFE = re.compile(r'[A-Za-z0-9._%+\-=; :,"]*')


def route_to(replica: Replica) -> Route:
    breaker = Breakers(RoutingConfig(), random.Random(1)).of(replica.node, "digits", 1)
    candidate = Candidate(replica, ReplicaLoad(1, 1.0), Path(), breaker, 1.0)
    return Route(replica, 3.21, "lowest-expected", 2, (), candidate)


def test_a_route_is_told_as_parameters(make_replica: Callable[..., Replica]) -> None:
    route = route_to(make_replica("beta", region="eu-west"))
    assert mesh_route_header(route) == (
        "node=beta; region=eu-west; version=1; expected_ms=3.21; candidates=2; attempts=1; "
        "reason=lowest-expected"
    )


def test_failed_tries_are_named_after_a_failover(make_replica: Callable[..., Replica]) -> None:
    route = route_to(make_replica("beta", region=""))
    assert mesh_route_header(route, [("alpha", "link_lost"), ("my node", "saturated")]) == (
        "node=beta; region=-; version=1; expected_ms=3.21; candidates=2; attempts=3; "
        'reason=lowest-expected; tried="alpha:link_lost,my%20node:saturated"'
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(), max_size=300), min_size=4, max_size=12))
def test_no_name_can_end_its_value_or_the_header(names: list[str]) -> None:
    """A peer that calls itself `x"; node=me` or ends the line changes nothing but its own word."""
    replica = Replica(NodeId("n"), names[0], names[1], names[2], names[3], 1, ReplicaState.READY)
    value = mesh_route_header(route_to(replica), [(name, name) for name in names])
    assert SAFE.fullmatch(value)
    assert [part.partition("=")[0] for part in value.split("; ")] == [
        "node", "region", "version", "expected_ms", "candidates", "attempts", "reason", "tried",
    ]  # fmt: skip
    assert value.count('"') == 2
    # Two names and eight pairs of at most 63 characters, each at most 4 bytes, each byte as %XX.
    assert len(value) < 18 * 63 * 12 + 200


def test_plain_names_stay_as_they_are_and_others_are_cut() -> None:
    assert escape("gpu-box.local_1") == "gpu-box.local_1"
    assert escape("a\r\nSet-Cookie: x") == "a%0D%0ASet-Cookie%3A%20x"
    assert escape("a" * 100) == "a" * 63
    assert escape("") == "-"
