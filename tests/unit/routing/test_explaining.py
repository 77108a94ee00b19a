"""`explain` tells what `choose` does: terms, odds and reasons."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.routing.choice import choose
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.explaining import explain
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.types import NodeId, RoutingHints
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.explaining import Explained, Explanation
    from meshnode.routing.router import Router

MODEL = "digits"


def told(router: Router, request: RoutedRequest | None = None) -> Explanation:
    return explain(router.candidates(MODEL, None), request or RoutedRequest(MODEL), 1.0)


def by_name(explanation: Explanation) -> dict[str, Explained]:
    return {each.seen.name: each for each in explanation.replicas}


def fleet(make_router: Callable[..., Router], **service_ms: float) -> Router:
    router = make_router(*service_ms)
    for name, each in service_ms.items():
        router.load_reported(NodeId(name), MODEL, 1, LoadReport(0, 1, each), 1.0)
    return router


def test_the_odds_are_those_of_the_choice(make_router: Callable[..., Router]) -> None:
    router = fleet(make_router, fast=10.0, near=11.0, slow=100.0)
    explained = told(router)
    assert [each.odds for each in explained.replicas] == [0.5, 0.5, 0.0]
    rng = random.Random(1)
    candidates = router.candidates(MODEL, None)
    picked = Counter(
        route.replica.node_name
        for _ in range(4000)
        if (route := choose(candidates, RoutedRequest(MODEL), 1.0, rng)) is not None
    )
    assert picked["fast"] / 4000 == pytest.approx(0.5, abs=0.05)
    assert picked["slow"] == 0


def test_the_terms_add_up_to_the_score(make_router: Callable[..., Router]) -> None:
    router = fleet(make_router, a=10.0, b=25.0)
    for each in told(router).replicas:
        assert each.seen.terms.expected_ms == pytest.approx(each.seen.score_ms)
        assert each.seen.terms.rtt_ms == pytest.approx(1.0)


def test_every_replica_that_gets_nothing_has_its_reason(make_router: Callable[..., Router]) -> None:
    router = fleet(make_router, good=10.0, cut=10.0, battery=10.0)
    router.link_changed(NodeId("cut"), LinkState.DOWN, 1.0)
    router.conditions_changed(NodeId("battery"), NodeConditions(on_battery=True))
    found = by_name(told(router))
    assert (found["good"].odds, found["good"].dropped, found["good"].later) == (1.0, "", "")
    assert "link" in found["cut"].dropped
    assert found["battery"].odds == 0
    assert "battery" in found["battery"].later
    assert told(router).reason == "only-candidate"


def test_a_rule_of_the_request_is_the_reason(make_router: Callable[..., Router]) -> None:
    router = make_router(("here", "eu"), ("there", "us"))
    request = RoutedRequest(MODEL, hints=RoutingHints(region="us"))
    found = by_name(told(router, request))
    assert found["there"].odds == 1
    assert "region" in found["here"].dropped


def test_without_anybody_there_are_no_odds(make_router: Callable[..., Router]) -> None:
    router = make_router("a")
    router.link_changed(NodeId("a"), LinkState.DOWN, 1.0)
    explained = told(router)
    assert explained.reason == ""
    assert [each.odds for each in explained.replicas] == [0.0]


def test_of_many_replicas_the_odds_are_counted(make_router: Callable[..., Router]) -> None:
    names = {f"n{number:03}": 10.0 for number in range(MAX_CANDIDATES_SCORED + 10)}
    explained = told(fleet(make_router, **names))
    assert explained.estimated
    assert sum(each.odds for each in explained.replicas) == pytest.approx(1.0)
    assert explained.replicas[0].odds < 0.1


def test_explaining_changes_nothing(make_router: Callable[..., Router]) -> None:
    router = fleet(make_router, a=10.0, b=10.0)
    before = router.rng.getstate()
    told(router)
    told(router)
    assert router.rng.getstate() == before
    assert told(router) == told(router)
