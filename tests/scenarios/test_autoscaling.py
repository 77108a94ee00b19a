"""Autoscaling, as scenarios: unequal devices under a square wave, and whole daemons that wake a model."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import msgspec
import pytest

from meshnode.sim.running.playing import play
from meshnode.sim.scenario.model import Autoscaling, Device, Load, Model, Nodes, Place, Scenario
from meshnode.sim.scenario.model import ServiceTime as Service
from meshnode.sim.scenario.reading import read

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result

WINDOW_S = 20.0
EDGES_S = (80.0, 160.0)

UNEQUAL = Scenario(
    name="unequal-wave",
    duration_s=240.0,
    regions={"eu-central": Place()},
    devices={
        "slow": Device(speed=0.5, slots=2),
        "usual": Device(speed=1.0, slots=2),
        "fast": Device(speed=4.0, slots=2),
    },
    nodes=(
        Nodes(region="eu-central", device="slow", name="slow", count=4),
        Nodes(region="eu-central", device="usual", name="usual", count=5),
        Nodes(region="eu-central", device="fast", name="fast", count=3),
    ),
    models=(
        Model(
            name="digits",
            service=Service(distribution="lognormal", mean_ms=200, sigma=0.5),
            replicas=2,
            autoscaling=Autoscaling(
                min=1, max=12, qps=4, stable_window_s=WINDOW_S, panic_window_s=5, down_delay_s=10
            ),
        ),
    ),
    load=(
        Load(model="digits", rate_per_s=17.0),
        Load(model="digits", rate_per_s=51.0, start_s=EDGES_S[0], end_s=EDGES_S[1]),
    ),
)


def units_at(result: Result, time_s: float) -> float:
    """Return what the nodes that serve hold at a time, in units of a device of speed 1."""
    sample = max(
        (each for each in result.samples if each.time_s <= time_s), key=lambda each: each.time_s
    )
    speed = {each.name: each.device.speed for each in result.machines}
    return sum(speed[name] for name, node in sample.nodes.items() if node.serving)


def steps(result: Result, begin_s: float, end_s: float) -> list[str]:
    return [
        each.kind
        for each in result.events
        if each.kind in ("scale.up", "scale.down") and begin_s <= each.time_s < end_s
    ]


def turns(kinds: list[str]) -> int:
    return sum(a != b for a, b in itertools.pairwise(kinds))


def longest_device(result: Result) -> float:
    return max(each.device.speed for each in result.machines)


@pytest.mark.parametrize("seed", [1, 2])
def test_unequal_devices_hold_what_a_square_wave_needs_two_windows_after_each_edge(
    seed: int,
) -> None:
    """A unit is a usual device, and means four requests a second; the last node is as large as it is."""
    result = play(UNEQUAL, seed=seed)
    assert not result.violations
    assert all(outcome is not None and outcome.code == "ok" for _, outcome in result.calls)
    for edge_s, need in ((EDGES_S[0], 17.0), (EDGES_S[1], 17.0 / 4)):
        held = units_at(result, edge_s + 2 * WINDOW_S)
        assert held >= 0.9 * need
        assert held <= 1.1 * need + longest_device(result)
    for begin_s, end_s in ((40.0, EDGES_S[1]), (EDGES_S[1], 240.0)):
        assert turns(steps(result, begin_s, end_s)) <= 1


def test_whole_daemons_wake_a_model_that_sleeps_within_its_load_and_200_ms() -> None:
    """There a load takes three runs more, with which the daemon measures the model as it warms it up."""
    scenario = read("wake-from-zero")
    model = scenario.models[0]
    run_ms = model.service.mean_ms
    limit_ms = 1000 * model.load_s + 3 * run_ms + run_ms + 200
    expect = tuple(
        msgspec.structs.replace(each, at_most=limit_ms) if each.metric == "max_ms" else each
        for each in scenario.expect
    )
    result = play(msgspec.structs.replace(scenario, expect=expect), depth="B")
    assert [msgspec.to_builtins(each.expect) for each in result.verdicts if not each.holds] == []
    assert not result.violations
