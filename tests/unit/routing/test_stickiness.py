"""Sessions and beginnings of inputs: remembered, bounded, and never a hot spot."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

from meshnode.routing.choice import Candidates, choose
from meshnode.routing.conditions import NodeConditions
from meshnode.routing.picking import NEAR_LOWEST
from meshnode.routing.request import RoutedRequest
from meshnode.routing.stickiness import PREFIX_BYTES, SAVED_SHARE, Stickiness, prefix_of
from meshnode.types import DataType, NodeId, RoutingHints, Tensor
from tests.unit.routing.test_choice import candidate

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.routing.choice import Candidate
    from meshnode.routing.router import Router

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")


def in_session(word: str = "s", prefix: bytes = b"") -> RoutedRequest:
    return RoutedRequest("m", hints=RoutingHints(session=word, prefix=prefix))


def texts(text: bytes) -> tuple[Tensor, ...]:
    return (Tensor("text", DataType.BYTES, (1,), len(text).to_bytes(4, "little") + text),)


def chosen(pool: list[Candidate], request: RoutedRequest, draws: int = 100) -> Counter[str]:
    rng = random.Random(1)
    routes = [choose(Candidates(tuple(pool)), request, 0.0, rng) for _ in range(draws)]
    return Counter(each.replica.node_name for each in routes if each is not None)


def test_a_session_without_a_home_goes_to_the_same_one_of_equals_at_every_gateway() -> None:
    pool = [candidate(name) for name in "abcdefgh"]
    for word in ("one", "two", "three"):
        assert len(chosen(pool, in_session(word))) == 1
        assert (
            len(chosen([*reversed(pool)], in_session(word)) | chosen(pool, in_session(word))) == 1
        )
    homes = {next(iter(chosen(pool, in_session(str(word)), draws=1))) for word in range(100)}
    assert len(homes) == len(pool)


def test_a_session_stays_at_its_home_while_that_is_not_much_worse() -> None:
    sticky = Stickiness()
    sticky.answered(in_session(), B, now=0.0)
    request = sticky.placed(in_session(), now=1.0)
    assert (request.home, request.saves) == (B, {B: SAVED_SHARE})
    idle = [candidate("a"), candidate("b"), candidate("c")]
    assert chosen(idle, request) == {"b": 100}
    a_little_busy = [candidate("a"), candidate("b", service_ms=15.0), candidate("c")]
    assert chosen(a_little_busy, request) == {"b": 100}
    full = [candidate("a"), candidate("b", queued=3), candidate("c")]
    assert "b" not in chosen(full, request)


def test_a_session_follows_whoever_answered_it_last() -> None:
    sticky = Stickiness()
    sticky.answered(in_session(), A, now=0.0)
    sticky.answered(in_session(), B, now=1.0)
    assert sticky.placed(in_session(), 2.0).home == B
    assert sticky.placed(in_session("other"), 2.0).home is None


def test_replicas_that_have_seen_the_beginning_come_first_among_equals() -> None:
    sticky = Stickiness()
    request = RoutedRequest("m", hints=RoutingHints(prefix=b"p"))
    sticky.answered(request, B, now=0.0)
    sticky.answered(request, C, now=0.0)
    placed = sticky.placed(request, 1.0)
    assert placed.home is None
    drawn = chosen([candidate(name) for name in "abcd"], placed)
    assert set(drawn) == {"b", "c"}


def test_a_beginning_that_all_requests_share_makes_no_hot_spot() -> None:
    """The replica that has seen it fills up, leaves the equals, and others see it too."""
    sticky = Stickiness()
    pool = {name: candidate(name) for name in "abcd"}
    request = RoutedRequest("m", hints=RoutingHints(prefix=b"p"))
    rng = random.Random(1)
    sent: Counter[str] = Counter()
    for _ in range(40):
        route = choose(Candidates(tuple(pool.values())), sticky.placed(request, 0.0), 0.0, rng)
        assert route is not None
        name = route.replica.node_name
        sent[name] += 1
        route.candidate.load.start(0.0, 1.0)
        sticky.answered(request, NodeId(name), 0.0)
    assert set(sent) == set("abcd")
    assert max(sent.values()) <= NEAR_LOWEST * 10 + 2


def test_what_is_remembered_is_bounded_and_ages() -> None:
    sticky = Stickiness(max_sessions=10, max_prefixes=10)
    for number in range(100):
        sticky.answered(in_session(str(number), str(number).encode()), A, now=float(number))
    assert repr(sticky) == "<Stickiness: 10 sessions, 10 beginnings>"
    assert sticky.placed(in_session("0", b"0"), 100.0) == in_session("0", b"0")
    assert sticky.placed(in_session("99"), 100.0).home == A
    assert sticky.placed(in_session("99", b"99"), 10_000.0).home is None
    for number in range(100):
        sticky.answered(in_session("many", b"many"), NodeId(f"n{number}"), now=0.0)
    assert len(sticky.placed(in_session("", b"many"), 0.0).saves) == 8


def test_a_node_that_is_gone_is_nobodys_home() -> None:
    sticky = Stickiness()
    sticky.answered(in_session(prefix=b"p"), A, now=0.0)
    sticky.forget(A)
    assert sticky.placed(in_session(prefix=b"p"), 0.0) == in_session(prefix=b"p")
    assert repr(sticky) == "<Stickiness: 0 sessions, 0 beginnings>"


def test_the_router_sends_a_session_back_to_where_it_was_answered(
    make_router: Callable[..., Router],
) -> None:
    router = make_router("a", "b", "c")
    request = RoutedRequest("digits", hints=RoutingHints(session="s"))
    routes = set()
    for step in range(10):
        attempts = router.plan(request, float(step))
        sent = attempts.next(float(step))
        attempts.succeeded(float(step) + 0.01)
        routes.add(sent.route.replica.node)  # type: ignore[union-attr]
    assert len(routes) == 1
    router.node_removed(routes.pop())
    assert router.plan(request, 20.0).next(20.0).route.replica.node_name in "abc"  # type: ignore[union-attr]


def test_only_long_texts_have_a_beginning() -> None:
    long = b"x" * PREFIX_BYTES
    assert prefix_of(texts(long)) == prefix_of(texts(long + b"and more")) != b""
    assert prefix_of(texts(b"y" + long)) != prefix_of(texts(long))
    assert prefix_of(texts(long[:-1])) == b""
    assert prefix_of((Tensor("x", DataType.FP32, (1024,), bytes(4096)),)) == b""
    assert prefix_of(()) == b""


def test_among_equals_the_cheapest_are_taken_and_price_never_buys_a_slow_answer() -> None:
    cheap, dear, free = candidate("cheap"), candidate("dear"), candidate("free", service_ms=30.0)
    cheap.conditions = NodeConditions(cost=0.5)
    dear.conditions = NodeConditions(cost=2.0)
    request = RoutedRequest("m")
    assert chosen([cheap, dear, free], request) == {"cheap": 100}
    assert set(chosen([candidate("a"), candidate("b")], request)) == {"a", "b"}
