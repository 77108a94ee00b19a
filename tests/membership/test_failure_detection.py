"""Cases 3 to 7, 12 and 13: who is dead, and who only seems so."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from meshnode.membership.messages import CODEC, STATE_CODES, Gossip, Ping, Rumour, pack_id
from meshnode.sim.network import NetworkConfig
from meshnode.sim.published import dissemination_s
from meshnode.types import NodeState

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshnode.membership import MembershipConfig
    from meshnode.sim.virtual_fleet import SimFleet

    Record = Callable[[str, object], None]
    MakeFleet = Callable[..., SimFleet]


def detection_bound_s(config: MembershipConfig, count: int) -> float:
    """A sweep of all survivors' probes until one meets the dead, max suspicion, dissemination.

    Each survivor probes the dead within 2N-1 periods; that none of N-1 does within 10 has a chance
    below e^-9, as they are out of step. One period judges the probe.
    """
    sweep_s = (min(2 * count - 1, 10) + 1) * config.probe_interval_s
    least_s = config.suspicion_multiplier * max(1.0, math.log10(count)) * config.probe_interval_s
    most_s = least_s * config.suspicion_max_multiplier
    return sweep_s + most_s + 2 * dissemination_s(count)


@pytest.mark.parametrize("how", ["crash", "power_off"])
@pytest.mark.seeds(2)
@pytest.mark.sizes(3, 10, 30, soak=(2, 50, 100, 300))
def test_case_03_after_a_crash_all_survivors_agree_within_the_bound(
    make_fleet: MakeFleet, seed: int, count: int, how: str, record_property: Record
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    victim, survivors = names[-1], names[:-1]
    start_s = fleet.now()
    getattr(fleet, how)(victim)
    fleet.run_until(lambda: fleet.agree(survivors), detection_bound_s(fleet.config, count))
    died = [event.time_s - start_s for event in fleet.events("member.dead", subject=victim)]
    assert len(died) == len(survivors)
    record_property("dead_median_s", statistics.median(died))
    record_property("dead_last_s", max(died))
    assert {event.subject for event in fleet.events("member.suspect", "member.dead")} == {victim}


@pytest.mark.parametrize("how", ["crash", "power_off"])
def test_case_03_a_crash_is_known_in_eight_seconds_at_the_median_with_fifty_nodes(
    make_fleet: MakeFleet, seed: int, how: str, record_property: Record
) -> None:
    """Five victims one after another; the median over victims of when the last survivor knows."""
    fleet = make_fleet(seed)
    names = fleet.settled(50)
    took: list[float] = []
    for victim in names[10:15]:
        getattr(fleet, how)(victim)
        took.append(fleet.run_until(fleet.agree, 60.0))
        fleet.run_for(10.0)
    record_property("dead_everywhere_s", statistics.median(took))
    assert statistics.median(took) <= 8.0


@pytest.mark.sizes(5, 12, soak=(30, 100))
def test_case_04_every_live_node_is_probed_within_two_passes(
    make_fleet: MakeFleet, seed: int, count: int, record_property: Record
) -> None:
    """By every other node, as each goes through a shuffled list of all, again and again."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    probed: defaultdict[tuple[str, str], list[float]] = defaultdict(list)

    def tap(now: float, sender: str, receiver: str, payload: bytes) -> None:
        if isinstance(CODEC.decode(payload), Ping):
            probed[sender, receiver].append(now)

    start_s = fleet.now()
    fleet.watch(tap)
    fleet.run_for(8 * count * fleet.config.probe_interval_s)
    end_s = fleet.now()
    longest_s = 0.0
    for prober in names:
        for target in names:
            if prober != target:
                times = [start_s, *probed[prober, target], end_s]
                gaps = (later - sooner for sooner, later in itertools.pairwise(times))
                longest_s = max(longest_s, *gaps)
    periods = longest_s / fleet.config.probe_interval_s
    record_property("longest_gap_periods_per_node", periods / count)
    assert periods <= 2 * count - 1


@pytest.mark.parametrize("one_way", [True, False])
@pytest.mark.sizes(5, 30)
def test_case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect(
    make_fleet: MakeFleet, seed: int, count: int, one_way: bool
) -> None:
    cut_one_pair(make_fleet(seed), count, one_way=one_way, watched_s=180.0)


