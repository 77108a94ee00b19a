"""Probes, helpers, and the ways by which messages go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.effects import SendDatagram, SendNote
from meshnode.events import LinkDown
from meshnode.membership import probing
from meshnode.membership.messages import Ack, Gossip, Ping, PingRequest, Rumour
from meshnode.membership.timers import (
    GossipRound,
    NackDue,
    ProbeDeadline,
    ProbePeriod,
    ProbeTimeout,
    RelayExpired,
)
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.effects import Effect
    from meshnode.types import NodeId
    from tests.unit.membership.conftest import Stage, Tools


def pings(tools: type[Tools], effects: list[Effect]) -> list[tuple[NodeId, int]]:
    return [
        (to, message.sequence)
        for to, message in tools.messages(effects)
        if isinstance(message, Ping)
    ]


def probe(stage: Stage, tools: type[Tools]) -> tuple[int, list[Effect]]:
    """Begin a period; return the probe's number and the effects."""
    effects = stage.fire(ProbePeriod())
    ((_, sequence),) = pings(tools, effects)
    return sequence, effects


def time_out(stage: Stage, tools: type[Tools], effects: list[Effect]) -> list[Effect]:
    """Let a probe's direct way time out, half a second after it began."""
    return stage.fire(tools.timers(effects, ProbeTimeout)[0], 0.5)


def judge(stage: Stage, tools: type[Tools], asked: list[Effect]) -> list[Effect]:
    """Let the period of a probe end whose direct way timed out half a second ago."""
    return stage.fire(tools.timers(asked, ProbeDeadline)[0], 0.5)


def test_nobody_is_probed_by_a_node_alone(stage: Stage, tools: type[Tools]) -> None:
    effects = stage.fire(ProbePeriod())
    assert tools.timers(effects, ProbePeriod)
    assert tools.messages(effects) == []


def test_every_live_member_is_probed_within_two_passes(stage: Stage, tools: type[Tools]) -> None:
    names = [f"m{i}" for i in range(10)]
    stage.learn(*names)
    stage.hear("m3", NodeState.DEAD)
    for to, sequence in pings(tools, stage.hear("m4", NodeState.SUSPECT)):
        stage.ack(to, sequence)  # it is probed at once, which is no turn of the pass
    probed = []
    for _ in range(9 * 4):
        stage.now += 1.0
        sequence, effects = probe(stage, tools)
        ((to, _),) = pings(tools, effects)
        probed.append(to)
        stage.ack(to, sequence)
    expected = {tools.id(name) for name in names if name != "m3"}
    for start in range(len(probed) - 16):
        assert set(probed[start : start + 17]) == expected  # 2 N - 1
    assert set(probed[:9]) == expected


