"""Whether what a scenario says of releases can be done: names that there are, and a plan that can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.release_file import RELEASE_KEYS, read_release
from meshnode.sim.faults import Release
from meshnode.sim.scenario.mistakes import KeyPath, Mistake, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshnode import deployment_tables
    from meshnode.sim.faults import OrderRelease
    from meshnode.sim.scenario.model import Scenario
    from meshnode.sim.stage import Machine

_TABLE = "release"


def mistakes(
    scenario: Scenario, fault: Release | OrderRelease, at: KeyPath, machines: Sequence[Machine]
) -> Iterator[Mistake]:
    """Yield what is wrong with a release or an order; without machines, what can be told without them."""
    models = [model.name for model in scenario.models]
    if fault.model not in models:
        yield Mistake((*at, "model"), unknown("model", fault.model, models))
    names = [machine.name for machine in machines]
    if fault.node and names and fault.node not in names:
        yield Mistake((*at, "node"), unknown("node", fault.node, names))
    if not isinstance(fault, Release):
        return
    classes = [machine.device_class for machine in machines]
    if fault.fails_on and classes and fault.fails_on not in classes:
        text = unknown("node of device class", fault.fails_on, classes)
        yield Mistake((*at, "fails_on"), text)
    if fault.fails_on and not fault.fail_share:
        yield Mistake((*at, "fails_on"), "nothing fails there: give 'fail_share', which is 0")
    if fault.release:
        yield from _plan(fault, at)


def _plan(fault: Release, at: KeyPath) -> Iterator[Mistake]:
    """Yield what a deployment file would be refused for."""
    found: list[deployment_tables.Fault] = []
    read_release(fault.release, found, [f"{_TABLE}.{key}" for key in RELEASE_KEYS])
    for each in found:
        inside = each.key.removeprefix(_TABLE).strip(".")
        place: tuple[str, ...] = tuple(inside.split(".", 1)) if inside else ()
        yield Mistake((*at, _TABLE, *place), each.sentence)
