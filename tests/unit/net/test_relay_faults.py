"""Which relays come last, and for how long, in virtual time."""

from __future__ import annotations

from meshnode.limits import (
    HANDSHAKE_TIMEOUT_S,
    MAX_RELAY_DISTRUST_S,
    MAX_RELAY_FAULTS,
    RELAY_DISTRUST_S,
)
from meshnode.net.relay_faults import RelayFaults
from meshnode.types import NodeId

BOX, OTHER, PEER, FRIEND = (NodeId(letter * 32) for letter in "bopf")


def lasts_s(faults: RelayFaults, since: float) -> float:
    """How long after `since` a failure of the box to the peer counts."""
    whole = int(MAX_RELAY_DISTRUST_S) + 2
    return next(s for s in range(whole) if not faults.count(BOX, PEER, since + s))


def test_a_relay_that_failed_to_a_peer_is_distrusted_for_it_alone_and_for_a_while() -> None:
    faults = RelayFaults()
    assert faults.count(BOX, PEER, 0.0) == 0
    faults.failed(BOX, PEER, 0.0)
    assert faults.count(BOX, PEER, 0.0) == 1
    assert faults.count(BOX, FRIEND, 0.0) == faults.count(OTHER, PEER, 0.0) == 0
    assert lasts_s(faults, 0.0) == RELAY_DISTRUST_S


def test_if_the_peer_then_answers_through_another_relay_the_first_is_distrusted_for_all() -> None:
    faults = RelayFaults()
    faults.failed(BOX, PEER, 0.0)
    faults.reached(OTHER, PEER, 1.0)
    assert faults.count(BOX, FRIEND, 1.0) == 1
    assert faults.count(OTHER, FRIEND, 1.0) == faults.count(OTHER, PEER, 1.0) == 0
    faults.reached(OTHER, PEER, 2.0)
    assert faults.count(BOX, FRIEND, 2.0) == 1, "one failure is counted once"


def test_a_peer_that_answers_much_later_was_perhaps_gone_itself() -> None:
    faults = RelayFaults()
    faults.failed(BOX, PEER, 0.0)
    faults.reached(OTHER, PEER, HANDSHAKE_TIMEOUT_S + 0.1)
    assert faults.count(BOX, FRIEND, HANDSHAKE_TIMEOUT_S + 0.1) == 0


def test_a_relay_that_was_gone_itself_is_trusted_again_once_it_is_back() -> None:
    faults = RelayFaults()
    faults.failed(BOX, PEER, 0.0)
    faults.reached(OTHER, PEER, 1.0)
    faults.returned(OTHER)
    assert faults.count(BOX, PEER, 2.0) == faults.count(BOX, FRIEND, 2.0) == 1
    faults.returned(BOX)
    assert faults.count(BOX, PEER, 2.0) == faults.count(BOX, FRIEND, 2.0) == 0
    faults.failed(BOX, PEER, 3.0)
    assert faults.count(BOX, PEER, 3.0) == 2, "who comes and goes is not trusted anew each time"
    faults.returned(BOX)
    assert faults.count(BOX, PEER, 3.0) == 2


def test_who_fails_again_is_distrusted_for_twice_as_long_up_to_a_limit() -> None:
    faults = RelayFaults()
    now = 0.0
    for number in range(9):
        faults.failed(BOX, PEER, now)
        assert faults.count(BOX, PEER, now) == number + 1
        wanted_s = min(MAX_RELAY_DISTRUST_S, RELAY_DISTRUST_S * 2**number)
        assert lasts_s(faults, now) == wanted_s
        now += wanted_s + 1.0  # as soon as it is tried again


def test_a_relay_that_was_good_for_as_long_as_it_was_distrusted_begins_anew() -> None:
    faults = RelayFaults()
    faults.failed(BOX, PEER, 0.0)
    faults.failed(BOX, PEER, 2 * RELAY_DISTRUST_S)
    assert faults.count(BOX, PEER, 2 * RELAY_DISTRUST_S) == 1


def test_no_more_than_so_many_are_remembered_and_the_oldest_go_first() -> None:
    faults = RelayFaults()
    for number in range(MAX_RELAY_FAULTS + 1):
        faults.failed(NodeId(f"relay-{number}"), PEER, 0.0)
    assert repr(faults) == f"<RelayFaults {MAX_RELAY_FAULTS}>"
    assert faults.count(NodeId("relay-0"), PEER, 0.0) == 0
    assert faults.count(NodeId("relay-1"), PEER, 0.0) == 1
