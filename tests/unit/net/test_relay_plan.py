"""When relays and direct dials are due, in virtual time."""

from __future__ import annotations

import itertools
import random

from meshnode.limits import (
    DIRECT_RETRY_S,
    MAX_DIRECT_RETRY_S,
    MAX_RELAY_RETRY_S,
    RELAY_AFTER_S,
    RELAY_ANSWERS_S,
    RELAY_RETRY_S,
)
from meshnode.net.relay_plan import RelayPlan, Try, Way
from meshnode.types import NodeId

PEER, BOX, OTHER = (NodeId(letter * 32) for letter in "pbo")
NONE = Way()
DIRECT = Way(is_linked=True, is_usable=True)
RELAYED = Way(is_linked=True, relay=BOX, is_usable=True)


def plan() -> RelayPlan:
    return RelayPlan(random.Random(1))


def run(made: RelayPlan, way: Way, start: float, end: float) -> list[tuple[float, Try]]:
    """Look every 10 ms while the way stays as it is; return what was due when."""
    found: list[tuple[float, Try]] = []
    for step in range(int((end - start) * 100)):
        now = start + step / 100
        found += [(now, what) for _, what in made.look({PEER: way}, now)]
    return found


def test_a_needed_peer_without_a_link_gets_a_relay_when_the_network_swallows_the_dial() -> None:
    assert run(plan(), NONE, 0.0, 5.0) == [(RELAY_AFTER_S, Try.RELAY)]


def test_a_dial_that_fails_makes_the_relay_due_at_once() -> None:
    made = plan()
    assert made.look({PEER: NONE}, 0.0) == []
    made.dial_failed(PEER, 0.1)
    assert made.look({PEER: NONE}, 0.1) == [(PEER, Try.RELAY)]


def test_a_peer_that_is_not_needed_gets_none() -> None:
    made = plan()
    made.dial_failed(PEER, 0.0)
    assert made.look({OTHER: DIRECT}, 9.0) == []


def test_a_peer_with_a_direct_link_needs_nothing() -> None:
    assert run(plan(), DIRECT, 0.0, 100.0) == []


def test_one_relay_is_looked_for_at_a_time_and_pauses_between_failures_double() -> None:
    made = plan()
    now = run(made, NONE, 0.0, 2.0)[0][0]
    assert run(made, NONE, 2.0, 50.0) == [], "it is being looked for"
    pauses = []
    for _ in range(8):
        made.relay_tried(PEER, has_worked=False, now=now)
        due = run(made, NONE, now, now + MAX_RELAY_RETRY_S + 1)[0][0]
        pauses.append(due - now)
        now = due
    longest = [min(MAX_RELAY_RETRY_S, RELAY_RETRY_S * 2**number) for number in range(8)]
    for pause, most in zip(pauses, longest, strict=True):
        assert most / 2 <= pause <= most + 0.011


def test_a_dial_that_fails_does_not_shorten_the_pause_between_relays() -> None:
    made = plan()
    made.look({PEER: NONE}, 0.0)
    made.look({PEER: NONE}, RELAY_AFTER_S)
    made.relay_tried(PEER, has_worked=False, now=2.0)
    made.dial_failed(PEER, 2.1)
    assert made.look({PEER: NONE}, 2.2) == []


def test_the_pause_neither_doubles_nor_lasts_while_there_are_relays_that_were_not_asked() -> None:
    made = plan()
    now = run(made, NONE, 0.0, 2.0)[0][0]
    for _ in range(8):
        made.relay_tried(PEER, has_worked=False, now=now, others_left=True)
        now = run(made, NONE, now + 0.01, now + 1)[0][0]
    assert now <= RELAY_AFTER_S + 8 * (RELAY_ANSWERS_S + 0.02)
    made.relay_tried(PEER, has_worked=False, now=now)
    assert run(made, NONE, now, now + RELAY_RETRY_S + 0.1), "then comes the first pause"


def test_a_link_that_comes_up_ends_the_pause_after_no_relay_was_found() -> None:
    made = plan()
    made.look({PEER: NONE}, 0.0)
    made.link_came_up(0.1)
    assert made.look({PEER: NONE}, 0.9) == [], "only failures are tried again sooner"
    made.look({PEER: NONE}, RELAY_AFTER_S)
    made.relay_tried(PEER, has_worked=False, now=2.0)
    made.link_came_up(2.1)
    assert made.look({PEER: NONE}, 2.2) == []
    assert made.look({PEER: NONE}, 2.1 + RELAY_ANSWERS_S) == [(PEER, Try.RELAY)]


def test_a_relayed_link_that_breaks_is_replaced_at_once() -> None:
    made = plan()
    made.look({PEER: RELAYED}, 0.0)
    assert made.look({PEER: NONE}, 5.0) == [(PEER, Try.RELAY)]


