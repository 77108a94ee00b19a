"""Whom a transfer asks for what, alone and among nodes that fetch the same."""

from __future__ import annotations

import pytest

from meshnode.limits import FETCH_STALL_S, MAX_CHUNKS_ASKED, MAX_CHUNKS_UNDER_WAY
from meshnode.models.artifacts.transfer import (
    GIVE_UP_AFTER,
    LATE_S,
    STEAL_AFTER_S,
    Ask,
    Cancel,
    Transfer,
    companions,
)
from meshnode.types import NodeId
from tests.unit.models.swarm import PIECE_BYTES, Swarm

A, B, C, ME = NodeId("a"), NodeId("b"), NodeId("c"), NodeId("me")
PIECES = 200
ONE_S = PIECES * PIECE_BYTES / 20e6
NODES = [f"n{i}" for i in range(8)]


def bits(*pieces: int) -> int:
    return sum(1 << piece for piece in pieces)


def begin(count: int) -> Transfer:
    return Transfer(ME, [10] * count, range(count), 0.0)


def complete(transfer: Transfer, node: NodeId, count: int, now: float = 0.0) -> list[Ask | Cancel]:
    transfer.joined(node, is_fetching=False)
    return transfer.heard(node, (1 << count) - 1, is_complete=True, is_fetching=False, now=now)


def fetching(
    transfer: Transfer, node: NodeId, *pieces: int, now: float = 0.0
) -> list[Ask | Cancel]:
    transfer.joined(node, is_fetching=True)
    return transfer.heard(node, bits(*pieces), is_complete=False, is_fetching=True, now=now)


# Among others, in virtual time


def test_one_node_fetches_as_fast_as_its_link() -> None:
    swarm = Swarm(["a"], PIECES)
    swarm.run()
    assert swarm.done_at["a"] <= 1.01 * ONE_S, swarm.report()
    assert swarm.copies("publisher") == 1


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_many_nodes_at_once_take_little_longer_than_one_and_spare_the_publisher(count: int) -> None:
    """The target: 8 nodes over links of 20 MB/s in at most twice the time of one, two copies sent."""
    swarm = Swarm([f"n{i:02}" for i in range(count)], PIECES)
    swarm.run()
    assert len(swarm.done_at) == count
    assert max(swarm.done_at.values()) <= 1.5 * ONE_S, swarm.report()
    assert swarm.copies("publisher") <= 1.1, swarm.report()


def test_a_publisher_with_a_fast_link_still_sends_one_copy() -> None:
    swarm = Swarm(NODES, PIECES)
    swarm.up_s["publisher"] /= 10
    swarm.run()
    assert max(swarm.done_at.values()) <= 1.5 * ONE_S, swarm.report()
    assert swarm.copies("publisher") <= 1.1, swarm.report()


def test_nodes_that_never_answer_delay_the_others_little() -> None:
    swarm = Swarm(NODES, PIECES)
    swarm.silent = {"n2", "n3"}
    for name in swarm.silent:
        del swarm.transfers[name]
    swarm.run()
    assert len(swarm.done_at) == 6
    assert max(swarm.done_at.values()) <= 2 * ONE_S, swarm.report()
    assert swarm.copies("publisher") <= 1.5, swarm.report()


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_node_on_a_slow_link_does_not_slow_the_others(way: str) -> None:
    swarm = Swarm(NODES, PIECES)
    (swarm.up_s if way == "up" else swarm.down_s)["n2"] *= 20
    swarm.run()
    others = [done for name, done in swarm.done_at.items() if name != "n2"]
    assert len(others) == 7
    assert max(others) <= 2 * ONE_S, swarm.report()
    assert swarm.copies("publisher") <= 2, swarm.report()


def test_a_node_that_sends_rubbish_is_left_out() -> None:
    swarm = Swarm(NODES, PIECES)
    swarm.corrupt = {"n2"}
    swarm.run()
    assert len(swarm.done_at) == 8
    assert swarm.sent["n2"] <= 7 * MAX_CHUNKS_ASKED, "each asked before it knew"
    assert max(swarm.done_at.values()) <= 2 * ONE_S, swarm.report()


# One transfer


def test_a_complete_source_is_asked_for_a_few_pieces_at_a_time_in_order() -> None:
    transfer = begin(10)
    assert complete(transfer, A, 10) == [Ask(A, 0), Ask(A, 1), Ask(A, 2)]
    assert transfer.arrived(A, 0, 0.1) == [Ask(A, 3)]
    assert transfer.received_bytes == 10


def test_several_complete_sources_share_the_work() -> None:
    transfer = begin(100)
    asked: list[Ask | Cancel] = []
    for index in range(MAX_CHUNKS_UNDER_WAY):
        asked += complete(transfer, NodeId(f"s{index}"), 100)
    assert len(asked) == MAX_CHUNKS_UNDER_WAY, "no more at once, however many there are"
    assert len({each.piece for each in asked}) == MAX_CHUNKS_UNDER_WAY


def test_beside_nodes_that_fetch_too_only_the_own_share_is_asked_of_the_complete_one() -> None:
    transfer = begin(9)
    transfer.joined(B, is_fetching=True)
    transfer.joined(C, is_fetching=True)
    assert complete(transfer, A, 9) == [Ask(A, 2), Ask(A, 5), Ask(A, 8)]
    assert fetching(transfer, B, 0, 3, now=0.1) == [Ask(B, 0), Ask(B, 3)]


