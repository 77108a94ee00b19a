"""How fast the simulator is at depth A: meshes of cores at rest, from 100 to 5,000 nodes, and calls.

    make bench-sim      or  python -m bench.simulator [--sizes 100 1000 5000] [--runs 3] [--json]

A node-second is a second of the life of one node at rest: its probes, gossip, syncs and links. Each
figure is made in a process of its own, since memory and caches decide much of it; the sizes take turns, so
that a change of the machine's pace meets all of them. Medians of CPU time; invariants are on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from meshnode.sim.core_stage import CoreStage
from meshnode.sim.scenario.arrivals import calls
from meshnode.sim.scenario.model import Load, Model, Nodes, Place, Scenario, ServiceTime

RESULTS: Final = Path("bench-results") / "simulator.json"
REGIONS: Final = ("eu-west-1", "us-east-1", "ap-southeast-1")

REST_NODE_S: Final = 30_000
"""Node-seconds that are measured, about ten seconds of computing; at least one second of each node."""

SETTLE_S: Final = 20.0
"""Seconds before that, in which links are made and lists written."""

CALLS_NODES: Final = 20
CALLS_PER_S: Final = 500.0
CALLS_S: Final = 30.0

TARGET_AT_1000: Final = 5_000.0
TARGET_GROWTH: Final = 1.3
"""Node-seconds per CPU-second with 1,000 nodes, and how much dearer a node may be at the greatest size."""

SEED: Final = 1


def at_rest(size: int) -> dict[str, float]:
    """Return what it takes to start a mesh of so many nodes, and its node-seconds per CPU-second."""
    counts = [size - 2 * (size // 3), size // 3, size // 3]
    scenario = Scenario(
        name="at-rest",
        regions={region: Place() for region in REGIONS},
        nodes=tuple(
            Nodes(region=region, count=count) for region, count in zip(REGIONS, counts, strict=True)
        ),
    )
    stage = CoreStage(scenario, SEED)
    began = time.process_time()
    stage.start(lambda _text: None)
    started = time.process_time()
    stage.run_to(stage.now() + SETTLE_S)
    observed_s = max(1.0, REST_NODE_S / size)
    settled = time.process_time()
    stage.run_to(stage.now() + observed_s)
    ended = time.process_time()
    stage.close()
    return {
        "start_cpu_s": started - began,
        "node_s_per_cpu_s": size * observed_s / (ended - settled),
        "peak_gb": peak_bytes() / 1024**3,
    }


def with_calls() -> dict[str, float]:
    """Return the calls per CPU-second of a mesh of 20 nodes."""
    scenario = Scenario(
        name="calls",
        regions={region: Place() for region in REGIONS[:2]},
        nodes=tuple(Nodes(region=region, count=CALLS_NODES // 2) for region in REGIONS[:2]),
        models=(Model(name="digits", service=ServiceTime(mean_ms=20)),),
        load=(Load(model="digits", rate_per_s=CALLS_PER_S, timeout_s=10.0),),
        duration_s=CALLS_S,
    )
    stage = CoreStage(scenario, SEED)
    stage.start(lambda _text: None)
    load_at, answered = stage.now(), 0

    def done(*_: object) -> None:
        nonlocal answered
        answered += 1

    for call in calls(scenario, SEED):
        stage.at(load_at + call.made_at_s, stage.send, call, done)
    began = time.process_time()
    stage.run_to(load_at + CALLS_S)
    took_s = time.process_time() - began
    stage.settle(30.0)
    return {"calls_per_cpu_s": answered / took_s}


def peak_bytes() -> int:
    """Return the most memory that this process has held; 0 where that cannot be told."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def in_own_process(*arguments: str) -> dict[str, float]:
    """Measure one thing in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.simulator", *arguments],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 5000], help="nodes")
    parser.add_argument("--runs", type=int, default=3, help="of each; one above 1,000 nodes")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS} too")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(at_rest(options.one) if options.one else with_calls()))
        return
    rests: dict[int, list[dict[str, float]]] = {size: [] for size in options.sizes}
    loads: list[dict[str, float]] = []
    for run in range(options.runs):
        for size in options.sizes:
            if run == 0 or size <= 1000:
                print(f"run {run + 1}: {size} nodes at rest ...", file=sys.stderr, flush=True)
                rests[size].append(in_own_process("--one", str(size)))
        loads.append(in_own_process("--one", "0"))
    report(rests, medians(loads), to_json=options.json)


def report(
    rests: dict[int, list[dict[str, float]]], loaded: dict[str, float], *, to_json: bool
) -> None:
    """Print a line for each size, the growth, and the calls."""
    figures = {size: medians(runs) for size, runs in rests.items()}
    for size, figure in figures.items():
        target = f" (target {TARGET_AT_1000:,.0f})" if size == 1000 else ""
        print(
            f"{size:5} nodes at rest: {figure['node_s_per_cpu_s']:8,.0f} node-s per CPU-s{target}; "
            f"start {figure['start_cpu_s']:.1f} CPU-s, peak {figure['peak_gb']:.2f} GiB"
        )
    first, last = min(figures), max(figures)
    growth = figures[first]["node_s_per_cpu_s"] / figures[last]["node_s_per_cpu_s"]
    print(
        f"a node costs {growth:.2f}x at {last} of what it does at {first} (target {TARGET_GROWTH})"
    )
    print(f"{CALLS_NODES} nodes under load: {loaded['calls_per_cpu_s']:,.0f} calls per CPU-s")
    if to_json:
        RESULTS.parent.mkdir(exist_ok=True)
        rows = {"at_rest": figures, "growth": growth, "under_load": loaded}
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"written to {RESULTS}", file=sys.stderr)


if __name__ == "__main__":
    main()
