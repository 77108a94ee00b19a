from __future__ import annotations

import pytest

from meshnode.sim.faults import Partition
from meshnode.sim.scenario.crew import crew
from meshnode.sim.scenario.devices import BUILT_IN, REASONS
from meshnode.sim.scenario.model import Device, Nodes, Place, Scenario
from meshnode.sim.scenario.selection import select, sides
from meshnode.sim.stage import Machine

SCENARIO = Scenario(
    name="fleet",
    regions={"eu": Place(place="dublin"), "us": Place(place="ohio")},
    devices={"mini-pc": Device(speed=3.0), "till": Device()},
    nodes=(
        Nodes(region="us", device="till", gateway=False),
        Nodes(region="eu", count=2),
        Nodes(region="eu", device="laptop", name="lap", count=2, nat=True),
    ),
)
MACHINES = crew(SCENARIO)


def names(machines: tuple[Machine, ...]) -> list[str]:
    return [machine.name for machine in machines]


def test_nodes_are_called_after_region_and_class_and_numbered_if_there_are_several() -> None:
    assert names(MACHINES) == ["us-till", "eu-mini-pc-1", "eu-mini-pc-2", "lap-1", "lap-2"]


def test_a_scenarios_own_class_replaces_the_built_in_one_of_its_name() -> None:
    assert MACHINES[1].device.speed == 3.0
    assert MACHINES[3].device == BUILT_IN["laptop"]


def test_machines_are_what_their_entry_says() -> None:
    assert MACHINES[0] == Machine("us-till", "us", "till", Device(), gateway=False)
    assert MACHINES[4] == Machine("lap-2", "eu", "laptop", BUILT_IN["laptop"], nat=True)


def test_every_built_in_class_has_a_reason_and_the_mini_pc_is_the_measure() -> None:
    assert BUILT_IN.keys() == REASONS.keys()
    assert BUILT_IN["mini-pc"].speed == 1
    assert BUILT_IN["workstation"].speed == 10
    assert BUILT_IN["a100"].speed == 50


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (("all",), ["us-till", "eu-mini-pc-1", "eu-mini-pc-2", "lap-1", "lap-2"]),
        (("lap-2", "us-till", "lap-2"), ["us-till", "lap-2"]),
        (("eu-*",), ["eu-mini-pc-1", "eu-mini-pc-2"]),
        (("*-[2-9]",), ["eu-mini-pc-2", "lap-2"]),
        (("region:us", "device:laptop"), ["us-till", "lap-1", "lap-2"]),
        (("region:e*",), ["eu-mini-pc-1", "eu-mini-pc-2", "lap-1", "lap-2"]),
        (("device:a100",), []),
        (("LAP-1",), []),
        ((), []),
    ],
)
def test_a_selection_means_what_its_words_mean_in_the_crews_order(
    selection: tuple[str, ...], found: list[str]
) -> None:
    assert names(select(selection, MACHINES)) == found


def test_the_other_side_of_a_network_fault_is_everybody_else_unless_it_says_who() -> None:
    both = sides(Partition(nodes=("region:us",)), MACHINES)
    assert names(both[0]) == ["us-till"]
    assert names(both[1]) == ["eu-mini-pc-1", "eu-mini-pc-2", "lap-1", "lap-2"]
    both = sides(Partition(nodes=("lap-1",), others=("lap-2",)), MACHINES)
    assert [names(each) for each in both] == [["lap-1"], ["lap-2"]]
    both = sides(Partition(nodes=("all",)), MACHINES)
    assert both == (MACHINES, MACHINES)