def test_what_nobody_passes_on_is_taken_from_the_complete_one_after_a_moment() -> None:
    transfer = begin(4)
    transfer.joined(B, is_fetching=True)
    complete(transfer, A, 4)
    for piece in (1, 3):
        transfer.arrived(A, piece, 0.1)
    assert transfer.tick(STEAL_AFTER_S - 0.01) == []
    (stolen,) = transfer.tick(STEAL_AFTER_S)
    assert stolen.node == A
    assert stolen.piece in (0, 2)


def test_a_node_that_turns_out_not_to_fetch_has_no_share() -> None:
    transfer = begin(4)
    transfer.joined(B, is_fetching=True)
    assert complete(transfer, A, 4) == [Ask(A, 1), Ask(A, 3)]
    assert transfer.left(B, "it has none", 0.1) == [Ask(A, 0)]
    assert transfer.reasons == {B: "it has none"}


def test_as_many_complete_sources_as_nodes_that_fetch_need_not_be_spared() -> None:
    transfer = begin(6)
    transfer.joined(C, is_fetching=True)
    complete(transfer, A, 6)
    asks = complete(transfer, B, 6)
    assert len(transfer._own) + len(asks) + MAX_CHUNKS_ASKED == 6


def test_a_late_piece_is_asked_of_another_and_the_first_that_comes_counts() -> None:
    transfer = begin(1)
    assert complete(transfer, A, 1) == [Ask(A, 0)]
    assert complete(transfer, B, 1) == []
    assert transfer.tick(LATE_S - 0.01) == []
    assert transfer.tick(LATE_S) == [Ask(B, 0)]
    assert transfer.arrived(B, 0, LATE_S + 0.1) == [Cancel(A, 0)]
    assert transfer.is_done


def test_the_last_pieces_are_not_waited_for_long() -> None:
    transfer = begin(4)
    complete(transfer, A, 4)
    complete(transfer, B, 4)
    transfer.arrived(B, 3, 0.05)
    transfer.arrived(A, 0, 0.05)
    transfer.arrived(A, 1, 0.1)
    assert transfer.tick(0.2) == []
    assert transfer.tick(0.6) == [Ask(B, 2)]


def test_a_source_that_fails_rests_and_its_piece_goes_elsewhere() -> None:
    transfer = begin(1)
    complete(transfer, A, 1)
    complete(transfer, B, 1)
    assert transfer.failed(A, 0, "the link broke", 1.0) == [Ask(B, 0)]
    assert transfer.failed(B, 0, "it too", 1.1) == []
    assert transfer.tick(1.4) == []
    assert transfer.tick(1.6) == [Ask(A, 0)]
    assert transfer.reasons == {A: "the link broke", B: "it too"}


def test_a_source_that_fails_again_and_again_counts_only_when_it_speaks_again() -> None:
    transfer = begin(1)
    complete(transfer, A, 1)
    now = 0.0
    for _ in range(GIVE_UP_AFTER):
        transfer.failed(A, 0, "no", now)
        now += 10.0
        transfer.tick(now)
    assert transfer.why_hopeless(1.0) == "no node has what is missing"
    assert complete(transfer, A, 1, now=now) == [Ask(A, 0)]
    assert transfer.why_hopeless(1.0) is None


def test_a_source_that_sent_something_wrong_is_never_asked_again() -> None:
    transfer = begin(1)
    complete(transfer, A, 1)
    assert transfer.corrupt(A, 0, "a wrong chunk", 0.1) == []
    assert complete(transfer, A, 1, now=60.0) == []
    assert transfer.why_hopeless(1.0) == "no node has what is missing"


def test_a_transfer_without_sources_or_without_progress_is_hopeless() -> None:
    transfer = begin(2)
    assert transfer.why_hopeless(0.0) == "no node has what is missing"
    transfer.joined(A, is_fetching=False)
    assert transfer.why_hopeless(0.0) is None, "its answer is waited for"
    complete(transfer, A, 2)
    transfer.arrived(A, 0, 5.0)
    assert transfer.why_hopeless(5.0 + FETCH_STALL_S - 0.1) is None
    why = transfer.why_hopeless(5.0 + FETCH_STALL_S)
    assert why is not None
    assert "nothing arrived" in why
    transfer.arrived(A, 1, 30.0)
    assert transfer.why_hopeless(1000.0) is None


def test_a_piece_that_comes_twice_counts_once() -> None:
    transfer = begin(2)
    complete(transfer, A, 2)
    transfer.arrived(A, 0, 0.1)
    transfer.arrived(A, 0, 0.2)
    assert transfer.received_bytes == 10
    assert repr(transfer) == "<Transfer: 1 pieces missing, [<a complete, 1 under way>]>"


def test_each_node_begins_with_its_neighbours_and_then_further_away() -> None:
    nodes = [NodeId(str(index)) for index in range(10)]
    assert companions(nodes, NodeId("0"))[:6] == ("1", "9", "2", "8", "4", "6")
    assert sorted(companions(nodes, NodeId("3"))) == sorted(set(nodes) - {"3"})
    assert companions(nodes, NodeId("elsewhere")) == tuple(nodes)
    assert companions([ME], ME) == ()
