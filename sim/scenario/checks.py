"""Whether the parts of a scenario fit together: what types cannot say.

`mistakes` finds names that nothing has, selections that mean nobody, loads without what their shape
needs, faults after the end, and scenarios that are too large for their depth. The first mistake of a
kind that others would follow from (an unknown device) ends the search for those.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from meshnode.errors import ConfigError
from meshnode.limits import (
    MAX_NAME_LENGTH,
    MAX_SCENARIO_MISTAKES,
    MAX_SIMULATED_CORES,
    MAX_SIMULATED_DAEMONS,
    MAX_SIMULATED_PROCESSES,
)
from meshnode.sim import faults
from meshnode.sim.scenario import load_checks, release_checks, shapes
from meshnode.sim.scenario.crew import crew, names
from meshnode.sim.scenario.devices import BUILT_IN
from meshnode.sim.scenario.geography import CITIES, PLACES, coordinates
from meshnode.sim.scenario.mistakes import KeyPath, Mistake, unknown
from meshnode.sim.scenario.selection import ALL, select
from meshnode.sim.scenario.selection_checks import nobody

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meshnode.sim.running.result import Metric
    from meshnode.sim.scenario.model import Depth, Expect, Scenario
    from meshnode.sim.stage import Machine

_MOST: Final[dict[Depth, int]] = {
    "A": MAX_SIMULATED_CORES,
    "B": MAX_SIMULATED_DAEMONS,
    "C": MAX_SIMULATED_PROCESSES,
}


def mistakes(scenario: Scenario, metrics: Mapping[str, Metric]) -> Iterator[Mistake]:
    """Yield what is wrong with a scenario, in the order of its parts.

    Args:
        scenario: Its types are right.
        metrics: What `expect` may name.
    """
    yield from _regions(scenario)
    yield from _paths(scenario)
    wrong_nodes = [*_nodes(scenario)]
    yield from wrong_nodes
    machines = () if wrong_nodes else crew(scenario)
    if not wrong_nodes:
        yield from _crew(scenario, machines)
    yield from _models(scenario, machines)
    for number, load in enumerate(scenario.load):
        yield from load_checks.mistakes(scenario, load, ("load", number), machines)
    yield from load_checks.too_many(scenario)
    for number, fault in enumerate(scenario.faults):
        yield from _fault(scenario, fault, ("faults", number), machines)
    yield from _expectations(scenario, machines, metrics)


def check(scenario: Scenario, metrics: Mapping[str, Metric]) -> None:
    """Refuse a scenario that was built in Python, as `reading` refuses a file.

    Raises:
        ConfigError: if something is wrong with it.
    """
    built = msgspec.to_builtins(scenario)
    found = [*islice(shapes.mistakes(built), MAX_SCENARIO_MISTAKES)]
    found = found or [*islice(mistakes(scenario, metrics), MAX_SCENARIO_MISTAKES)]
    if found:
        raise ConfigError(f"scenario {scenario.name}: " + "\n".join(map(str, found)))


def _regions(scenario: Scenario) -> Iterator[Mistake]:
    if not scenario.regions:
        yield Mistake(("regions",), "there is none; a scenario needs one at least")
    measured = {frozenset(path.between) for path in scenario.paths if path.rtt_ms is not None}
    for name, place in scenario.regions.items():
        at: KeyPath = ("regions", name)
        if place.at is not None and place.place is not None:
            yield Mistake((*at, "place"), "give 'at' or 'place', not both")
        elif place.place is not None and place.place.lower() not in PLACES:
            yield Mistake((*at, "place"), unknown("data centre", place.place, CITIES, PLACES))
        elif coordinates(name, place) is None:
            others = [other for other in scenario.regions if other != name]
            if not all(frozenset((name, other)) in measured for other in others):
                yield Mistake(
                    at,
                    "nobody knows where it is: give it 'at' = [latitude, longitude] or 'place' (a "
                    "data centre), or the 'rtt_ms' of a path to each other region; "
                    + unknown("data centre", name, CITIES, PLACES),
                )


def _paths(scenario: Scenario) -> Iterator[Mistake]:
    seen: set[frozenset[str]] = set()
    for number, path in enumerate(scenario.paths):
        at: KeyPath = ("paths", number)
        for side, region in enumerate(path.between):
            if region not in scenario.regions:
                where = (*at, "between", side)
                yield Mistake(where, unknown("region", region, scenario.regions))
        if frozenset(path.between) in seen:
            yield Mistake((*at, "between"), "there is a path between these two already")
        seen.add(frozenset(path.between))


def _nodes(scenario: Scenario) -> Iterator[Mistake]:
    classes = [*scenario.devices, *BUILT_IN]
    taken: dict[str, int] = {}
    if not scenario.nodes:
        yield Mistake(("nodes",), "there is none; a scenario needs one at least")
    for number, nodes in enumerate(scenario.nodes):
        at: KeyPath = ("nodes", number)
        if nodes.region not in scenario.regions:
            yield Mistake((*at, "region"), unknown("region", nodes.region, scenario.regions))
        if nodes.device not in classes:
            yield Mistake((*at, "device"), unknown("device class", nodes.device, classes))
        for name in names(nodes):
            if name in taken:
                yield Mistake(
                    at,
                    f"its node {name!r} is called like one of nodes[{taken[name]}]; give both "
                    "entries a 'name' of their own",
                )
                break
            taken[name] = number
        longest = max(names(nodes), key=len)
        if len(longest) > MAX_NAME_LENGTH:
            text = f"its node {longest!r} has a name of more than {MAX_NAME_LENGTH} characters"
            yield Mistake((*at, "name"), f"{text}; give it a shorter 'name'")
        if ALL in names(nodes):
            yield Mistake((*at, "name"), "no node may be called 'all', as that means all nodes")


def _crew(scenario: Scenario, machines: Sequence[Machine]) -> Iterator[Mistake]:
    most = _MOST[scenario.depth]
    if len(machines) > most:
        limits = ", ".join(f"{depth} {count:,}" for depth, count in _MOST.items())
        yield Mistake(
            ("depth",),
            f"{len(machines):,} nodes are too many for depth {scenario.depth}; at most: {limits}",
        )
    if not any(machine.gateway for machine in machines):
        yield Mistake(("nodes",), "none is a gateway: leave out 'gateway = false' at one at least")
    if all(machine.nat for machine in machines):
        yield Mistake(
            ("nodes",),
            "all are behind routers, so that nobody can dial anybody: leave out 'nat = true' at one",
        )


def _models(scenario: Scenario, machines: Sequence[Machine]) -> Iterator[Mistake]:
    seen: set[str] = set()
    for number, model in enumerate(scenario.models):
        at: KeyPath = ("models", number)
        if model.name in seen:
            yield Mistake((*at, "name"), f"there is a model {model.name!r} already")
        seen.add(model.name)
        if not machines:
            continue
        yield from nobody(model.on, (*at, "on"), machines)
        servers = select(model.on or (ALL,), machines)
        if model.replicas is not None and servers and model.replicas > len(servers):
            yield Mistake(
                (*at, "replicas"),
                f"it is {model.replicas}; only {len(servers)} nodes may serve the model, each once",
            )
        if model.standby and scenario.depth == "C":
            yield Mistake((*at, "standby"), "depth C has no replicas on standby; depths A and B do")


def _fault(
    scenario: Scenario, fault: faults.Fault, at: KeyPath, machines: Sequence[Machine]
) -> Iterator[Mistake]:
    yield from _moments(scenario, fault, at)
    if isinstance(fault, faults.RegionDown) and fault.region not in scenario.regions:
        yield Mistake((*at, "region"), unknown("region", fault.region, scenario.regions))
    if isinstance(fault, faults.Release | faults.OrderRelease):
        yield from release_checks.mistakes(scenario, fault, at, machines)
    if isinstance(fault, faults.ClockJump) and fault.by_s == 0:
        yield Mistake((*at, "by_s"), "a jump by 0 s is none; it must be above or below")
    if not machines:
        return
    nodes = getattr(fault, "nodes", None)
    if nodes is not None:
        if not nodes:
            yield Mistake((*at, "nodes"), 'it is empty; name some, or ["all"]')
        yield from nobody(nodes, (*at, "nodes"), machines)
    if isinstance(fault, faults.NetworkFault):
        yield from nobody(fault.others, (*at, "others"), machines)


def _moments(scenario: Scenario, fault: faults.Fault, at: KeyPath) -> Iterator[Mistake]:
    end_s = scenario.duration_s
    if fault.for_s is not None and not fault.can_be_undone:
        yield Mistake(
            (*at, "for_s"), f"{fault.verb!r} cannot be undone, so it takes no time: leave it out"
        )
    if fault.at_s >= end_s:
        yield Mistake(
            (*at, "at_s"), f"it is {fault.at_s:g} s, and the load ends after {end_s:g} s already"
        )
    elif fault.for_s is not None and fault.can_be_undone and fault.at_s + fault.for_s > end_s:
        yield Mistake(
            (*at, "for_s"),
            f"it would be undone after {fault.at_s + fault.for_s:g} s, and the load ends after "
            f"{end_s:g} s; leave 'for_s' out if it is to stay",
        )


def _expectations(
    scenario: Scenario, machines: Sequence[Machine], metrics: Mapping[str, Metric]
) -> Iterator[Mistake]:
    models = [model.name for model in scenario.models]
    for number, expect in enumerate(scenario.expect):
        at: KeyPath = ("expect", number)
        if expect.metric not in metrics:
            yield Mistake((*at, "metric"), unknown("metric", expect.metric, metrics))
        if expect.at_most is None and expect.at_least is None:
            yield Mistake(at, "it asks for nothing: give 'at_most' or 'at_least' or both")
        elif None not in (expect.at_most, expect.at_least):
            assert expect.at_most is not None
            assert expect.at_least is not None
            if expect.at_most < expect.at_least:
                yield Mistake((*at, "at_most"), "it is below 'at_least', so nothing could be right")
        if expect.metric in metrics:
            yield from _bounds(expect, metrics[expect.metric], at, len(machines))
        if expect.model is not None and expect.model not in models:
            yield Mistake((*at, "model"), unknown("model", expect.model, models))
        yield from _span(scenario, expect.after_s, expect.before_s, at)
        if machines:
            yield from nobody(expect.via, (*at, "via"), machines)
            yield from nobody(expect.nodes, (*at, "nodes"), machines)


def _bounds(expect: Expect, metric: Metric, at: KeyPath, count: int) -> Iterator[Mistake]:
    """Yield what no figure of this kind can satisfy; `count` nodes are there, 0 if that is not known."""
    if expect.at_most is not None and expect.at_most < 0:
        yield Mistake(
            (*at, "at_most"),
            f"it is {expect.at_most:g}; no {expect.metric!r} is below 0, so nothing could be right",
        )
    most = {"share": 1, "nodes": count or None}.get(metric.unit)
    if most is not None and expect.at_least is not None and expect.at_least > most:
        why = "a share is 0 to 1" if metric.unit == "share" else f"there are {count} nodes"
        text = f"it is {expect.at_least:g}; {why}, so nothing could be right"
        yield Mistake((*at, "at_least"), text)
    if metric.is_of_nodes and not expect.nodes:
        yield Mistake(at, f"{expect.metric!r} needs 'nodes', which is missing")
    elif expect.nodes and not metric.is_of_nodes:
        yield Mistake(
            (*at, "nodes"),
            f"{expect.metric!r} takes none; 'via' narrows it to the requests of some gateways",
        )


def _span(
    scenario: Scenario, after_s: float | None, before_s: float | None, at: KeyPath
) -> Iterator[Mistake]:
    if after_s is not None and after_s >= scenario.duration_s:
        text = f"it is {after_s:g} s; the load ends after {scenario.duration_s:g} s already"
        yield Mistake((*at, "after_s"), text)
    if after_s is not None and before_s is not None and before_s <= after_s:
        yield Mistake((*at, "before_s"), f"it is {before_s:g} s, not after {after_s:g} s")
