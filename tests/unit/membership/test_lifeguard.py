"""Lifeguard: a node that doubts itself before it blames others, and suspects that get their time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.effects import StartTimer
from meshnode.limits import MAX_LOCAL_HEALTH
from meshnode.membership import LAN
from meshnode.membership.config import stretch
from meshnode.membership.health import LocalHealth
from meshnode.membership.messages import Ack, Nack, Ping, PingRequest, Rumour
from meshnode.membership.suspicion import bounds_s, timeout_s
from meshnode.membership.timers import (
    GossipRound,
    NackDue,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
    RelayExpired,
    SuspicionExpired,
)
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.effects import Effect
    from tests.unit.membership.conftest import Stage, Tools, World

PLAIN = replace(LAN, lifeguard=False)
SUSPECT, DEAD = NodeState.SUSPECT, NodeState.DEAD


def delay_of(effects: list[Effect], kind: type) -> float:
    (delay_s,) = (
        effect.delay_s
        for effect in effects
        if isinstance(effect, StartTimer) and isinstance(effect.timer, kind)
    )
    return delay_s


def fail_probe(stage: Stage, tools: type[Tools], nacks: int = 0) -> list[Effect]:
    """Let a probe go unanswered but for some nacks; return what follows."""
    effects = stage.fire(ProbePeriod())
    (timeout,) = tools.timers(effects, ProbeTimeout)
    asked = stage.fire(timeout, timeout.due - stage.now)
    helpers = [to for to, message in tools.messages(asked) if isinstance(message, PingRequest)]
    for helper in helpers[:nacks]:
        (name,) = (n for n in NAMES if tools.id(n) == helper)
        assert stage.datagram(name, Nack(timeout.sequence)) == []
    (deadline,) = tools.timers(asked, ProbeDeadline)
    return stage.fire(deadline, deadline.due - stage.now)


NAMES = [f"m{i}" for i in range(12)]


# Local health.


def test_health_stays_between_well_and_worst() -> None:
    health = LocalHealth()
    counts = []
    for by in (-1, 3, 20, -2):
        health.change(by)
        counts.append(health.count)
    assert counts == [0, 3, 8, 6]
    assert health.scale(0.5) == 3.5
    assert repr(health) == f"<LocalHealth 6 of {MAX_LOCAL_HEALTH}>"


@pytest.mark.parametrize(("nacks", "health"), [(3, 0), (2, 1), (0, 3)])
def test_each_helper_that_stays_silent_is_a_sign_against_the_asker(
    stage: Stage, tools: type[Tools], nacks: int, health: int
) -> None:
    stage.learn(*NAMES)
    fail_probe(stage, tools, nacks)
    assert stage.core.health == health
    assert stage.core.counts.probes.failed == 1


def test_a_failed_probe_without_helpers_counts_once_and_an_answer_takes_it_back(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    fail_probe(stage, tools)
    assert stage.core.health == 1
    ((to, ping),) = tools.messages(stage.fire(ProbePeriod()))
    stage.ack(to, ping.sequence)
    assert stage.core.health == 0


def test_a_node_in_bad_health_probes_more_slowly_and_waits_longer(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*NAMES)
    fail_probe(stage, tools)
    effects = stage.fire(ProbePeriod())
    assert delay_of(effects, ProbePeriod) == 4 * LAN.probe_interval_s
    assert delay_of(effects, ProbeTimeout) == 4 * LAN.probe_timeout_s
    (timeout,) = tools.timers(effects, ProbeTimeout)
    asked = stage.fire(timeout, 2.0)
    assert delay_of(asked, ProbeDeadline) == pytest.approx(2.0)


def test_a_refutation_is_a_sign_against_oneself(stage: Stage) -> None:
    stage.learn("a")
    stage.hear("me", SUSPECT)
    assert stage.core.health == 1
    assert stage.core.counts.beliefs.refutations == 1


def test_only_helpers_are_believed_to_have_nacked(stage: Stage, tools: type[Tools]) -> None:
    stage.learn(*NAMES)
    effects = stage.fire(ProbePeriod())
    (timeout,) = tools.timers(effects, ProbeTimeout)
    asked = stage.fire(timeout, 0.5)
    stage.datagram("stranger", Nack(timeout.sequence))
    stage.datagram("stranger", Nack(timeout.sequence + 1))
    stage.fire(tools.timers(asked, ProbeDeadline)[0], 0.5)
    assert stage.core.health == 3


# Nacks.


def test_a_helper_without_an_answer_says_so_before_the_asker_judges(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b")
    effects = stage.datagram("b", PingRequest(77, tools.raw("a")))
    assert delay_of(effects, NackDue) == pytest.approx(0.4)  # of the 0.5 s that helpers have
    (nack_due,) = tools.timers(effects, NackDue)
    late = stage.fire(nack_due, 0.4)
    ((asker, nack),) = tools.messages(late)
    assert isinstance(nack, Nack)
    assert (asker, nack.sequence) == (tools.id("b"), 77)
    assert delay_of(late, RelayExpired) == pytest.approx(0.6)
    sequence = nack_due.sequence
    ((_, ack),) = tools.messages(stage.datagram("a", Ack(sequence)))
    assert isinstance(ack, Ack), "and the ack is passed on all the same"
    assert ack.sequence == 77


def test_a_helper_with_an_answer_does_not_nack(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b")
    effects = stage.datagram("b", PingRequest(77, tools.raw("a")))
    (nack_due,) = tools.timers(effects, NackDue)
    stage.datagram("a", Ack(nack_due.sequence))
    assert stage.fire(nack_due, 0.4) == []


# Suspicion.


@pytest.mark.parametrize(
    ("size", "shortest_s", "longest_s"), [(5, 4.0, 24.0), (100, 8.0, 48.0), (1000, 12.0, 72.0)]
)
def test_with_memberlist_s_multipliers_the_bounds_are_memberlist_s(
    size: int, shortest_s: float, longest_s: float
) -> None:
    config = replace(LAN, suspicion_multiplier=4.0)
    assert bounds_s(config, size) == pytest.approx((shortest_s, longest_s))


def test_a_suspect_s_time_falls_with_the_logarithm_of_its_accusers() -> None:
    times = [timeout_s(8.0, 48.0, c, 3) for c in range(5)]
    assert times[:4] == pytest.approx([48.0, 28.0, 48.0 - 40.0 * math.log(3) / math.log(4), 8.0])
    assert times[4] == 8.0
    assert timeout_s(8.0, 48.0, 0, 0) == 8.0


def suspicion(effects: list[Effect], tools: type[Tools]) -> SuspicionExpired:
    (timer,) = tools.timers(effects, SuspicionExpired)
    assert isinstance(timer, SuspicionExpired)
    return timer


def test_distinct_accusers_shorten_the_time_exactly_and_duplicates_do_not(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*NAMES)
    began = stage.now
    shortest_s, longest_s = bounds_s(LAN, 13)
    first = suspicion(stage.hear("m0", SUSPECT, accuser="m1"), tools)
    assert first.due - began == pytest.approx(longest_s)
    stage.now += 1.0
    assert stage.hear("m0", SUSPECT, accuser="m1") == [], "the first accuser again"
    second = suspicion(stage.hear("m0", SUSPECT, accuser="m2"), tools)
    assert second.due - began == pytest.approx(timeout_s(shortest_s, longest_s, 1, 3))
    assert stage.hear("m0", SUSPECT, accuser="m2", sender="m5") == [], "by another way"
    assert stage.hear("m0", SUSPECT) == [], "whoever said so first is not known"
    third = suspicion(stage.hear("m0", SUSPECT, accuser="m3"), tools)
    fourth = suspicion(stage.hear("m0", SUSPECT, accuser="m4"), tools)
    assert fourth.due - began == pytest.approx(shortest_s)
    assert stage.hear("m0", SUSPECT, accuser="m5") == [], "enough have said so"
    assert stage.core.counts.beliefs.confirmations == 3
    for stale in (first, second, third):
        assert stage.tell_at(stage.now, stale) == []
    assert ("member.dead", tools.id("m0")) in tools.emits(stage.tell_at(fourth.due, fourth))


def test_an_accusation_that_comes_back_to_its_author_is_no_confirmation(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*NAMES)
    ((_, subject),) = tools.emits(fail_probe(stage, tools, nacks=3))
    (name,) = (name for name in NAMES if tools.id(name) == subject)
    assert stage.hear(name, SUSPECT, accuser="me") == []
    assert stage.core.counts.beliefs.confirmations == 0


def test_a_node_s_own_failed_probe_confirms_what_another_one_said(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b", "c", "d", "e")
    effects = stage.hear("a", SUSPECT, accuser="x")
    (timeout,) = tools.timers(effects, ProbeTimeout)
    asked = stage.fire(timeout, 0.5)
    judged = stage.fire(tools.timers(asked, ProbeDeadline)[0], 0.5)
    assert tools.emits(judged) == [], "people know"
    assert stage.core.counts.beliefs.confirmations == 1
    told = tools.messages(stage.fire(GossipRound()))
    own = [r for _, message in told for r in message.rumours if r.origin == tools.raw("me")]
    assert own, "and others hear of it"


def test_nobody_is_waited_for_where_too_few_could_accuse(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b", "c")  # with this node four: two could confirm, three are wanted
    timer = suspicion(stage.hear("a", SUSPECT, accuser="b"), tools)
    assert timer.due - stage.now == bounds_s(LAN, 4)[0]


def test_few_members_or_all_of_a_small_mesh_give_a_second_opinion_at_once(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b", "c", "d", "e")
    effects = stage.hear("a", SUSPECT, accuser="b")
    pings = [(to, m) for to, m in tools.messages(effects) if isinstance(m, Ping)]
    assert [to for to, _ in pings] == [tools.id("a")]
    assert pings[0][1].rumours[0] == Rumour(tools.raw("a"), 1, 0, 1, tools.raw("me"))
    large = tools.stage()
    large.learn(*(f"n{i}" for i in range(400)))
    asked = sum(
        any(isinstance(m, Ping) for _, m in tools.messages(large.hear(f"n{i}", SUSPECT)))
        for i in range(400)
    )
    assert 2 <= asked <= 20  # each with probability 8 / 401


def test_a_suspicion_counts_from_when_it_was_first_heard_however_late_it_is_confirmed(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*NAMES)
    stage.hear("m0", SUSPECT, accuser="m1")
    stage.now += 12.0
    stage.hear("m0", SUSPECT, accuser="m2")
    stage.hear("m0", SUSPECT, accuser="m3")
    timer = suspicion(stage.hear("m0", SUSPECT, accuser="m4"), tools)
    assert timer.due == stage.now, "its time is over"


# Without Lifeguard.


def test_plain_swim_neither_doubts_itself_nor_waits_for_accusers(tools: type[Tools]) -> None:
    stage = tools.stage(config=PLAIN)
    stage.learn(*NAMES)
    fail_probe(stage, tools)
    assert stage.core.health == 0
    timer = suspicion(stage.hear("m11", SUSPECT, accuser="m1"), tools)
    assert timer.due - stage.now == pytest.approx(bounds_s(PLAIN, 13)[0])
    effects = stage.datagram("m2", PingRequest(77, tools.raw("m3")))
    assert tools.timers(effects, NackDue) == []
    (expired,) = tools.timers(effects, RelayExpired)
    assert stage.fire(expired, 1.0) == []
    ((_, ack),) = tools.messages(stage.datagram("m11", Ping(5)))
    first = [rumour.subject for rumour in ack.rumours][:1]
    assert first != [tools.raw("m11")] or ack.rumours[0].origin != tools.raw("me")


def test_plain_swim_judges_after_its_own_sleep(tools: type[Tools]) -> None:
    stage = tools.stage(config=PLAIN)
    stage.learn("a")
    effects = stage.fire(ProbePeriod())
    asked = stage.fire(tools.timers(effects, ProbeTimeout)[0], 9.0)
    stage.fire(tools.timers(asked, ProbeDeadline)[0], 9.0)
    assert stage.state("a") is SUSPECT
    assert stage.core.counts.probes.void == 0


# Gossip to the dead, and work that is spaced in a large mesh.


def test_the_recently_dead_are_told_rumours_and_the_long_dead_are_not(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b")
    stage.hear("b", DEAD)
    told = {to for to, _ in tools.messages(stage.fire(GossipRound()))}
    assert told == {tools.id("a"), tools.id("b")}
    stage.now += LAN.gossip_to_dead_s + 1.0
    stage.core.update_record(stage.now, region="us")
    told = {to for to, _ in tools.messages(stage.fire(GossipRound()))}
    assert told == {tools.id("a")}


def test_a_node_that_was_taken_for_dead_hears_of_it_and_returns(world: World) -> None:
    """Cut off for long enough to be dead, and then all its links are still down."""
    nodes = world.mesh(5)
    victim, others = nodes[2], [node for node in nodes if node.name != "n2"]
    world.split([victim], others)
    world.run_until(lambda: all(o.view()[victim.id] is DEAD for o in others), 15.0)
    world.wire_cut = None
    world.run_until(lambda: world.agree(nodes), 3.0)


@pytest.mark.parametrize(
    ("size", "times"), [(1, 1), (32, 1), (33, 2), (64, 2), (100, 3), (1000, 6), (2000, 7)]
)
def test_work_that_costs_each_node_n_is_spaced_as_the_mesh_grows(size: int, times: int) -> None:
    assert stretch(size) == times


def test_a_nack_carries_rumours_and_travels_both_ways(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    accusation = Rumour(tools.raw("a"), 1, 0, 1, tools.raw("x"))
    stage.datagram("x", Nack(5, (accusation,)))
    assert stage.state("a") is SUSPECT
    assert stage.note("x", Nack(5)) == []
    assert tools.decode(tools.encode(Nack(5, (accusation,)))) == Nack(5, (accusation,))
