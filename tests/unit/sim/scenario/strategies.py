"""Scenarios drawn at random: sound ones, with any of the parts that a file may have."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any, cast

from hypothesis import strategies as st
from msgspec import inspect

from meshnode.sim.faults import VERBS
from meshnode.sim.running.result import METRICS
from meshnode.sim.scenario.devices import BUILT_IN
from meshnode.sim.scenario.geography import CITIES
from meshnode.sim.scenario.model import (
    Arrival,
    Device,
    Expect,
    Load,
    Model,
    NetworkPart,
    Nodes,
    Path,
    Place,
    Scenario,
    ServiceTime,
)

if TYPE_CHECKING:
    from meshnode.sim.faults import AnyFault
    from meshnode.sim.scenario.model import Selection

NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12).map(
    "n".__add__
)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=80)
DURATION_S = 100.0
PLANS: list[dict[str, Any]] = [
    {},
    {"strategy": "direct"},
    {"strategy": "blue_green", "auto": True},
    {
        "strategy": "canary",
        "steps": [5, {"share": 50, "wait": True}],
        "gates": {"a b": {"limit": 1.5}},
    },
]
"""Tables `release` of deployment files."""


def number(kind: inspect.Type) -> st.SearchStrategy[float]:
    """Draw a number that a field takes."""
    assert isinstance(kind, inspect.FloatType)
    least = kind.ge if kind.ge is not None else kind.gt if kind.gt is not None else -1e6
    most = kind.le if kind.le is not None else 1e6
    return st.floats(least, most, exclude_min=kind.gt is not None and kind.ge is None)


def numbers(cls: type, *names: str) -> dict[str, st.SearchStrategy[Any]]:
    """Draw the numeric fields of a type, those named or all that have a default."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return {
        field.name: number(field.type)
        for field in info.fields
        if isinstance(field.type, inspect.FloatType) and (not names or field.name in names)
    }


SERVICES = st.builds(
    ServiceTime,
    distribution=st.sampled_from(["constant", "exponential", "lognormal", "pareto", "bimodal"]),
    **numbers(ServiceTime),
)


@st.composite
def loads(draw: st.DrawFn, models: list[str], gateways: list[str]) -> Load:
    """Draw a load with what its shape needs."""
    shape: Any = draw(st.sampled_from(["poisson", "constant", "bursts", "ramp", "daily", "trace"]))
    rate = st.floats(0, 1000)
    more: dict[str, Any] = {}
    if shape == "bursts":
        more = {"burst_rate_per_s": draw(rate), "burst_s": 1.5, "every_s": draw(st.floats(2, 50))}
    elif shape == "ramp":
        more = {"to_rate_per_s": draw(rate)}
    elif shape == "daily":
        more = {"to_rate_per_s": draw(rate), "every_s": draw(st.floats(1, 500))}
    elif shape == "trace":
        times = sorted(draw(st.lists(st.floats(0, DURATION_S / 2 - 1), min_size=1, max_size=30)))
        named = st.sampled_from(["", *gateways])
        more = {"arrivals": tuple(Arrival(at_s, draw(named)) for at_s in times)}
    return Load(
        model=draw(st.sampled_from(models)),
        shape=shape,
        rate_per_s=draw(rate),
        via=draw(st.sampled_from([("all",), *((name,) for name in gateways)])),
        start_s=draw(st.floats(0, 50)),
        end_s=draw(st.none() | st.floats(51, DURATION_S)),
        deadline_ms=draw(st.none() | st.floats(1, 1e5)),
        retry_elsewhere=draw(st.booleans()),
        **more,
    )