def cut_one_pair(fleet: SimFleet, count: int, *, one_way: bool, watched_s: float) -> None:
    names = fleet.settled(count)
    if one_way:
        fleet.one_way(names[1:2], names[2:3])
    else:
        fleet.partition(names[1:2], names[2:3])
    fleet.run_for(watched_s)
    assert not fleet.events("member.suspect", "member.dead")
    fleet.heal()
    fleet.run_for(40.0)
    assert fleet.agree()


@pytest.mark.sizes(2, 10, soak=(40,))
def test_case_06_a_node_without_udp_stays_alive_through_its_links_and_people_are_warned(
    make_fleet: MakeFleet, seed: int, count: int
) -> None:
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    walled, others = names[-1], names[:-1]
    fleet.block_udp([walled], others)
    fleet.block_udp(others, [walled])
    fleet.run_for(10.0 * count + 60.0)
    assert not fleet.events("member.suspect", "member.dead")
    assert fleet.events("member.udp_blocked", subject=walled)
    assert {event.subject for event in fleet.events("member.udp_blocked", node=walled)} <= {*others}
    assert all(
        fleet.view(name)[other].state is NodeState.ALIVE for name in names for other in names
    )
    fleet.heal()
    fleet.run_for(10.0 * count + 30.0)
    warned = {(each.node, each.subject) for each in fleet.events("member.udp_blocked")}
    assert {(each.node, each.subject) for each in fleet.events("member.udp_open")} == warned


@pytest.mark.parametrize("state", [NodeState.SUSPECT, NodeState.DEAD])
@pytest.mark.sizes(3, 30)
def test_case_07_the_accused_refutes_by_one_more_and_nobody_counts_it_dead(
    make_fleet: MakeFleet, seed: int, count: int, state: NodeState, record_property: Record
) -> None:
    """One that is accused of being dead may be dead to those who hear that first, but not for long."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    accuser, hearer, accused = names[:3]
    record = fleet.record(accused)
    code = STATE_CODES.index(state)
    rumour = Rumour(
        pack_id(record.node_id),
        record.epoch,
        record.counter,
        code,
        pack_id(fleet.record(accuser).node_id),
    )
    fleet.say(accuser, hearer, Gossip((rumour,)))
    fleet.run_for(0.001)
    assert fleet.events(f"member.{state}", node=hearer, subject=accused)
    took = fleet.run_until(fleet.agree, 5.0)
    record_property("cleared_s", took)
    assert fleet.record(accused).incarnation == (record.epoch, record.counter + 1)
    fleet.run_for(60.0)
    assert fleet.record(accused).incarnation == (record.epoch, record.counter + 1)
    if state is NodeState.SUSPECT:
        assert not fleet.events("member.dead")
    assert fleet.agree()


@pytest.mark.seeds(2)
@pytest.mark.parametrize("far", [False, True])
@pytest.mark.sizes(5, 30)
def test_case_12_a_node_whose_loop_stalls_for_five_seconds_declares_nobody_dead(
    make_fleet: MakeFleet, seed: int, count: int, far: bool
) -> None:
    """Others may hold it for dead meanwhile. Far away, an ack is mostly on its way when the stall begins;
    what comes during the stall is lost, as from a socket's full buffer."""
    fleet = make_fleet(seed, network=NetworkConfig(near_rtt_s=0.4)) if far else make_fleet(seed)
    names = fleet.settled(count)
    sleeper = names[1]
    for running_s in (
        7.3,
        7.1,
        7.12,
        7.5,
        7.08,
    ):  # probes are in step with the end of the last stall
        fleet.run_for(running_s)
        fleet.freeze(sleeper)
        if far:
            fleet.block_udp(names, [sleeper])
        fleet.run_for(5.0)
        fleet.heal()
        fleet.thaw(sleeper)
    fleet.run_for(30.0)
    blamed = fleet.events("member.suspect", "member.dead", node=sleeper)
    assert not [event for event in blamed if not event.detail.startswith("told by")]
    assert {event.subject for event in fleet.events("member.dead")} <= {sleeper}
    assert fleet.agree()