def test_an_answered_probe_blames_nobody_and_a_late_ack_changes_nothing(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    sequence, effects = probe(stage, tools)
    assert stage.datagram("stranger", Ack(sequence)) == []
    stage.datagram("a", Ack(sequence))
    assert time_out(stage, tools, effects) == []
    assert stage.datagram("a", Ack(sequence)) == []
    assert stage.state("a") is NodeState.ALIVE


def test_an_unanswered_probe_asks_three_helpers_and_the_link_and_then_suspects(
    stage: Stage, tools: type[Tools]
) -> None:
    names = ["a", "b", "c", "d", "e"]
    stage.learn(*names)
    for name in names:
        stage.link(name)
    sequence, effects = probe(stage, tools)
    ((target, _),) = pings(tools, effects)
    asked = time_out(stage, tools, effects)
    sent = tools.messages(asked)
    helpers = [to for to, message in sent if isinstance(message, PingRequest)]
    assert len(set(helpers)) == 3
    assert target not in helpers
    again = [effect for effect in asked if tools.messages([effect]) == [(target, Ping(sequence))]]
    assert [type(effect) for effect in again] == [SendDatagram, SendNote]
    judged = judge(stage, tools, asked)
    assert tools.emits(judged) == [("member.suspect", target)]


def test_a_helper_s_ack_saves_the_target(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b")
    sequence, effects = probe(stage, tools)
    ((target, _),) = pings(tools, effects)
    helper = "b" if target == tools.id("a") else "a"
    asked = time_out(stage, tools, effects)
    stage.datagram(helper, Ack(sequence))
    assert judge(stage, tools, asked) == []


def test_a_suspect_that_does_not_answer_is_no_more_suspect_than_before(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    effects = stage.hear("a", NodeState.SUSPECT)  # it is probed at once
    assert tools.emits(judge(stage, tools, time_out(stage, tools, effects))) == []


@pytest.mark.parametrize("late", ["timeout", "deadline"])
def test_a_probe_with_a_late_timer_is_not_judged(
    stage: Stage, tools: type[Tools], late: str
) -> None:
    stage.learn("a")
    _, effects = probe(stage, tools)
    (timeout,) = tools.timers(effects, ProbeTimeout)
    asked = stage.fire(timeout, 5.5 if late == "timeout" else 0.5)
    if late == "deadline":
        assert stage.fire(tools.timers(asked, ProbeDeadline)[0], 5.5) == []
    else:
        assert asked == []
    assert stage.state("a") is NodeState.ALIVE
    assert stage.core.health == 1
    assert stage.core.counts.probes.void == 1


def test_a_probe_of_an_earlier_life_blames_nobody(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    _, effects = probe(stage, tools)
    asked = time_out(stage, tools, effects)
    stage.learn("a", epoch=2)
    assert judge(stage, tools, asked) == []


def test_a_lost_link_makes_the_member_probed_at_once_and_only_once(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("a")
    stage.learn("a")
    effects = stage.tell(LinkDown(tools.id("a"), "broken"))
    assert [to for to, _ in pings(tools, effects)] == [tools.id("a")]
    assert pings(tools, stage.tell(LinkDown(tools.id("a"), "broken"))) == []
    assert pings(tools, stage.tell(LinkDown(tools.id("stranger"), "broken"))) == []
    assert not stage.core.members[tools.id("a")].linked


def test_a_link_that_comes_up_proves_its_peer_alive(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a", "b")
    _, effects = probe(stage, tools)
    ((target, _),) = pings(tools, effects)
    for name in ("a", "b"):
        stage.link(name)
    assert time_out(stage, tools, effects) == []
    assert stage.core.members[target].linked


def test_a_helper_pings_by_every_way_and_passes_the_ack_on(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b")
    stage.link("a")
    effects = stage.datagram("b", PingRequest(77, tools.raw("a")))
    ((to, sequence), (to_again, same)) = pings(tools, effects)
    assert to == to_again == tools.id("a")
    assert sequence == same != 77
    assert stage.datagram("b", Ack(sequence)) == [], "only the target's ack counts"
    answer = stage.datagram("a", Ack(sequence))
    ((asker, ack),) = tools.messages(answer)
    assert (asker, ack.sequence) == (tools.id("b"), 77)
    assert stage.datagram("a", Ack(sequence)) == []


def test_a_helper_forgets_what_comes_too_late_and_bounds_what_it_does(
    stage: Stage, tools: type[Tools], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "MAX_RELAYED_PROBES", 1)
    stage.learn("a", "b")
    assert stage.datagram("b", PingRequest(1, tools.raw("stranger"))) == []
    effects = stage.datagram("b", PingRequest(77, tools.raw("a")))
    ((_, sequence),) = pings(tools, effects)
    assert stage.datagram("b", PingRequest(78, tools.raw("a"))) == []
    (nack_due,) = tools.timers(effects, NackDue)
    (expired,) = tools.timers(stage.fire(nack_due, 0.4), RelayExpired)
    stage.fire(expired, 0.6)
    assert stage.datagram("a", Ack(sequence)) == []
    assert len(pings(tools, stage.datagram("b", PingRequest(78, tools.raw("a"))))) == 1


def test_a_ping_is_answered_the_way_it_came(stage: Stage, tools: type[Tools]) -> None:
    assert stage.datagram("a", Ping(5)) == [SendDatagram(tools.id("a"), tools.encode(Ack(5)))]
    assert stage.note("a", Ping(5)) == [SendNote(tools.id("a"), tools.encode(Ack(5)))]


@pytest.mark.parametrize("state", [NodeState.SUSPECT, NodeState.DEAD])
def test_the_accused_hears_of_it_first_in_whatever_it_is_sent(
    stage: Stage, tools: type[Tools], state: NodeState
) -> None:
    stage.learn(*(f"m{i}" for i in range(60)))
    stage.hear("m7", state)
    ((_, ack),) = tools.messages(stage.datagram("m7", Ping(5)))
    assert ack.rumours[0].subject == tools.raw("m7")
    assert ack.rumours[0].state == list(NodeState).index(state)
    assert len(ack.rumours) > 10, "and news in the room that is left"
    assert len(tools.encode(ack)) <= stage.core._config.max_payload_bytes


def test_udp_counts_as_blocked_after_three_indirect_answers_and_open_after_a_direct_one(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.link("a")
    stage.learn("a")
    events = []
    for answer_by in (stage.note, stage.note, stage.note, stage.note, stage.datagram):
        stage.now += 1.0
        sequence, effects = probe(stage, tools)
        asked = time_out(stage, tools, effects)
        answered = answer_by("a", Ack(sequence))
        events.append(tools.emits([*answered, *judge(stage, tools, asked)]))
        stage.core.update_record(stage.now, region=str(stage.now))
        (gossip,) = (
            effect
            for effect in stage.fire(GossipRound())
            if isinstance(effect, SendNote | SendDatagram)
        )
        assert isinstance(gossip, SendNote) is (len(events) in (3, 4))
    subject = tools.id("a")
    assert events == [
        [], [], [("member.udp_blocked", subject)], [], [("member.udp_open", subject)]
    ]  # fmt: skip


def test_rumours_fill_a_datagram_to_its_limit_and_not_a_byte_more(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn(*(f"m{i}" for i in range(200)))
    effects = stage.fire(GossipRound())
    payloads = [effect.payload for effect in effects if isinstance(effect, SendDatagram)]
    assert len(payloads) == 3
    largest = stage.core._config.max_payload_bytes
    smallest_rumour = len(tools.encode(Gossip((Rumour(tools.raw("a"), 1, 0, 0),)))) - 3
    for payload in payloads:
        assert largest - smallest_rumour - 2 <= len(payload) <= largest


def test_gossip_ends_when_all_is_told(stage: Stage, tools: type[Tools]) -> None:
    stage.learn("a")
    sent = 0
    while tools.timers(effects := stage.fire(GossipRound(), 0.2), GossipRound):
        sent += len(tools.messages(effects))
        assert sent < 10
    assert stage.fire(GossipRound()) == []
