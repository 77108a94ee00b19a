"""Links of a large mesh: to a few neighbours, to those that requests go to, and closed when not needed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.effects import CloseLink, Dial, Effect, SendNote
from meshnode.events import DialFailed, Leave
from meshnode.membership import LAN
from meshnode.membership.linking import neighbours, rank
from meshnode.membership.messages import Ack, PingRequest, Sync, Unwanted
from meshnode.membership.timers import (
    DialDue,
    LinkRound,
    LinkSync,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
)
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.types import NodeId
    from tests.unit.membership.conftest import Stage, Tools, World

SMALL = replace(LAN, full_mesh_size=4, link_degree=3)
"""Settings with which a dozen nodes are a large mesh."""

NAMES = [f"m{i}" for i in range(20)]


@pytest.fixture
def large(tools: type[Tools]) -> Stage:
    """Return a core that knows twenty members and has no link."""
    stage = tools.stage(config=SMALL)
    stage.learn(*NAMES)
    return stage


def near(tools: type[Tools], name: str = "me", count: int = 3) -> list[NodeId]:
    """Return the neighbours of a node among all that there are."""
    others = [tools.id(each) for each in (*NAMES, "me") if each != name]
    return neighbours(tools.id(name), others, count)


def name_of(tools: type[Tools], node_id: NodeId) -> str:
    return next(name for name in (*NAMES, "me") if tools.id(name) == node_id)


def far(tools: type[Tools]) -> str:
    """Return the name of a member that this node wants no link with."""
    # From the end: the first few are dialled while the mesh is still small.
    return next(name for name in reversed(NAMES) if tools.id(name) not in near(tools))


def dialled(tools: type[Tools], stage: Stage, effects: list[Effect]) -> set[NodeId]:
    """Return who is dialled, now or when a wait is over."""
    found = {effect.expect for effect in effects if isinstance(effect, Dial)}
    for timer in tools.timers(effects, DialDue):
        found |= {e.expect for e in stage.fire(timer) if isinstance(e, Dial)}
    return {node_id for node_id in found if node_id is not None}


def test_rank_is_the_same_from_both_sides_and_differs_from_node_to_node(
    tools: type[Tools],
) -> None:
    a, b, c = map(tools.id, "abc")
    assert rank(a, b) == rank(b, a)
    assert len({rank(a, b), rank(a, c), rank(b, c)}) == 3


def test_neighbours_are_chosen_evenly_and_most_of_them_mutually(tools: type[Tools]) -> None:
    ids = [tools.id(f"n{i}") for i in range(300)]
    chosen = {each: set(neighbours(each, [o for o in ids if o != each], 8)) for each in ids}
    mutual = sum(one in chosen[other] for one in ids for other in chosen[one])
    assert mutual / (300 * 8) > 0.7
    wanted_by = {each: sum(each in others for others in chosen.values()) for each in ids}
    assert max(wanted_by.values()) < 25
    reached = {ids[0]}
    for _ in range(5):  # log 300 / log 8 is below 3
        reached |= {other for one in reached for other in chosen[one]}
    assert len(reached) == 300


def test_a_small_mesh_links_everybody_and_a_large_one_neighbours_only(
    tools: type[Tools],
) -> None:
    stage = tools.stage(config=SMALL)
    effects = stage.learn("m0", "m1", "m2")
    assert dialled(tools, stage, effects) == {tools.id(name) for name in ("m0", "m1", "m2")}
    assert set(stage.core._linking.wanted()) == {tools.id(name) for name in ("m0", "m1", "m2")}
    stage.learn(*NAMES)
    assert set(stage.core._linking.wanted()) == set(near(tools))


def test_a_neighbour_that_dies_is_made_up_for(large: Stage, tools: type[Tools]) -> None:
    first, *others, last = near(tools, count=4)
    large.hear(name_of(tools, first), NodeState.DEAD)
    assert set(large.core._linking.wanted()) == {*others, last}
    for name in NAMES:
        large.core._dialler._forget(tools.id(name))  # as if all attempts so far had ended
        large.core._dialler._timers.clear()
    effects = large.hear(name_of(tools, others[0]), NodeState.DEAD)
    assert dialled(tools, large, effects) == set(near(tools, count=5)) - {first, others[0]}


def test_requests_get_their_links_at_once_and_for_as_long_as_they_are_wanted(
    large: Stage, tools: type[Tools]
) -> None:
    wanted = frozenset({tools.id(far(tools)), tools.id("stranger"), large.id})
    effects = large.core.want_links(wanted, large.now)
    asked = {effect.expect for effect in effects if isinstance(effect, Dial)}
    assert tools.id(far(tools)) in asked, "whichever NodeId is smaller"
    assert asked <= {tools.id(far(tools)), *near(tools)}
    assert large.core.want_links(wanted, large.now) == []
    large.link(far(tools))
    assert large.note(far(tools), Unwanted()) == [], "it is wanted"
    large.core.want_links(frozenset(), large.now)
    (close,) = large.note(far(tools), Unwanted())
    assert isinstance(close, CloseLink)
    assert (close.to, close.only_if_idle) == (tools.id(far(tools)), True)


def test_a_member_that_requests_go_to_is_linked_as_soon_as_it_joins(tools: type[Tools]) -> None:
    stage = tools.stage(config=SMALL)
    stage.learn(*(name for name in NAMES if name != far(tools)))
    stage.core.want_links(frozenset({tools.id(far(tools))}), stage.now)
    effects = stage.learn(far(tools))
    assert {e.expect for e in effects if isinstance(e, Dial)} == {tools.id(far(tools))}


def test_a_link_that_is_not_wanted_is_offered_for_closing_after_a_while_and_again_later(
    large: Stage, tools: type[Tools]
) -> None:
    large.link(far(tools))
    neighbour = name_of(tools, near(tools)[0])
    large.link(neighbour)
    offers = []
    for _ in range(12):
        effects = large.fire(LinkRound(), 11.0)
        assert tools.timers(effects, LinkRound)
        offers.append([e.to for e in effects if isinstance(e, SendNote)])
    peer = tools.id(far(tools))
    assert [offer for offer in offers if offer] == [[peer], [peer]]
    assert offers[3] == [peer], "three rounds of 11 s after it was seen first"
    assert offers[9] == [peer]


def test_a_link_that_is_wanted_again_is_not_offered(large: Stage, tools: type[Tools]) -> None:
    large.link(far(tools))
    large.fire(LinkRound(), 11.0)
    large.core.want_links(frozenset({tools.id(far(tools))}), large.now)
    for _ in range(6):
        assert tools.messages(large.fire(LinkRound(), 11.0)) == []


def test_the_end_of_a_link_that_was_agreed_on_is_no_reason_to_probe(
    large: Stage, tools: type[Tools]
) -> None:
    large.link(far(tools))
    assert large.note(far(tools), Unwanted())
    assert large.unlink(far(tools)) == []
    large.link(far(tools))
    assert tools.messages(large.unlink(far(tools))), "this one broke"


def test_offers_of_strangers_and_by_datagram_change_nothing(
    large: Stage, tools: type[Tools]
) -> None:
    assert large.note("stranger", Unwanted()) == []
    large.link("stranger")
    assert large.note("stranger", Unwanted()) == []
    assert tools.messages(large.fire(LinkRound(), 100.0)) == []
    large.link(far(tools))
    effects = large.datagram(far(tools), Unwanted())
    assert tools.emits(effects) == [("member.dropped", tools.id(far(tools)))]
    large.tell(Leave())
    assert large.note(far(tools), Unwanted()) == []


def test_where_datagrams_do_not_pass_a_link_is_wanted(large: Stage, tools: type[Tools]) -> None:
    large.link(far(tools))
    for _ in range(3):
        large.core._outbox.answered(tools.id(far(tools)), directly=False)
    assert large.note(far(tools), Unwanted()) == []
    assert tools.id(far(tools)) in large.core._linking.wanted()


def test_helpers_are_the_target_s_neighbours_and_one_over_a_link(
    large: Stage, tools: type[Tools]
) -> None:
    large.link(far(tools))
    for _ in range(15):
        effects = large.fire(ProbePeriod(), 1.0)
        ((target, ping),) = tools.messages(effects)
        asked = large.fire(tools.timers(effects, ProbeTimeout)[0], 0.5)
        helpers = [to for to, m in tools.messages(asked) if isinstance(m, PingRequest)]
        assert target not in helpers
        assert len(set(helpers)) == 3
        if target != tools.id(far(tools)):
            assert helpers[0] == tools.id(far(tools)), "own datagrams may be what does not pass"
            assert set(helpers[1:]) <= set(near(tools, name_of(tools, target), 8))
        large.ack(target, ping.sequence)


def test_a_suspect_does_not_help(tools: type[Tools]) -> None:
    stage = tools.stage()
    stage.learn("a", "b", "c")
    stage.hear("b", NodeState.SUSPECT)
    for _ in range(3):
        helpers = stage.core._linking.helpers(tools.id("a"), 3)
        assert helpers == [tools.id("c")]


def test_a_member_that_this_node_suspects_is_dialled_once(large: Stage, tools: type[Tools]) -> None:
    large.core._prober._order = [tools.id(far(tools))]
    effects = large.fire(ProbePeriod())
    asked = large.fire(tools.timers(effects, ProbeTimeout)[0], 0.5)
    judged = large.fire(tools.timers(asked, ProbeDeadline)[0], 0.5)
    assert tools.emits(judged) == [("member.suspect", tools.id(far(tools)))]
    (dial,) = (effect for effect in judged if isinstance(effect, Dial))
    assert dial.expect == tools.id(far(tools))
    assert large.tell(DialFailed(dial.addresses, dial.expect, "silence")) == []


def test_in_a_large_mesh_a_new_link_is_no_reason_to_compare_views_twice_a_second(
    tools: type[Tools],
) -> None:
    stage = tools.stage("a-small-id", config=SMALL)
    greater = [name for name in NAMES if tools.id(name) > stage.id][:3]
    stage.learn(*NAMES)
    begun = [
        [m for _, m in tools.messages(stage.link(name)) if isinstance(m, Sync)] for name in greater
    ]
    assert [len(syncs) for syncs in begun] == [1, 0, 0]
    stage.now += 1.0
    stage.unlink(greater[0])
    assert len(tools.messages(stage.link(greater[0]))) == 1


def test_the_greater_node_id_begins_if_the_smaller_has_not_and_there_is_a_reason(
    tools: type[Tools],
) -> None:
    small, great = tools.sorted_names(2)
    stage = tools.stage(great)
    (timer,) = tools.timers(stage.link(small), LinkSync)
    ((to, message),) = tools.messages(stage.fire(timer, 0.5))
    assert to == tools.id(small)
    assert isinstance(message, Sync)
    stage.learn(small)
    assert stage.fire(timer, 0.1) == [], "it has just compared, and holds the peer for alive"
    stage.unlink(small)
    assert stage.fire(timer, 5.0) == []


def test_a_large_mesh_keeps_few_links_and_knows_all_the_same(make_world: type[World]) -> None:
    world = make_world(config=replace(LAN, full_mesh_size=16, link_degree=6, link_linger_s=10.0))
    nodes = world.mesh(60, settle_s=60.0)
    degrees = [sum(node.id in pair for pair in world.links) for node in nodes]
    assert min(degrees) >= 6
    assert sum(degrees) / len(degrees) < 10
    for node in nodes:
        assert not node.emits("member.suspect", "member.refused", "member.dropped")
    world.perform(nodes[3], nodes[3].core.update_record(world.now, region="us"))
    world.run_until(lambda: world.agree(nodes), 2.0)
    late = world.add("late", seeds=[nodes[5].address])
    world.run_until(lambda: world.agree([*nodes, late]), 2.0)
    world.crash(nodes[7])
    rest = [node for node in [*nodes, late] if node is not nodes[7]]
    world.run_until(lambda: world.agree(rest), 12.0)
    world.run(30.0)
    assert min(sum(node.id in pair for pair in world.links) for node in rest) >= 6


def test_a_large_mesh_that_was_partitioned_heals_unaided(make_world: type[World]) -> None:
    world = make_world(config=replace(LAN, full_mesh_size=8, link_degree=4))
    nodes = world.mesh(24)
    left, right = nodes[:12], nodes[12:]
    world.split(left, right)
    world.run(120.0)
    assert world.agree(left)
    assert world.agree(right)
    world.heal()
    world.run_until(lambda: world.agree(nodes), 25.0)


def test_links_tell_their_state(large: Stage) -> None:
    assert repr(large.core._linking) == "<Linking 3 of 20 wanted>"
    large.ack(large.id, 1)
    assert Ack(1) == Ack(1)