def test_a_direct_link_that_breaks_is_left_to_be_dialled_first() -> None:
    made = plan()
    made.look({PEER: DIRECT}, 0.0)
    assert made.look({PEER: NONE}, 5.0) == []
    assert made.look({PEER: NONE}, 5.0 + RELAY_AFTER_S) == [(PEER, Try.RELAY)]


def test_a_relayed_link_that_falls_silent_is_replaced_at_once() -> None:
    made = plan()
    made.look({PEER: RELAYED}, 0.0)
    assert made.look({PEER: RELAYED._replace(is_usable=False)}, 5.0) == [(PEER, Try.RELAY)]


def test_a_silent_link_gets_a_relay_beside_it() -> None:
    silent = Way(is_linked=True)
    assert run(plan(), silent, 0.0, 3.0) == [(RELAY_AFTER_S, Try.RELAY)]


def test_the_direct_way_is_tried_again_and_again_but_ever_less_often() -> None:
    made = plan()
    made.look({PEER: NONE}, 0.0)
    made.dial_failed(PEER, 0.0)
    tried = [now for now, what in run(made, RELAYED, 0.0, 4000.0) if what is Try.DIRECT]
    pauses = [later - now for now, later in itertools.pairwise(tried)]
    assert DIRECT_RETRY_S / 2 <= tried[0] <= DIRECT_RETRY_S + 0.011
    assert all(
        MAX_DIRECT_RETRY_S / 2 <= pause <= MAX_DIRECT_RETRY_S + 0.011 for pause in pauses[6:]
    )
    assert pauses[0] < pauses[5]


def test_who_is_called_through_a_relay_dials_the_caller_who_may_have_no_way_to_it() -> None:
    tried = [now for now, what in run(plan(), RELAYED, 0.0, 60.0) if what is Try.DIRECT]
    assert tried[0] == 0.0
    assert DIRECT_RETRY_S / 2 <= tried[1] <= DIRECT_RETRY_S + 0.011


def test_another_address_of_either_end_makes_a_direct_dial_worth_while_at_once() -> None:
    made = plan()
    run(made, RELAYED, 0.0, 100.0)
    moved = RELAYED._replace(places=("elsewhere",))
    assert made.look({PEER: moved}, 100.0) == [(PEER, Try.DIRECT)]
    assert made.look({PEER: moved}, 100.01) == []


def test_a_direct_link_ends_the_dialling_and_a_relayed_one_later_begins_it_anew() -> None:
    made = plan()
    run(made, RELAYED, 0.0, 1000.0)
    assert run(made, DIRECT, 1000.0, 1100.0) == []
    tried = run(made, RELAYED, 1100.0, 1100.0 + DIRECT_RETRY_S + 0.1)
    assert [what for _, what in tried] == [Try.DIRECT, Try.DIRECT]
    assert tried[0][0] == 1100.0


def test_who_is_needed_no_more_is_forgotten() -> None:
    made = plan()
    made.look({PEER: NONE, OTHER: NONE}, 0.0)
    made.look({}, 0.5)
    assert repr(made) == "<RelayPlan for 0 peers>"


def test_a_much_nearer_relay_is_moved_to_and_one_that_is_a_little_nearer_is_not() -> None:
    for best_s, is_worth_it in ((0.05, True), (0.08, False), (None, False), (0.2, False)):
        way = RELAYED._replace(rtt_s=0.1, best_rtt_s=best_s)
        found = [what for _, what in run(plan(), way, 0.0, 12.0) if what is Try.BETTER_RELAY]
        assert bool(found) == is_worth_it


def test_a_gain_that_nobody_notices_is_none() -> None:
    way = RELAYED._replace(rtt_s=0.004, best_rtt_s=0.001)
    assert Try.BETTER_RELAY not in [what for _, what in run(plan(), way, 0.0, 60.0)]


def test_a_search_for_a_better_relay_that_fails_changes_nothing() -> None:
    made = plan()
    way = RELAYED._replace(rtt_s=0.1, best_rtt_s=0.01)
    found = [now for now, what in run(made, way, 0.0, 12.0) if what is Try.BETTER_RELAY]
    assert len(found) == 1
    made.reviewed(PEER)
    later = run(made, way, 12.0, 24.0)
    assert Try.RELAY not in [what for _, what in later]
    assert Try.BETTER_RELAY in [what for _, what in later]


def test_a_search_for_a_better_relay_keeps_nobody_from_replacing_the_present_one() -> None:
    made = plan()
    way = RELAYED._replace(rtt_s=0.1, best_rtt_s=0.01)
    assert Try.BETTER_RELAY in [what for _, what in run(made, way, 0.0, 12.0)]
    assert made.look({PEER: way._replace(is_usable=False)}, 12.0) == [(PEER, Try.RELAY)]
    made.reviewed(PEER)
    assert Try.RELAY not in [what for _, what in run(made, NONE, 12.0, 20.0)], "one at a time"
