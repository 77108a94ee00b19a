"""Whom a node wants links with for the sake of requests."""

from __future__ import annotations

import hashlib

from meshnode.limits import MAX_CANDIDATES_SCORED
from meshnode.request_links import RequestLinks
from meshnode.types import NodeId, node_id_of


def node(name: str) -> NodeId:
    return node_id_of(hashlib.sha256(name.encode()).digest())


ME = node("me")
MANY = [node(f"n{i}") for i in range(200)]


def test_all_of_a_few_holders_are_needed_until_nothing_needs_them() -> None:
    links = RequestLinks(ME)
    a, b, c = MANY[:3]
    links.put(("model", 1), [a, b, ME])
    links.put(("other", 1), [b, c])
    assert links.members == {a, b, c}
    links.put(("model", 1), [])
    assert links.members == {b, c}
    links.put(("other", 1), [c])
    assert links.members == {c}
    assert repr(links) == "<RequestLinks to 1 members for 1 needs>"


def test_a_change_is_told_once_and_the_same_again_is_none() -> None:
    links = RequestLinks(ME)
    assert not links.has_changed()
    links.put("need", MANY[:2])
    assert links.has_changed()
    assert not links.has_changed()
    links.put("need", MANY[1::-1])
    assert not links.has_changed()
    links.put("need", ())
    assert links.has_changed()


def test_of_many_holders_each_gateway_takes_its_own_share() -> None:
    shares = []
    for name in ("gateway", "another"):
        links = RequestLinks(node(name))
        links.put("need", MANY)
        assert len(links.members) == MAX_CANDIDATES_SCORED
        shares.append(links.members)
    assert shares[0] != shares[1]
    assert len(shares[0] | shares[1]) > 1.3 * MAX_CANDIDATES_SCORED
