"""In a large mesh a probe without an answer asks by ways that lose nothing, and then asks others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from meshnode.effects import Effect, SendDatagram, SendNote, StartTimer
from meshnode.membership import LAN
from meshnode.membership.linking import neighbours
from meshnode.membership.messages import Ack, Ping, PingRequest
from meshnode.membership.probing import AGAIN_SHARE
from meshnode.membership.timers import ProbeDeadline, ProbePeriod, ProbeTimeout
from meshnode.types import NodeState

if TYPE_CHECKING:
    from meshnode.types import NodeId
    from tests.unit.membership.conftest import Stage, Tools

NAMES = [f"m{i}" for i in range(20)]

LARGE = replace(LAN, full_mesh_size=4, link_degree=8)
"""Settings with which twenty members are a large mesh."""

SMALL = replace(LARGE, full_mesh_size=64)

REST_S = LAN.probe_interval_s - LAN.probe_timeout_s
"""What a probe has left when its direct way times out."""


@pytest.fixture
def large(tools: type[Tools]) -> Stage:
    stage = tools.stage(config=LARGE)
    stage.learn(*NAMES)
    return stage


@pytest.fixture
def small(tools: type[Tools]) -> Stage:
    stage = tools.stage(config=SMALL)
    stage.learn(*NAMES)
    return stage


def near(tools: type[Tools], target: str) -> list[str]:
    """Return the neighbours of a member, without this node."""
    others = [tools.id(name) for name in (*NAMES, "me") if name != target]
    found = neighbours(tools.id(target), others, LARGE.link_degree)
    return [name for name in NAMES if tools.id(name) in found]


def begin(stage: Stage, tools: type[Tools], target: str) -> tuple[int, ProbeTimeout]:
    """Probe a member; return the probe's number and when it asks others."""
    stage.core._prober._order = [tools.id(target)]
    effects = stage.fire(ProbePeriod(), 1.0)
    ((_, ping),) = tools.messages(effects)
    (timeout,) = tools.timers(effects, ProbeTimeout)
    return ping.sequence, timeout


def requests(tools: type[Tools], effects: list[Effect], way: type[Effect]) -> list[NodeId]:
    """Return who is asked to help by datagram or over a link."""
    sent = tools.messages(effect for effect in effects if isinstance(effect, way))
    return [to for to, message in sent if isinstance(message, PingRequest)]


def asked(tools: type[Tools], effects: list[Effect]) -> list[NodeId]:
    return [to for to, m in tools.messages(effects) if isinstance(m, PingRequest)]


def test_a_helper_with_links_to_both_ends_comes_first_and_is_asked_over_the_link(
    large: Stage, tools: type[Tools]
) -> None:
    close = near(tools, "m0")
    distant = [name for name in NAMES[1:] if name not in close]
    for name in (*distant[:6], close[3]):
        large.link(name)
    for _ in range(5):
        sequence, timeout = begin(large, tools, "m0")
        effects = large.fire(timeout, 0.5)
        assert asked(tools, effects)[0] == tools.id(close[3])
        assert requests(tools, effects, SendNote) == [tools.id(close[3])]
        assert len(requests(tools, effects, SendDatagram)) == 2
        assert {*asked(tools, effects)} <= {tools.id(name) for name in close}
        large.ack(tools.id("m0"), sequence)


def test_below_the_size_of_a_full_mesh_helpers_are_asked_by_datagram_whatever_their_links(
    small: Stage, tools: type[Tools]
) -> None:
    for name in NAMES[1:]:
        small.link(name)
    first = set()
    for _ in range(8):
        sequence, timeout = begin(small, tools, "m0")
        effects = small.fire(timeout, 0.5)
        assert requests(tools, effects, SendNote) == []
        assert len(requests(tools, effects, SendDatagram)) == 3
        first.add(asked(tools, effects)[0])
        small.ack(tools.id("m0"), sequence)
    assert len(first) > 2, "none is preferred"


def test_other_helpers_are_asked_once_more_after_two_fifths_of_the_rest_with_one_more_ping(
    large: Stage, tools: type[Tools]
) -> None:
    sequence, timeout = begin(large, tools, "m0")
    first = large.fire(timeout, 0.5)
    (again,) = tools.timers(first, ProbeTimeout)
    (delay_s,) = (
        each.delay_s for each in first if isinstance(each, StartTimer) and each.timer == again
    )
    assert delay_s == pytest.approx(AGAIN_SHARE * REST_S)
    assert again.due == pytest.approx(large.now + delay_s)
    second = large.fire(again, delay_s)
    assert len(asked(tools, second)) == 3
    assert not {*asked(tools, first)} & {*asked(tools, second)}
    pings = [(to, m.sequence) for to, m in tools.messages(second) if isinstance(m, Ping)]
    assert pings == [(tools.id("m0"), sequence)]
    assert tools.timers(second, ProbeTimeout) == [], "twice is enough"
    assert tools.timers(second, ProbeDeadline) == [], "the period ends when it would have"


def test_below_the_size_of_a_full_mesh_helpers_are_asked_once(
    small: Stage, tools: type[Tools]
) -> None:
    _, timeout = begin(small, tools, "m0")
    effects = small.fire(timeout, 0.5)
    assert tools.timers(effects, ProbeDeadline)
    assert tools.timers(effects, ProbeTimeout) == []


def test_nobody_is_asked_again_for_a_target_that_a_helper_reached(
    large: Stage, tools: type[Tools]
) -> None:
    sequence, timeout = begin(large, tools, "m0")
    first = large.fire(timeout, 0.5)
    helper = next(name for name in NAMES if tools.id(name) == asked(tools, first)[0])
    large.datagram(helper, Ack(sequence))
    (again,) = tools.timers(first, ProbeTimeout)
    assert large.fire(again, AGAIN_SHARE * REST_S) == []
    (deadline,) = tools.timers(first, ProbeDeadline)
    assert tools.emits(large.fire(deadline, (1 - AGAIN_SHARE) * REST_S)) == []
    assert large.state("m0") is NodeState.ALIVE


def test_the_answer_of_one_who_was_asked_again_saves_the_target(
    large: Stage, tools: type[Tools]
) -> None:
    sequence, timeout = begin(large, tools, "m0")
    first = large.fire(timeout, 0.5)
    (again,) = tools.timers(first, ProbeTimeout)
    second = large.fire(again, AGAIN_SHARE * REST_S)
    helper = next(name for name in NAMES if tools.id(name) == asked(tools, second)[0])
    large.datagram(helper, Ack(sequence))
    (deadline,) = tools.timers(first, ProbeDeadline)
    assert tools.emits(large.fire(deadline, (1 - AGAIN_SHARE) * REST_S)) == []
    assert large.core.counts.probes.helped == 1


@pytest.mark.parametrize("mesh", ["large", "small"])
def test_a_helper_answers_over_its_link_to_the_asker_only_in_a_large_mesh(
    mesh: str, request: pytest.FixtureRequest, tools: type[Tools]
) -> None:
    stage: Stage = request.getfixturevalue(mesh)
    stage.link("m1")
    relayed = stage.note("m1", PingRequest(77, tools.raw("m0")))
    ((_, ping),) = tools.messages(relayed)
    (answer,) = stage.datagram("m0", Ack(ping.sequence))
    assert isinstance(answer, SendNote if mesh == "large" else SendDatagram)
    ((to, ack),) = tools.messages([answer])
    assert (to, ack.sequence) == (tools.id("m1"), 77)
