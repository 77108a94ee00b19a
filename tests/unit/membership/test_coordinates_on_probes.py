"""How network coordinates ride on probes: what is measured, and what is only heard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from meshnode.membership.coordinates import Coordinate
from meshnode.membership.messages import Ack, Ping
from meshnode.membership.timers import ProbePeriod, ProbeTimeout
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.effects import Effect
    from meshnode.types import NodeId
    from tests.unit.membership.conftest import Stage, Tools

NEAR = Coordinate((0.01, *[0.0] * 7), 0.001, 0.0, 0.1).to_wire()
FAR = Coordinate((0.1, *[0.0] * 7), 0.001, 0.0, 0.1).to_wire()
NONSENSE = (float("nan"),) * 11


def probe(stage: Stage, tools: type[Tools]) -> tuple[Ping, list[Effect]]:
    effects = stage.fire(ProbePeriod())
    ((_, ping),) = tools.messages(effects)
    assert isinstance(ping, Ping)
    return ping, effects


def measured(stage: Stage, peer: NodeId) -> bool:
    return stage.core.rtt_s(stage.id, peer) is not None


def test_a_direct_ack_is_a_measurement_and_what_it_teaches_is_told_from_then_on(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    ping, _ = probe(stage, tools)
    assert ping.coordinate == ()
    stage.now += 0.08
    stage.datagram("a", Ack(ping.sequence, (), NEAR))
    for _ in range(30):
        ping, _ = probe(stage, tools)
        stage.now += 0.08
        stage.datagram("a", Ack(ping.sequence, (), NEAR))
    assert stage.core.rtt_s(stage.id, tools.id("a")) == pytest.approx(0.08, rel=0.1)
    assert stage.core.rtt_s(tools.id("a"), stage.id) == stage.core.rtt_s(stage.id, tools.id("a"))
    ping, _ = probe(stage, tools)
    assert len(ping.coordinate) == 11
    ((_, ack),) = tools.messages(stage.datagram("a", Ping(9)))
    assert isinstance(ack, Ack)
    assert ack.coordinate == ping.coordinate


def test_an_ack_over_a_link_or_after_a_second_ping_is_no_measurement(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    ping, _ = probe(stage, tools)
    stage.now += 0.08
    stage.note("a", Ack(ping.sequence, (), NEAR))
    assert not measured(stage, tools.id("a"))
    ping, effects = probe(stage, tools)
    stage.fire(tools.timers(effects, ProbeTimeout)[0], 0.5)
    stage.datagram("a", Ack(ping.sequence, (), NEAR))
    assert not measured(stage, tools.id("a"))


def test_two_others_are_told_apart_by_what_their_pings_say(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a", "b")
    stage.datagram("a", Ping(1, (), NEAR))
    assert stage.core.rtt_s(tools.id("a"), tools.id("b")) is None
    stage.note("b", Ping(1, (), FAR))
    assert stage.core.rtt_s(tools.id("a"), tools.id("b")) == pytest.approx(0.092)


def test_a_rogue_coordinate_is_dropped_and_counted_and_its_ack_still_counts(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.learn("a")
    ping, _ = probe(stage, tools)
    effects = stage.datagram("a", Ack(ping.sequence, (), NONSENSE))
    assert tools.emits(effects) == [("member.dropped", tools.id("a"))]
    assert stage.core.counts.probes.answered == 1
    effects = stage.datagram("a", Ping(1, (), NONSENSE))
    assert tools.emits(effects) == [("member.dropped", tools.id("a"))]
    ((_, answer),) = tools.messages(effects)
    assert isinstance(answer, Ack)
    assert stage.core.rtt_s(stage.id, tools.id("a")) is None


def test_coordinates_of_strangers_and_of_the_dead_are_not_kept(
    stage: Stage, tools: type[Tools]
) -> None:
    stage.datagram("stranger", Ping(1, (), NEAR))
    stage.learn("a", "b")
    stage.datagram("a", Ping(1, (), NEAR))
    stage.datagram("b", Ping(1, (), FAR))
    assert stage.core.rtt_s(tools.id("a"), tools.id("stranger")) is None
    stage.hear("b", NodeState.DEAD)
    assert stage.core.rtt_s(tools.id("a"), tools.id("b")) is None
    stage.datagram("b", Ping(2, (), FAR))
    assert stage.core.rtt_s(tools.id("a"), tools.id("b")) is None
