"""Who may take a request at all, and who only if there is no better one."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from meshnode.routing.breaker import Verdict
from meshnode.routing.choice import Candidates, choose, drops
from meshnode.routing.conditions import USUAL, NodeConditions
from meshnode.routing.eligibility import (
    broken_rule,
    group_of,
    in_region,
    lacks_memory,
    why_later,
)
from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.types import NO_HINTS, RoutingHints
from tests.unit.routing.test_choice import candidate

if TYPE_CHECKING:
    from meshnode.routing.choice import Candidate

BATTERY = NodeConditions(on_battery=True, battery_percent=41.0)
HOT = NodeConditions(throttled=True)
LEAVING = NodeConditions(draining=True)
SPARE = NodeConditions(standby=True)
EU = RoutingHints(region="eu")
EU_PREFERRED = RoutingHints(region="eu", region_required=False)


def asked(
    hints: RoutingHints = NO_HINTS, timeout_s: float = 30.0, size_bytes: int = 0
) -> RoutedRequest:
    return RoutedRequest("m", timeout_s=timeout_s, hints=hints, size_bytes=size_bytes)


def place(
    name: str,
    region: str = "eu",
    conditions: NodeConditions = USUAL,
    service_ms: float = 10.0,
) -> Candidate:
    made = candidate(name, region=region, service_ms=service_ms)
    made.conditions = conditions
    return made


def chosen(
    pool: list[Candidate], request: RoutedRequest, draws: int = 20, **more: object
) -> set[tuple[str, str]]:
    rng = random.Random(1)
    candidates = Candidates(tuple(pool))
    routes = [choose(candidates, request, 0.0, rng, **more) for _ in range(draws)]  # type: ignore[arg-type]
    return {(each.replica.node_name, each.reason) for each in routes if each is not None}


@pytest.mark.parametrize(
    ("region", "inside"),
    [
        ("eu", True),
        ("eu-west", True),
        ("eu-west-1", True),
        ("europe", False),
        ("us", False),
        ("", False),
    ],
)
def test_a_region_holds_those_below_it_and_no_other_that_begins_alike(
    region: str, inside: bool
) -> None:
    assert in_region(region, "eu") is inside


def test_a_required_region_is_never_left_even_where_nobody_in_it_can_serve() -> None:
    pool = [place("here", "eu-west", service_ms=500.0), place("there", "us", service_ms=1.0)]
    assert chosen(pool, asked(EU)) == {("here", "only-candidate")}
    assert chosen(pool, asked(EU), tried=("here",)) == set()
    assert chosen(pool[1:], asked(EU)) == set()
    assert chosen(pool, asked(EU), avoid_regions=("eu-west",)) == {("here", "only-candidate")}


def test_a_broken_breaker_outside_the_required_region_is_no_last_resort() -> None:
    outside = place("there", "us")
    for _ in range(3):
        outside.breaker.record(outside.breaker.take(0.0), Verdict.FAILURE, 0.0, "inference_failed")
    assert chosen([outside], asked()) == {("there", "last-resort")}
    assert chosen([outside], asked(EU)) == set()


def test_a_preferred_region_is_left_only_when_nobody_in_it_can_answer_in_time() -> None:
    pool = [place("here", "eu", service_ms=500.0), place("there", "us", service_ms=1.0)]
    assert chosen(pool, asked(EU_PREFERRED)) == {("here", "only-candidate")}
    assert chosen(pool, asked(EU_PREFERRED), tried=("here",)) == {("there", "only-candidate")}
    assert chosen(pool, asked(EU_PREFERRED, timeout_s=0.2)) == {("there", "only-candidate")}


def test_labels_must_all_be_there() -> None:
    gpu = NodeConditions(labels=frozenset({("gpu", "a100"), ("tier", "2")}))
    pool = [place("plain"), place("gpu", conditions=gpu)]
    assert chosen(pool, asked(RoutingHints(labels=(("gpu", "a100"),)))) == {
        ("gpu", "only-candidate")
    }
    both = RoutingHints(labels=(("gpu", "a100"), ("tier", "1")))
    assert chosen(pool, asked(both)) == set()
    assert broken_rule("eu", gpu, both) == "label tier=1 is not the node's"


@pytest.mark.parametrize("bad", [BATTERY, HOT, LEAVING])
def test_a_last_resort_serves_only_if_it_is_the_only_one(bad: NodeConditions) -> None:
    pool = [place("bad", conditions=bad, service_ms=1.0), place("good", service_ms=400.0)]
    assert chosen(pool, asked()) == {("good", "only-candidate")}
    assert chosen(pool, asked(), tried=("good",)) == {("bad", "only-candidate")}
    assert chosen(pool[:1], asked()) == {("bad", "only-candidate")}


def test_a_last_resort_serves_what_nobody_else_can_answer_in_time() -> None:
    pool = [place("laptop", conditions=BATTERY, service_ms=1.0), place("slow", service_ms=400.0)]
    assert chosen(pool, asked(timeout_s=0.1)) == {("laptop", "only-candidate")}


def test_what_nobody_is_expected_to_answer_in_time_goes_to_the_least_late() -> None:
    pool = [place("slower", service_ms=900.0), place("slow", service_ms=400.0)]
    assert chosen(pool, asked(timeout_s=0.1)) == {("slow", "late")}


def test_among_equals_only_those_are_taken_that_keep_the_deadline() -> None:
    pool = [place("just", service_ms=100.0), place("late", service_ms=110.0)]
    assert {name for name, _ in chosen(pool, asked())} == {"just", "late"}
    score_ms = pool[0].expected_ms(asked(), 0.0)
    assert {name for name, _ in chosen(pool, asked(timeout_s=(score_ms + 1) / 1000))} == {"just"}


def test_the_order_of_groups_puts_draining_last_and_the_preferred_region_first() -> None:
    order = [
        group_of("eu", USUAL, EU_PREFERRED),
        group_of("us", USUAL, EU_PREFERRED),
        group_of("eu", BATTERY, EU_PREFERRED),
        group_of("us", HOT, EU_PREFERRED),
        group_of("eu", SPARE, EU_PREFERRED),
        group_of("us", SPARE, EU_PREFERRED),
        group_of("eu", BATTERY._replace(standby=True), EU_PREFERRED),
        group_of("eu", LEAVING, EU_PREFERRED),
    ]
    assert order == sorted(set(order))


def test_a_standby_is_asked_only_where_the_others_cannot_answer() -> None:
    pool = [place("home"), place("spare", conditions=SPARE)]
    assert {name for name, _ in chosen(pool, asked())} == {"home"}
    assert {name for name, _ in chosen(pool, asked(), tried=("home",))} == {"spare"}
    # It is no worse than others for a caller that insists on its region.
    abroad = [place("home", "us"), place("spare", "eu", SPARE)]
    assert {name for name, _ in chosen(abroad, asked(EU))} == {"spare"}
    assert {name for name, _ in chosen(abroad, asked(EU_PREFERRED))} == {"home"}


def test_a_standby_takes_over_at_once_when_the_link_to_the_others_breaks() -> None:
    home, spare = place("home"), place("spare", "us", SPARE)
    home.path.link = LinkState.DOWN
    assert {name for name, _ in chosen([home, spare], asked())} == {"spare"}
    assert spare.why_later(asked(), 0.0) == "standby: it is asked where the others cannot answer"


def test_data_that_would_not_fit_into_a_nodes_memory_is_not_sent_there() -> None:
    full = NodeConditions(memory_free_bytes=50 << 20)
    assert not lacks_memory(full, 20 << 20)
    assert lacks_memory(full, 30 << 20)
    assert not lacks_memory(USUAL, 30 << 20)
    assert not lacks_memory(NodeConditions(memory_free_bytes=0), 100)
    pool = [place("full", conditions=full, service_ms=1.0), place("roomy")]
    assert chosen(pool, asked(size_bytes=30 << 20)) == {("roomy", "only-candidate")}


def test_each_drop_has_its_reason() -> None:
    pool = Candidates(
        (
            place("us", "us"),
            place("plain"),
            place(
                "full",
                conditions=NodeConditions(memory_free_bytes=0, labels=frozenset({("a", "b")})),
            ),
        )
    )
    hints = RoutingHints(region="eu", labels=(("a", "b"),))
    assert dict(drops(pool, asked(hints, size_bytes=2 << 20), 0.0)) == {
        "us": "region us: the request must run in eu",
        "plain": "label a=b is not the node's",
        "full": "memory: the request's data would not fit",
    }


def test_why_others_are_asked_first_is_told() -> None:
    assert why_later("eu", USUAL, EU_PREFERRED) == ""
    assert why_later("us", USUAL, EU_PREFERRED) == "region us: the request prefers eu"
    assert why_later("eu", BATTERY, NO_HINTS) == "last resort: on battery (41 %)"
    assert why_later("eu", NodeConditions(on_battery=True), NO_HINTS) == "last resort: on battery"
    assert why_later("eu", HOT, NO_HINTS) == "last resort: held back by its temperature"
    assert why_later("eu", LEAVING, NO_HINTS) == "draining"
    slow = place("slow", service_ms=900.0)
    assert slow.why_later(asked(timeout_s=0.5), 0.0).startswith("deadline: ")
    assert slow.why_later(asked(), 0.0) == ""


def test_groups_are_made_once_per_rule_and_not_at_all_for_usual_requests() -> None:
    plain = Candidates((place("a"), place("b", "us")))
    assert plain.groups(NO_HINTS) == (plain,)
    assert plain.groups(RoutingHints(session="s", caller="k")) == (plain,)
    first = plain.groups(EU)
    assert plain.groups(RoutingHints(region="eu", session="s")) is first
    for number in range(200):
        plain.groups(RoutingHints(region=f"r{number}"))
    assert plain.groups(EU) == plain.groups(EU)
