"""Cases 8 to 11: which statements about a member count."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from meshnode.membership.messages import CODEC, Ack, Gossip, Ping, PingRequest, Rumour, pack_id
from meshnode.sim.fleet import records_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from meshnode.membership import MemberRecord, MembershipConfig
    from meshnode.sim.fleet import Sight
    from meshnode.sim.virtual_fleet import SimFleet

    MakeFleet = Callable[..., SimFleet]

ALIVE, SUSPECT, DEAD = range(3)


def rumour(record: MemberRecord, state: int, origin: MemberRecord | None = None) -> Rumour:
    by = b"" if origin is None else pack_id(origin.node_id)
    return Rumour(pack_id(record.node_id), record.epoch, record.counter, state, by)


def views(fleet: SimFleet) -> list[Mapping[str, Sight]]:
    return [fleet.view(name) for name in fleet.names()]


@pytest.mark.sizes(4, 20)
def test_case_08_what_is_said_about_an_earlier_incarnation_changes_nothing(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    stale = fleet.record(names[2])
    fleet.update(names[2], region="us")
    fleet.run_for(10.0)
    assert fleet.agree()
    before = views(fleet)
    fleet.forget_events()
    for name in names:
        for state in (ALIVE, SUSPECT, DEAD):
            fleet.say(names[1], name, Gossip((rumour(stale, state, fleet.record(names[1])),)))
        fleet.say(names[1], name, records_of(stale), by_datagram=False)
    fleet.run_for(60.0)
    assert views(fleet) == before
    assert fleet.events() == []


@pytest.mark.sizes(4, 20)
def test_case_09_hearing_again_that_a_node_is_alive_changes_nothing_and_is_not_passed_on(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    passed_on: list[str] = []

    def tap(_now: float, sender: str, _receiver: str, payload: bytes) -> None:
        message = CODEC.decode(payload)
        if isinstance(message, Gossip | Ping | Ack) and message.rumours:
            passed_on.append(sender)

    before = views(fleet)
    fleet.watch(tap)
    for _ in range(5):
        for name in names:
            for subject in names[1:3]:
                record = fleet.record(subject)
                fleet.say(names[3], name, Gossip((rumour(record, ALIVE),)))
                fleet.say(names[3], name, records_of(record), by_datagram=False)
        fleet.run_for(5.0)
    assert views(fleet) == before
    assert fleet.events() == []
    assert passed_on == []


def suspicion_s(config: MembershipConfig, size: int, confirmations: int) -> float:
    """Lifeguard's timeout (DSN 2018, section IV-B), with memberlist's limits and number k."""
    least_s = config.suspicion_multiplier * max(1.0, math.log10(size)) * config.probe_interval_s
    most_s = least_s * config.suspicion_max_multiplier
    wanted = config.suspicion_confirmations
    if wanted < 1 or size - 2 < wanted:
        return least_s
    share = math.log(confirmations + 1) / math.log(wanted + 1)
    return max(least_s, most_s - (most_s - least_s) * share)


def accused_puppet(fleet: SimFleet, count: int) -> tuple[list[str], Callable[[str], None]]:
    """Make a mesh with a member that answers pings and never refutes, and a way to accuse it at n0."""
    names = fleet.settled(count - 1)
    puppet = fleet.add_puppet("accused")
    fleet.say(names[0], names[0], records_of(puppet.record), by_datagram=False)
    fleet.run_until(lambda: all("accused" in fleet.view(name) for name in names), 20.0)
    fleet.run_for(20.0)
    assert not fleet.events("member.suspect")

    def accuse(by: str) -> None:
        claim = rumour(puppet.record, SUSPECT, fleet.record(by))
        fleet.say(by, names[0], Gossip((claim,)))

    return names, accuse


@pytest.mark.seeds(1)
@pytest.mark.parametrize(("accusers", "repeats"), [(1, 1), (1, 3), (2, 3), (3, 1), (4, 2), (5, 1)])
@pytest.mark.sizes(10, soak=(40,))
def test_case_10_distinct_accusers_shorten_the_suspicion_as_the_formula_says_and_repeats_do_not(
    make_fleet: MakeFleet, seed: int, count: int, accusers: int, repeats: int
) -> None:
    fleet = make_fleet(seed)
    names, accuse = accused_puppet(fleet, count)
    start_s = fleet.now()
    for accuser in names[1 : 1 + accusers]:
        for _ in range(repeats):
            accuse(accuser)
            fleet.run_for(0.05)
    fleet.run_for(200.0)
    (death,) = fleet.events("member.dead", node=names[0])
    expected_s = suspicion_s(fleet.config, count, accusers - 1)
    assert death.time_s - start_s == pytest.approx(expected_s, abs=0.002)


@pytest.mark.seeds(1)
@pytest.mark.sizes(10)
def test_case_10_a_confirmation_that_comes_late_ends_the_suspicion_at_once(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    """The time that the formula gives is over when it comes; nobody gets time anew."""
    fleet = make_fleet(seed)
    names, accuse = accused_puppet(fleet, count)
    accuse(names[1])
    fleet.run_for(suspicion_s(fleet.config, count, 2) + 2.0)
    accuse(names[2])
    assert not fleet.events("member.dead", node=names[0])
    accuse(names[3])
    fleet.run_for(0.002)
    assert fleet.events("member.dead", node=names[0])


@pytest.mark.seeds(1)
@pytest.mark.sizes(10)
def test_case_11_an_accusation_that_returns_to_its_author_is_no_confirmation(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    """n1 accuses; n0 passes that on; what others tell n0 of n1's accusation, and n1 of its own, is old."""
    fleet = make_fleet(seed)
    names, accuse = accused_puppet(fleet, count)
    puppet = fleet.world.core("accused")
    start_s = fleet.now()
    accuse(names[1])
    for teller in names[2:6]:
        fleet.run_for(0.5)
        for hearer in names[:2]:
            claim = rumour(puppet.record, SUSPECT, fleet.record(names[1]))
            fleet.say(teller, hearer, Gossip((claim,)))
    fleet.run_for(200.0)
    (death,) = fleet.events("member.dead", node=names[0])
    assert death.time_s - start_s == pytest.approx(suspicion_s(fleet.config, count, 0), abs=0.002)


@pytest.mark.seeds(1)
@pytest.mark.sizes(10)
def test_case_11_the_first_accuser_takes_no_echo_of_itself_for_another(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    """Only n0 gets no answer, directly or through a helper; then all tell it of its own accusation."""
    fleet = make_fleet(seed)
    names, _ = accused_puppet(fleet, count)
    puppet = fleet.world.core("accused")

    def tap(now: float, sender: str, _receiver: str, payload: bytes) -> None:
        if sender == names[0] and isinstance(CODEC.decode(payload), PingRequest):
            puppet.deaf_until = now + 0.02  # the helpers' pings are on their way

    puppet.deaf_to.add(fleet.record(names[0]).node_id)
    fleet.watch(tap)
    fleet.run_until(lambda: bool(fleet.events("member.suspect")), 60.0)
    (first, *_) = fleet.events("member.suspect")
    assert first.node == names[0]
    fleet.watch(None)
    puppet.deaf_to.clear()
    claim = rumour(puppet.record, SUSPECT, fleet.record(names[0]))
    for teller in names[1:]:
        fleet.say(teller, names[0], Gossip((claim,)))
    fleet.run_for(200.0)
    (death,) = fleet.events("member.dead", node=names[0])
    expected_s = suspicion_s(fleet.config, count, 0)
    assert death.time_s - first.time_s == pytest.approx(expected_s, abs=0.002)
