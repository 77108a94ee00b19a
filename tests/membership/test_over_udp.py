"""The cases of membership again, over real UDP on loopback, sealed, in real time (40 times as fast).

They are the very functions that run in virtual time, with small meshes. Cases that need minutes, or
milliseconds exactly, stay there: a machine with other work to do wakes up late.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.membership.messages import CODEC, Ack, Ping
from meshnode.sim.udp_fleet import UdpFleet
from tests.membership import test_bad_networks as networks
from tests.membership import test_failure_detection as detection
from tests.membership import test_joining_and_leaving as joining
from tests.membership import test_statements as statements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect(
    make_fleet: Callable[..., Any], seed: int, count: int, one_way: bool
) -> None:
    """For half a minute, as three minutes take their time here."""
    detection.cut_one_pair(make_fleet(seed), count, one_way=one_way, watched_s=30.0)


CASES: list[Callable[..., None]] = [
    partial(joining.test_case_01_a_join_through_one_seed_is_known_to_all_within_twice_the_table, loss=0.0),
    partial(detection.test_case_03_after_a_crash_all_survivors_agree_within_the_bound, how="crash"),
    partial(detection.test_case_03_after_a_crash_all_survivors_agree_within_the_bound, how="power_off"),
    detection.test_case_04_every_live_node_is_probed_within_two_passes,
    partial(case_05_a_cut_between_two_nodes_that_others_reach_makes_nobody_suspect, one_way=True),
    partial(detection.test_case_06_a_node_without_udp_stays_alive_through_its_links_and_people_are_warned, count=2),
    statements.test_case_08_what_is_said_about_an_earlier_incarnation_changes_nothing,
    partial(detection.test_case_12_a_node_whose_loop_stalls_for_five_seconds_declares_nobody_dead, far=False),
    partial(joining.test_case_14_a_leave_is_known_within_two_seconds_without_suspicion_and_for_good, loss=0.0),
    partial(joining.test_case_15_a_node_that_restarts_with_its_key_is_back_within_five_seconds, how="power_off"),
    partial(joining.test_case_15_a_whole_mesh_that_restarts_at_once_finds_itself_within_five_seconds, down_s=1.0, how="crash"),
    networks.test_case_19_at_thirty_percent_loss_news_and_deaths_still_reach_everybody,
]  # fmt: skip


@pytest.fixture
def make_udp_fleet() -> Iterator[Callable[..., UdpFleet]]:
    fleets: list[UdpFleet] = []

    def make(seed: int = 1, **options: Any) -> UdpFleet:
        fleets.append(UdpFleet(seed, **options))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


def name_of(case: Callable[..., None]) -> str:
    function = case.func if isinstance(case, partial) else case
    given = (
        "-".join(str(value) for value in case.keywords.values())
        if isinstance(case, partial)
        else ""
    )
    return "-".join(filter(None, (function.__name__.removeprefix("test_"), given)))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_over_udp(
    make_udp_fleet: Callable[..., UdpFleet],
    case: Callable[..., None],
    record_property: Callable[[str, object], None],
) -> None:
    wanted = inspect.signature(case).parameters
    given = {
        "make_fleet": make_udp_fleet,
        "seed": 1,
        "count": 5,
        "record_property": record_property,
    }
    free = wanted.keys() - getattr(case, "keywords", {}).keys()
    case(**{name: value for name, value in given.items() if name in free})


def test_datagrams_really_travel_sealed_through_sockets(
    make_udp_fleet: Callable[..., UdpFleet],
) -> None:
    fleet = make_udp_fleet()
    names = fleet.settled(4)
    said: list[str] = []

    def tap(_now: float, _sender: str, _receiver: str, payload: bytes) -> None:
        message = CODEC.decode(payload)
        if isinstance(message, Ping | Ack):
            said.append(type(message).__name__)

    fleet.reset_traffic()
    fleet.watch(tap)
    fleet.run_for(40.0)
    assert said.count("Ping") > 4 * 30
    assert said.count("Ack") >= 0.9 * said.count("Ping")
    heard = sum(fleet.traffic(name).datagrams_in for name in names)
    told = sum(fleet.traffic(name).datagrams_out for name in names)
    assert 0.95 * told <= heard <= told + 8  # some were on their way at first
    assert not fleet.events("member.suspect", "member.udp_blocked")


def test_a_restarted_node_is_heard_again_with_its_new_boot_only(
    make_udp_fleet: Callable[..., UdpFleet],
) -> None:
    """Its former seals are of no use to anybody any more."""
    fleet = make_udp_fleet()
    names = fleet.settled(3)
    for _ in range(3):
        fleet.crash(names[1])
        fleet.run_for(1.0)
        fleet.restart(names[1])
        fleet.run_until(fleet.agree, 10.0)
    fleet.reset_traffic()
    fleet.run_for(10.0)
    for name in names:
        assert fleet.traffic(name).datagrams_in > 10
