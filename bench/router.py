"""What a decision costs a gateway: planning, choosing and counting one request, and what its answer is worth.

    make bench-policies      or  python -m bench.router [--sizes 20 64 1000] [--runs 5] [--json]

Replicas are busy to different degrees, each with answers of its own behind it, so nothing is taken the short way that
an idle mesh would take. Medians of CPU time; a machine that does other things at the same time shows more.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.routing.load import LinkState
from meshnode.routing.request import RoutedRequest
from meshnode.routing.router import Router
from meshnode.routing.table import Replica
from meshnode.routing.tries import Try
from meshnode.types import NodeId, ReplicaState
from meshnode.wire.messages import LoadReport

if TYPE_CHECKING:
    from meshnode.routing.attempts import Attempts

RESULTS: Final = Path("bench-results") / "router.json"

DECISIONS: Final = 2_000
WARM_UP: Final = 500
IN_FLIGHT: Final = 20
PER_S: Final = 500.0
SLOTS: Final = 4

TARGET_US: Final = 100.0
"""Of a decision between `TARGET_SIZE` candidates, in microseconds."""

TARGET_SIZE: Final = 1000

MODEL: Final = "digits"


def fleet(size: int) -> Router:
    """Return a gateway's router that knows so many replicas, of speeds 1 to 50."""
    router = Router(NodeId("me"), "eu", random.Random(1))
    for number in range(size):
        node = NodeId(f"node-{number}")
        ready = Replica(node, node, "eu", "", MODEL, 1, ReplicaState.READY, slots=SLOTS)
        router.replica_changed(ready, 0.0)
        router.link_changed(node, LinkState.UP, 0.0)
        router.rtt_measured(node, 0.001 * (1 + number % 5))
        router.load_reported(node, MODEL, 1, _report(number, number % 7), 0.0)
    return router


def measured(size: int) -> dict[str, float]:
    """Return the microseconds of a decision and of an answer, with so many candidates."""
    router, rng, now = fleet(size), random.Random(2), 1.0
    flying: list[tuple[Attempts, Try]] = []
    decisions_s = answers_s = 0.0
    for turn in range(WARM_UP + DECISIONS):
        if turn == WARM_UP:
            decisions_s = answers_s = 0.0
        now += 1.0 / PER_S
        began = time.process_time()
        attempts = router.plan(RoutedRequest(MODEL, None, 10.0), now)
        step = attempts.next(now)
        decisions_s += time.process_time() - began
        assert isinstance(step, Try)
        flying.append((attempts, step))
        if len(flying) > IN_FLIGHT:
            answered, step = flying.pop(rng.randrange(IN_FLIGHT))
            number = int(step.route.replica.node.removeprefix("node-"))
            report = _report(number, rng.randrange(7))
            began = time.process_time()
            answered.succeeded(now, report, step, report.service_ms)
            answers_s += time.process_time() - began
    return {"decision_us": 1e6 * decisions_s / DECISIONS, "answer_us": 1e6 * answers_s / DECISIONS}


def _report(number: int, in_system: int) -> LoadReport:
    return LoadReport(in_system, SLOTS, 500.0 / (1, 10, 50)[number % 3])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.router", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 64, TARGET_SIZE])
    parser.add_argument("--runs", type=int, default=5, help="of each; their median counts")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS} too")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    print(f"{'candidates':<12}{'decision':>12}{'answer':>12}{'target':>12}")
    for size in options.sizes:
        runs = [measured(size) for _ in range(options.runs)]
        found[size] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        target = f"{TARGET_US:>9.0f} us" if size == TARGET_SIZE else ""
        print(
            f"{size:<12,}{found[size]['decision_us']:>9.1f} us{found[size]['answer_us']:>9.1f} us{target:>12}"
        )
    if options.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
