"""A run as one JSON document; docs/cli.md describes it."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from meshnode.sim.running.expectations import condition, figures
from meshnode.sim.running.timeline import replay_command, timeline
from meshnode.sim.stage import OK

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result


def document(result: Result) -> dict[str, Any]:
    """Return a run as JSON: what it was, whether all held, and the figures."""
    violations = [
        {"invariant": each.invariant, "message": each.message, "time_s": _number(each.time_s)}
        for each in result.violations
    ]
    return {
        "scenario": result.scenario.name,
        "title": result.scenario.title,
        "depth": result.depth,
        "seed": result.seed,
        "policy": result.policy,
        "ok": result.ok,
        "broken_off": result.broken_off,
        "trace_hash": result.trace_hash,
        "nodes": len(result.machines),
        "duration_s": result.scenario.duration_s,
        "started_after_s": _number(result.started_after_s),
        "simulated_s": _number(result.simulated_s),
        "cpu_s": round(result.cpu_s, 3),
        "figures": {name: _number(value) for name, value in figures(result).items()},
        "codes": codes(result),
        "expect": [
            {
                "text": condition(each.expect),
                **msgspec.to_builtins(each.expect),
                "found": _number(each.found),
                "holds": each.holds,
            }
            for each in result.verdicts
        ],
        "violations": violations,
        "timeline": timeline(result) if violations else [],
        "faults": [
            {
                "time_s": _number(mark.time_s),
                "verb": mark.verb,
                "text": mark.text,
                "undone": mark.undone,
            }
            for mark in result.marks
        ],
        "per_node": per_node(result),
        "replay": replay_command(result),
    }


def codes(result: Result) -> dict[str, int]:
    """Return how often calls ended with each code, most frequent first; `open` for those without end."""
    found = Counter(outcome.code if outcome is not None else "open" for _, outcome in result.calls)
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


def per_node(result: Result) -> dict[str, dict[str, Any]]:
    """Return for each node what it is, how many calls it answered, and how busy it was."""
    served = Counter(
        outcome.served_by
        for _, outcome in result.calls
        if outcome is not None and outcome.code == OK
    )
    found = {}
    samples = [each for each in result.samples if 0 <= each.time_s <= result.scenario.duration_s]
    for machine in result.machines:
        looks = [each.nodes[machine.name] for each in samples if machine.name in each.nodes]
        ready = [each.busy for each in looks if each.slots]
        found[machine.name] = {
            "region": machine.region,
            "device": machine.device_class,
            "state": looks[-1].state if looks else "",
            "served": served[machine.name],
            "utilisation": _number(sum(ready) / len(ready)) if ready else None,
        }
    return found


def _number(value: float) -> float | None:
    """Return a figure as JSON can say it: six decimals, and null for nothing."""
    return round(value, 6) if math.isfinite(value) else None
