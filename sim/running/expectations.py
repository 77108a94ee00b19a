"""Whether what a scenario expects holds, and how to say it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from meshnode.sim.running.result import METRICS, Verdict, choose
from meshnode.sim.scenario.selection import select

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result
    from meshnode.sim.scenario.model import Expect


def judge(result: Result) -> list[Verdict]:
    """Return for each expectation of a run's scenario what was found, and whether that holds."""
    return [_judge(result, expect) for expect in result.scenario.expect]


def figures(result: Result) -> dict[str, float]:
    """Return every metric over the whole run; NaN where there is nothing to make it from."""
    chosen = choose(result)
    return {name: metric.find(chosen) for name, metric in METRICS.items()}


def shown(metric: str, value: float) -> str:
    """Return a figure as people read it, with its unit."""
    if math.isnan(value):
        return "nothing"
    unit = METRICS[metric].unit
    if unit == "share":
        return f"{value:.3%}" if 0 < abs(value) < 0.01 else f"{value:.1%}"
    number = f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".rstrip()


def condition(expect: Expect) -> str:
    """Return what is expected in words, such as `p99_ms of digits from 10 s: at most 300 ms`."""
    of = [f"of {expect.model}" if expect.model is not None else ""]
    of.append(f"via {', '.join(expect.via)}" if expect.via else "")
    of.append(f"by {', '.join(expect.nodes)}" if expect.nodes else "")
    of.append(f"from {expect.after_s:g} s" if expect.after_s is not None else "")
    of.append(f"until {expect.before_s:g} s" if expect.before_s is not None else "")
    bounds = []
    if expect.at_least is not None:
        bounds.append(f"at least {shown(expect.metric, expect.at_least)}")
    if expect.at_most is not None:
        bounds.append(f"at most {shown(expect.metric, expect.at_most)}")
    about = " ".join(filter(None, [expect.metric, *of]))
    return f"{about}: {' and '.join(bounds)}"


def _judge(result: Result, expect: Expect) -> Verdict:
    gateways, nodes = (
        {machine.name for machine in select(selection, result.machines)} if selection else None
        for selection in (expect.via, expect.nodes)
    )
    chosen = choose(
        result,
        model=expect.model,
        after_s=expect.after_s,
        before_s=expect.before_s,
        gateways=gateways,
        nodes=nodes,
    )
    found = METRICS[expect.metric].find(chosen)
    low = -math.inf if expect.at_least is None else expect.at_least
    high = math.inf if expect.at_most is None else expect.at_most
    return Verdict(expect, found, low <= found <= high)  # never true of NaN
