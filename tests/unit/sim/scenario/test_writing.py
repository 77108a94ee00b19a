from __future__ import annotations

import tomllib

from hypothesis import HealthCheck, given, settings

from meshnode.sim.faults import Loss, RegionDown
from meshnode.sim.scenario import reading
from meshnode.sim.scenario.model import (
    Arrival,
    Device,
    Load,
    Model,
    Nodes,
    Place,
    Scenario,
    ServiceTime,
)
from meshnode.sim.scenario.positions import positions
from meshnode.sim.scenario.writing import to_toml
from tests.unit.sim.scenario.strategies import scenarios


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=scenarios())
def test_what_was_written_reads_as_the_same_scenario(scenario: Scenario) -> None:
    assert reading.parse(to_toml(scenario), "written") == scenario


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenario=scenarios())
def test_every_key_that_tomllib_finds_in_a_written_scenario_has_a_line(scenario: Scenario) -> None:
    text = to_toml(scenario)
    lines = positions(text)
    assert {at for at in _paths(tomllib.loads(text)) if at} == {*lines}


def _paths(value: object, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inside: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        inside = [*value.items()]
    elif isinstance(value, list):
        inside = [*enumerate(value)]
    return [at, *(path for key, each in inside for path in _paths(each, (*at, key)))]


def test_a_written_scenario_is_what_a_person_would_write() -> None:
    scenario = Scenario(
        name="office",
        title="An office",
        story='One line.\nAnother "line".',
        regions={"office": Place(at=(53.6, 10.0)), "lhr": Place()},
        devices={"till": Device(speed=0.5, battery=True)},
        nodes=(Nodes(region="office", device="till", count=3), Nodes(region="lhr", name="far")),
        models=(Model(name="digits", service=ServiceTime(mean_ms=12.5)),),
        load=(
            Load(model="digits", via=("region:office",)),
            Load(model="digits", shape="trace", arrivals=(Arrival(0.5), Arrival(1.0, "far"))),
        ),
        faults=(
            RegionDown(region="lhr"),
            Loss(at_s=5.0, for_s=2.5, nodes=("all",), share=0.25),
        ),
    )
    assert to_toml(scenario) == WRITTEN
    assert reading.parse(WRITTEN, "written") == scenario


WRITTEN = '''\
name = "office"
title = "An office"
story = """
One line.
Another "line"."""

[regions]
office = { at = [53.6, 10] }
lhr = {}

[devices.till]
speed = 0.5
battery = true

[[nodes]]
region = "office"
device = "till"
count = 3

[[nodes]]
region = "lhr"
name = "far"

[[models]]
name = "digits"
service = { mean_ms = 12.5 }

[[load]]
model = "digits"
via = ["region:office"]

[[load]]
model = "digits"
shape = "trace"
arrivals = [[0.5], [1, "far"]]

[[faults]]
verb = "region-down"
at_s = 0
region = "lhr"

[[faults]]
verb = "loss"
at_s = 5
for_s = 2.5
nodes = ["all"]
share = 0.25
'''


def test_long_lists_are_broken_into_lines() -> None:
    arrivals = tuple(Arrival(float(number), "far") for number in range(40))
    scenario = Scenario(
        name="long",
        regions={"lhr": Place()},
        nodes=(Nodes(region="lhr", name="far"),),
        models=(Model(name="digits"),),
        load=(Load(model="digits", shape="trace", arrivals=arrivals),),
    )
    text = to_toml(scenario)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert reading.parse(text, "written") == scenario
