"""A small mesh with a bit of everything, on which sound and broken cores are played."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshnode.sim.faults import (
    Crash,
    FailRequests,
    Freeze,
    Latency,
    Leave,
    Loss,
    Partition,
    Restart,
    SlowDown,
)
from meshnode.sim.running.playing import play
from meshnode.sim.scenario.model import Load, Model, Nodes, Place, Scenario, ServiceTime

if TYPE_CHECKING:
    from meshnode.sim.faults import AnyFault
    from meshnode.sim.running.result import Result


def rehearsal(
    *faults: AnyFault,
    nodes: int = 3,
    rate_per_s: float = 20.0,
    duration_s: float = 20.0,
    timeout_s: float = 5.0,
    mean_ms: float = 40.0,
) -> Scenario:
    """Return a scenario of two regions with so many nodes each, and these faults."""
    return Scenario(
        name="rehearsal",
        duration_s=duration_s,
        regions={"dub": Place(), "iad": Place()},
        nodes=(
            Nodes(region="dub", name="eu", count=nodes),
            Nodes(region="iad", name="us", count=nodes),
        ),
        models=(Model(name="m", service=ServiceTime(mean_ms=mean_ms), fetch_s=0.1, load_s=0.1),),
        load=(Load(model="m", rate_per_s=rate_per_s, timeout_s=timeout_s),) if rate_per_s else (),
        faults=faults,
    )


EVERYTHING = rehearsal(
    Loss(at_s=0.0, nodes=("all",), share=0.05),
    Latency(at_s=1.0, for_s=6.0, nodes=("eu-*",), others=("us-*",), factor=2.0, jitter=0.5),
    Crash(at_s=2.0, for_s=6.0, nodes=("us-1",)),
    Freeze(at_s=4.0, for_s=4.0, nodes=("eu-2",)),
    SlowDown(at_s=5.0, for_s=5.0, nodes=("eu-3",), factor=20.0),
    Partition(at_s=7.0, for_s=5.0, nodes=("eu-*",), others=("us-*",), share=0.5),
    FailRequests(at_s=9.0, for_s=3.0, nodes=("us-2",), share=0.5),
    Leave(at_s=13.0, nodes=("us-3",)),
    Restart(at_s=16.0, nodes=("us-3",)),
)
"""Faults that overlap, and a load that goes on meanwhile."""


def broken_by(scenario: Scenario, seed: int = 1) -> Result:
    """Play at depth A, and return a run that an invariant has ended."""
    result = play(scenario, seed=seed, source="rehearsal.toml")
    assert result.violations, "no invariant noticed"
    return result
