"""Whether a load of a scenario has what its shape needs, and nothing that its shape ignores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshnode.limits import MAX_SCENARIO_REQUESTS
from meshnode.sim.scenario.mistakes import KeyPath, Mistake, unknown
from meshnode.sim.scenario.selection import select
from meshnode.sim.scenario.selection_checks import nobody
from meshnode.types import is_within

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from meshnode.sim.scenario.model import Load, Scenario
    from meshnode.sim.stage import Machine

_OF_SHAPE: Final[Mapping[str, frozenset[str]]] = {
    "poisson": frozenset(),
    "constant": frozenset(),
    "bursts": frozenset({"burst_rate_per_s", "burst_s", "every_s"}),
    "ramp": frozenset({"to_rate_per_s"}),
    "daily": frozenset({"to_rate_per_s", "every_s"}),
    "trace": frozenset(),
}
_SOME_SHAPES: Final = ("to_rate_per_s", "burst_rate_per_s", "burst_s", "every_s")
"""Keys that some shapes need, and that say nothing with the others."""


def mistakes(
    scenario: Scenario, load: Load, at: KeyPath, machines: Sequence[Machine]
) -> Iterator[Mistake]:
    """Yield what is wrong with one load; without machines, what can be told without them."""
    models = [model.name for model in scenario.models]
    if load.model not in models:
        yield Mistake((*at, "model"), unknown("model", load.model, models))
    yield from _shape(load, at)
    yield from _moments(scenario, load, at)
    if load.region and not any(is_within(region, load.region) for region in scenario.regions):
        yield Mistake((*at, "region"), unknown("region", load.region, scenario.regions))
    if machines:
        yield from _gateways(load, at, machines)


def _shape(load: Load, at: KeyPath) -> Iterator[Mistake]:
    needed = _OF_SHAPE[load.shape]
    for key in _SOME_SHAPES:
        is_given = getattr(load, key) is not None
        if key in needed and not is_given:
            yield Mistake(at, f"shape {load.shape!r} needs {key!r}, which is missing")
        elif is_given and key not in needed:
            shapes = ", ".join(shape for shape, keys in _OF_SHAPE.items() if key in keys)
            yield Mistake((*at, key), f"shape {load.shape!r} takes none; it is for: {shapes}")
    if load.shape == "trace":
        if load.file is None and not load.arrivals:
            yield Mistake(at, "shape 'trace' needs a 'file' or 'arrivals', and there is neither")
    elif load.file is not None or load.arrivals:
        key = "file" if load.file is not None else "arrivals"
        yield Mistake((*at, key), f"shape {load.shape!r} takes none; it is for: trace")
    if load.file is not None and load.arrivals:
        yield Mistake((*at, "arrivals"), "give 'file' or 'arrivals', not both")
    if load.burst_s is not None and load.every_s is not None and load.burst_s > load.every_s:
        yield Mistake((*at, "burst_s"), f"a burst of {load.burst_s:g} s each {load.every_s:g} s")


def _moments(scenario: Scenario, load: Load, at: KeyPath) -> Iterator[Mistake]:
    end_s = scenario.duration_s
    if load.start_s >= end_s:
        text = f"it is {load.start_s:g} s; the scenario ends after {end_s:g} s already"
        yield Mistake((*at, "start_s"), text)
    if load.end_s is not None:
        if load.end_s > end_s:
            text = f"it is {load.end_s:g} s; the scenario ends after {end_s:g} s ('duration_s')"
            yield Mistake((*at, "end_s"), text)
        if load.end_s <= load.start_s:
            text = f"it is {load.end_s:g} s, not after 'start_s', {load.start_s:g} s"
            yield Mistake((*at, "end_s"), text)
    last_s = 0.0
    for number, arrival in enumerate(load.arrivals):
        if arrival.at_s < last_s:
            text = f"it is at {arrival.at_s:g} s, before the one above it; they must be in order"
            yield Mistake((*at, "arrivals", number), text)
        last_s = arrival.at_s
        if load.end_s is None and load.start_s + arrival.at_s >= end_s:
            yield Mistake(
                (*at, "arrivals", number),
                f"it would come at {load.start_s + arrival.at_s:g} s, and the load ends after {end_s:g} s "
                "already; raise 'duration_s', or give an 'end_s' if later ones are to be left out",
            )
            return


def too_many(scenario: Scenario) -> Iterator[Mistake]:
    """Yield the load with which a scenario makes more requests than a run can keep."""
    count = 0.0
    for number, load in enumerate(scenario.load):
        more = _expected(scenario, load)
        count += more
        if count > MAX_SCENARIO_REQUESTS:
            together = "" if number == 0 else f", {count:.3g} with those above"
            yield Mistake(
                ("load", number, "arrivals" if load.shape == "trace" else "rate_per_s"),
                f"it makes about {more:.3g} requests{together}; a scenario may make "
                f"{MAX_SCENARIO_REQUESTS:,}: lower the rate, or shorten the load ('end_s', 'duration_s')",
            )
            return


def _expected(scenario: Scenario, load: Load) -> float:
    """Return about how many requests a load makes."""
    if load.shape == "trace":
        return len(load.arrivals)
    end_s = scenario.duration_s if load.end_s is None else min(load.end_s, scenario.duration_s)
    low = load.rate_per_s
    rate = low
    if load.shape in ("ramp", "daily") and load.to_rate_per_s is not None:
        rate = (low + load.to_rate_per_s) / 2
    elif load.shape == "bursts" and None not in (load.burst_rate_per_s, load.burst_s, load.every_s):
        assert load.burst_rate_per_s is not None
        assert load.burst_s is not None
        assert load.every_s is not None
        rate = low + (load.burst_rate_per_s - low) * min(1.0, load.burst_s / load.every_s)
    return rate * max(0.0, end_s - load.start_s)


def _gateways(load: Load, at: KeyPath, machines: Sequence[Machine]) -> Iterator[Mistake]:
    if not load.via:
        yield Mistake((*at, "via"), 'it is empty; name nodes, or ["all"]')
    names = [machine.name for machine in machines if machine.gateway]
    chosen = select(load.via, machines)
    yield from nobody(load.via, (*at, "via"), machines)
    if chosen and not any(machine.gateway for machine in chosen):
        text = "none of these nodes is a gateway ('gateway = false'); " + unknown(
            "gateway", load.via[0], names
        )
        yield Mistake((*at, "via"), text)
    seen = {"", *names}
    for number, arrival in enumerate(load.arrivals):
        if arrival.gateway not in seen:
            seen.add(arrival.gateway)  # once for each that there is not
            text = unknown("gateway", arrival.gateway, names)
            yield Mistake((*at, "arrivals", number), text)
