"""The cases of membership again, with whole daemons in virtual time (depth B of the simulator).

They are the very functions that run with bare cores, with small meshes. Of the others

- 2 (a hundred concurrent joins) and 13 (a hundred nodes, four of them stalled, with and without
  Lifeguard) would take whole daemons minutes of computing;
- 10 and 11 need a member without a mind, which answers pings and never refutes: no daemon does that;
- 20 and 21 look into the core's outbox, and are about what it says and not about who carries it;
- 22 starts a node with a record that a daemon would not make of itself;
- 25 counts the bytes of membership alone, which a daemon's links carry among others. `make bench-idle`
  measures those of real daemons.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.membership import LAN
from meshnode.sim.virtual.daemon_fleet import DaemonFleet
from meshnode.types import NodeState
from tests.membership import test_bad_networks as networks
from tests.membership import test_failure_detection as detection
from tests.membership import test_forgetting as forgetting
from tests.membership import test_joining_and_leaving as joining
from tests.membership import test_statements as statements
from tests.membership.test_over_udp import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect(
    make_fleet: Callable[..., Any], seed: int, count: int, one_way: bool
) -> None:
    """For a minute."""
    detection.cut_one_pair(make_fleet(seed), count, one_way=one_way, watched_s=60.0)


def case_17_a_partition_into_halves_heals_unaided(
    make_fleet: Callable[..., Any], seed: int, count: int, minutes: float, record_property: Any
) -> None:
    networks.halve_and_heal(make_fleet(seed), count, minutes, record_property)


def case_16_a_copy_of_a_running_node_is_refused_and_reported_and_little_changes(
    make_fleet: Callable[..., DaemonFleet], seed: int, count: int
) -> None:
    """Links tell it before membership does: drivers keep who was seen twice, and both are told."""
    fleet = make_fleet(seed)
    names = fleet.settled(count)
    original = fleet.record(names[-1]).node_id
    fleet.add_copy("copy", names[-1])
    fleet.run_for(120.0)
    drivers = {name: fleet.mesh.nodes[name].parts.driver for name in (*names, "copy")}
    assert all(original in drivers[name].twins for name in names[:-1])
    for name in (names[-1], "copy"):
        assert "another process runs with this node's key" in drivers[name].twin_of_mine
    fleet.crash("copy")
    fleet.run_for(120.0)
    assert fleet.agree(names)
    assert not fleet.events("member.dead", "member.suspect")


def case_19_thirty_percent_loss_kills_nobody(
    make_fleet: Callable[..., DaemonFleet], seed: int, count: int, record_property: Any
) -> None:
    """For five minutes. More is suspected than with bare cores: on links, where all that a daemon says
    waits for what was lost before it, second ways to ask whether somebody lives are late as well."""
    fleet = make_fleet(seed)
    fleet.settled(2 * count)
    fleet.set_loss(0.3)
    fleet.run_for(300.0)
    rate = networks.own_suspicions_per_node_and_minute(fleet, 2 * count, 5.0)  # type: ignore[arg-type]
    record_property("own_suspicions_per_node_and_minute", rate)
    assert not fleet.events("member.dead")
    fleet.set_loss(0.0)
    fleet.run_until(fleet.agree, 30.0)


QUICK: list[Callable[..., None]] = [
    partial(joining.test_case_01_a_join_through_one_seed_is_known_to_all_within_twice_the_table, loss=0.0),
    partial(joining.test_case_01_a_join_through_one_seed_is_known_to_all_within_twice_the_table, loss=0.3),
    partial(detection.test_case_03_after_a_crash_all_survivors_agree_within_the_bound, how="crash"),
    partial(detection.test_case_03_after_a_crash_all_survivors_agree_within_the_bound, how="power_off"),
    detection.test_case_04_every_live_node_is_probed_within_two_passes,
    partial(case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect, one_way=True),
    partial(detection.test_case_06_a_node_without_udp_stays_alive_through_its_links_and_people_are_warned, count=2),
    partial(detection.test_case_07_the_accused_refutes_by_one_more_and_nobody_counts_it_dead, state=NodeState.SUSPECT),
    statements.test_case_08_what_is_said_about_an_earlier_incarnation_changes_nothing,
    statements.test_case_09_hearing_again_that_a_node_is_alive_changes_nothing_and_is_not_passed_on,
    partial(detection.test_case_12_a_node_whose_loop_stalls_for_five_seconds_declares_nobody_dead, far=False),
    partial(joining.test_case_14_a_leave_is_known_within_two_seconds_without_suspicion_and_for_good, loss=0.0),
    partial(joining.test_case_15_a_node_that_restarts_with_its_key_is_back_within_five_seconds, how="crash"),
    partial(joining.test_case_15_a_node_that_restarts_with_its_key_is_back_within_five_seconds, how="leave"),
    partial(joining.test_case_15_a_whole_mesh_that_restarts_at_once_finds_itself_within_five_seconds, down_s=1.0, how="power_off"),
    partial(case_17_a_partition_into_halves_heals_unaided, minutes=1.5),
    networks.test_case_19_at_thirty_percent_loss_news_and_deaths_still_reach_everybody,
]  # fmt: skip

LONG: list[Callable[..., None]] = [
    partial(case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect, one_way=False),
    partial(detection.test_case_07_the_accused_refutes_by_one_more_and_nobody_counts_it_dead, state=NodeState.DEAD),
    partial(joining.test_case_14_a_leave_is_known_within_two_seconds_without_suspicion_and_for_good, loss=0.3),
    case_16_a_copy_of_a_running_node_is_refused_and_reported_and_little_changes,
    forgetting.test_case_16_a_laptop_that_roams_is_no_copy,
    partial(case_17_a_partition_into_halves_heals_unaided, minutes=10.0),
    partial(networks.test_case_18_a_one_way_partition_that_flips_every_twenty_seconds_changes_little, whom="one"),
    case_19_thirty_percent_loss_kills_nobody,
    *(
        partial(forgetting.test_case_23_a_node_that_was_away_past_the_grace_brings_nobody_back, away=away, how=how)
        for away in ("partition", "freeze", "power_off") for how in ("crash", "leave")
    ),
    partial(forgetting.test_case_24_a_member_is_forgotten_after_its_time_and_its_end_is_told_once_per_life, how="crash"),
]  # fmt: skip


@pytest.fixture
def make_daemon_fleet() -> Iterator[Callable[..., DaemonFleet]]:
    fleets: list[DaemonFleet] = []

    def make(seed: int = 1, **options: Any) -> DaemonFleet:
        fleets.append(DaemonFleet(seed, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def play(
    case: Callable[..., None], make: Callable[..., DaemonFleet], seed: int, record: Any
) -> None:
    """Run a case with daemons, five of them unless it says how many."""
    wanted = inspect.signature(case).parameters
    given = {"make_fleet": make, "seed": seed, "count": 5, "record_property": record}
    free = wanted.keys() - getattr(case, "keywords", {}).keys()
    case(**{name: value for name, value in given.items() if name in free})


@pytest.mark.seeds(1)
@pytest.mark.parametrize("case", QUICK, ids=name_of)
def test_with_daemons(
    make_daemon_fleet: Callable[..., DaemonFleet],
    case: Callable[..., None],
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    play(case, make_daemon_fleet, seed, record_property)


@pytest.mark.soak
@pytest.mark.parametrize("case", LONG, ids=name_of)
def test_with_daemons_for_long(
    make_daemon_fleet: Callable[..., DaemonFleet],
    case: Callable[..., None],
    seed: int,
    record_property: Callable[[str, object], None],
) -> None:
    play(case, make_daemon_fleet, seed, record_property)


def test_a_fleet_of_daemons_has_the_configuration_it_was_given(
    make_daemon_fleet: Callable[..., DaemonFleet],
) -> None:
    fleet = make_daemon_fleet(config=dataclasses.replace(LAN, retention_s=120.0))
    fleet.settled(3)
    fleet.crash("n1")
    fleet.run_for(60.0)
    assert "n1" in fleet.view("n0")
    fleet.run_for(240.0)
    assert "n1" not in fleet.view("n0")


def test_a_seed_gives_a_fleet_of_daemons_one_trace(
    make_daemon_fleet: Callable[..., DaemonFleet],
) -> None:
    def trace() -> str:
        fleet = make_daemon_fleet(3)
        names = fleet.settled(4)
        fleet.crash(names[2])
        fleet.run_for(10.0)
        return fleet.mesh.loop.trace.digest()

    assert trace() == trace()