@st.composite
def faults(
    draw: st.DrawFn, selections: list[Selection], regions: list[str], models: list[str]
) -> AnyFault:
    """Draw a fault of any verb."""
    cls = draw(st.sampled_from(list(VERBS.values())))
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    values: dict[str, Any] = {"at_s": draw(st.floats(0, 49))}
    if cls.can_be_undone:
        values["for_s"] = draw(st.none() | st.floats(0.001, 50))
    for field in info.fields:
        if field.name in ("at_s", "for_s"):
            continue
        if field.name in ("nodes", "others"):
            values[field.name] = draw(st.sampled_from(selections))
        elif field.name == "region":
            values["region"] = draw(st.sampled_from(regions))
        elif field.name == "model":
            values["model"] = draw(st.sampled_from(models))
        elif field.name == "order":
            values["order"] = draw(st.sampled_from(["promote", "abort"]))
        elif field.name == "release":
            values["release"] = draw(st.sampled_from(PLANS))
        elif isinstance(field.type, inspect.BoolType):
            values[field.name] = draw(st.booleans())
        elif isinstance(field.type, inspect.FloatType):
            values[field.name] = draw(number(field.type).filter(bool))
    fault: Any = cls(**values)
    return cast("AnyFault", fault)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Draw a scenario without mistakes."""
    known = st.builds(Place, place=st.sampled_from(CITIES))
    anywhere = st.builds(Place, at=st.tuples(st.floats(-90, 90), st.floats(-180, 180)))
    regions = draw(st.dictionaries(NAMES, known | anywhere, min_size=1, max_size=4))
    devices = draw(
        st.dictionaries(
            NAMES, st.builds(Device, battery=st.booleans(), **numbers(Device)), max_size=2
        )
    )
    nodes = tuple(
        Nodes(
            region=draw(st.sampled_from([*regions])),
            device=draw(st.sampled_from([*devices, *BUILT_IN])),
            count=draw(st.integers(1, 4)),
            name=f"group{number}",
            gateway=number == 0 or draw(st.booleans()),
            nat=number > 0 and draw(st.booleans()),
        )
        for number in range(draw(st.integers(1, 4)))
    )
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    models = tuple(
        Model(
            name=name,
            service=draw(SERVICES),
            **{key: draw(each) for key, each in numbers(Model).items()},
        )
        for name in names
    )
    pairs = [(one, other) for one in regions for other in regions if one <= other]
    paths = st.builds(
        Path, between=st.sampled_from(pairs), rtt_ms=st.none() | st.floats(0.001, 1e4),
        jitter=st.none() | st.floats(0, 1), loss=st.none() | st.floats(0, 1),
        bandwidth_mbps=st.none() | st.floats(0.001, 1e5),
    )  # fmt: skip
    selections: list[Selection] = [("all",), ("group0*",), (f"region:{nodes[0].region}", "gr*")]
    expects = st.builds(
        Expect, metric=st.sampled_from([name for name in METRICS if name != "served_share"]),
        at_most=st.floats(0, 1e6), model=st.none() | st.sampled_from(names),
        after_s=st.none() | st.floats(0, 99),
    )  # fmt: skip
    shares = st.builds(
        Expect, metric=st.just("served_share"), at_least=st.floats(0, 1),
        nodes=st.sampled_from(selections),
    )  # fmt: skip
    return Scenario(
        name=draw(NAMES),
        title=draw(TEXTS),
        story=draw(TEXTS),
        depth=draw(st.sampled_from(["A", "B", "C"])),
        seed=draw(st.integers(0, 2**63 - 1)),
        duration_s=DURATION_S,
        regions=regions,
        paths=tuple(
            draw(st.lists(paths, max_size=3, unique_by=lambda path: frozenset(path.between)))
        ),
        network=draw(st.builds(NetworkPart, **numbers(NetworkPart))),
        devices=devices,
        nodes=nodes,
        models=models,
        load=tuple(
            draw(
                st.lists(
                    loads(names, ["group0" if nodes[0].count == 1 else "group0-1"]), max_size=2
                )
            )
        ),
        faults=tuple(draw(st.lists(faults(selections, [*regions], names), max_size=5))),
        expect=tuple(draw(st.lists(expects | shares, max_size=3))),
    )
