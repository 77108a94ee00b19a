"""The cases of membership with as many seeds as a budget of CPU time allows.

    make soak                  or  SOAK_CPU_S=1800 python -m bench.soak [--cpu 1800] [-k case_17] [--json]

Runs `tests/membership`, with the sizes that `make test` leaves out. The case that has used least CPU time so
far runs next, with its next seed, until the budget is spent or each has had `MAX_SEEDS`: cheap cases get
many seeds and dear ones a few. Each runs once at least. The report names for every case its seeds, its
sizes, what it measured, and a 95 % interval of its share of failures. A failure prints the command that
repeats it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS: Final = Path("bench-results") / "soak.json"
CASES: Final = "tests/membership"
IN_REAL_TIME: Final = "tests/membership/test_over_udp.py"
DEFAULT_CPU_S: Final = 1800.0
MAX_SEEDS: Final = 200
PROGRESS_S: Final = 15.0
_SEED: Final = re.compile(r"\[(\d+)(-|\])")


@dataclass
class Case:
    """What is known of one case: a test with all its parameters but the seed."""

    name: str
    cpu_s: float = 0.0
    seeds: list[int] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    measured: dict[str, list[float]] = field(default_factory=dict)


class Soak:
    """A pytest plugin that runs what it collected in its own order, until the budget is spent."""

    def __init__(self, budget_s: float, worker: int, workers: int) -> None:
        """Take every `workers`-th seed, beginning with `worker`."""
        self._budget_s = budget_s
        self._worker = worker
        self._workers = workers
        self.cases: dict[str, Case] = {}
        self._waiting: defaultdict[str, list[pytest.Item]] = defaultdict(list)
        self._current = Case("")

    @pytest.hookimpl(trylast=True)  # after -k has chosen
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sort what was collected into cases."""
        for item in items:
            name, seed = _case_of(item)
            if seed % self._workers == self._worker:
                self._waiting[name].append(item)
                self.cases.setdefault(name, Case(name))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Run the cheapest case so far with its next seed, again and again."""
        began, reported = time.process_time(), time.monotonic()
        while self._waiting:
            name = min(self._waiting, key=lambda name: (self.cases[name].cpu_s, name))
            case = self._current = self.cases[name]
            spent_s = time.process_time() - began
            if case.seeds and spent_s > self._budget_s:
                break
            item = self._waiting[name].pop(0)
            if not self._waiting[name]:
                del self._waiting[name]
            case.seeds.append(_case_of(item)[1])
            before = time.process_time()
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            case.cpu_s += time.process_time() - before
            if time.monotonic() - reported > PROGRESS_S:
                reported = time.monotonic()
                runs = sum(len(each.seeds) for each in self.cases.values())
                print(f"[{spent_s:.0f} of {self._budget_s:.0f} s CPU] {runs} runs", file=sys.stderr)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what a run measured, and whether it failed."""
        if report.failed:
            self._current.failed.append(report.nodeid)
            print(f"FAILED {report.nodeid}\n{report.longreprtext[-3000:]}", file=sys.stderr)
        if report.when == "call":
            for name, value in report.user_properties:
                self._current.measured.setdefault(name, []).append(float(str(value)))


def _case_of(item: pytest.Item) -> tuple[str, int]:
    """Return a test's name without its seed, and the seed, which is the first of its parameters."""
    name = item.nodeid.rpartition("::")[2]
    found = _SEED.search(name)
    if found is None or "seed" not in getattr(item, "fixturenames", ()):
        return name, 0
    rest = name[found.end() :]
    return name[: found.start()] + (f"[{rest}" if rest else ""), int(found[1])


def work(budget_s: float, worker: int, workers: int, only: str, result: Path) -> None:
    """Run one share of the seeds and write what came of it."""
    os.environ["SOAK_SEEDS"] = str(MAX_SEEDS)
    os.environ["SOAK_SIZES"] = "1"
    soak = Soak(budget_s, worker, workers)
    arguments = [CASES, f"--ignore={IN_REAL_TIME}", "-q", "-s", "--no-summary", "-k", only]
    ended = pytest.main(
        [*arguments, "-o", "faulthandler_timeout=0"],
        plugins=[soak],
    )
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        sys.exit(int(ended))
    result.write_text(json.dumps([asdict(case) for case in soak.cases.values()]))


# The report.


def interval(failures: int, runs: int) -> tuple[float, float]:
    """Return the 95 % interval of a share (Wilson)."""
    z, share = 1.96, failures / runs
    middle = (share + z * z / (2 * runs)) / (1 + z * z / runs)
    half = z * math.sqrt(share * (1 - share) / runs + (z / (2 * runs)) ** 2) / (1 + z * z / runs)
    return max(0.0, middle - half), min(1.0, middle + half)


def merged(shares: Iterable[Sequence[Case]]) -> list[Case]:
    """Put the shares of all processes together, by case."""
    cases: dict[str, Case] = {}
    for case in (case for share in shares for case in share):
        into = cases.setdefault(case.name, Case(case.name))
        into.cpu_s += case.cpu_s
        into.seeds += case.seeds
        into.failed += case.failed
        for name, values in case.measured.items():
            into.measured.setdefault(name, []).extend(values)
    return sorted((case for case in cases.values() if case.seeds), key=lambda case: case.name)


def lines(case: Case) -> Iterable[str]:
    """Yield a case's part of the report."""
    runs = len(case.seeds)
    low, high = interval(len(case.failed), runs)
    seeds = f"seeds {min(case.seeds)} to {max(case.seeds)}" if max(case.seeds) else "no seed"
    yield (
        f"{'FAIL' if case.failed else 'ok':<4} {case.name}\n"
        f"       {runs} runs, {seeds}, {case.cpu_s:.0f} s CPU; "
        f"failed {len(case.failed)}, 95 %: {low:.1%} to {high:.1%}"
    )
    for name, values in case.measured.items():
        ordered = sorted(values)
        tail = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        yield (
            f"       {name}: median {statistics.median(values):.4g}, 95th percentile {tail:.4g}, "
            f"{ordered[0]:.4g} to {ordered[-1]:.4g}"
        )
    for failure in dict.fromkeys(case.failed):
        yield f"       SOAK_SEEDS={MAX_SEEDS} SOAK_SIZES=1 python -m pytest '{failure}'"


def main() -> None:
    """Run the shares as processes, and print their report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default_s = float(os.environ.get("SOAK_CPU_S", DEFAULT_CPU_S))
    parser.add_argument("--cpu", type=float, default=default_s, help="seconds of CPU time in all")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-k", dest="only", default="case", help="as pytest's: which cases")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS} too")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        share_s = options.cpu / options.processes
        work(share_s, options.worker, options.processes, options.only, options.result)
        return
    sys.exit(_oversee(options))


def _oversee(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.json") for number in range(options.processes)]
        command = [sys.executable, "-m", "bench.soak", *sys.argv[1:]]
        command += ["--cpu", str(options.cpu), "--processes", str(options.processes)]
        workers = [
            subprocess.Popen(
                [*command, "--worker", str(number), "--result", str(file)],
                stdout=subprocess.DEVNULL,  # pytest's own report
            )
            for number, file in enumerate(files)
        ]
        ended = [worker.wait() for worker in workers]
        if any(ended):
            print("a process of the soak ended early; what it ran is missing", file=sys.stderr)
            return 2
        shares = [[Case(**each) for each in json.loads(file.read_text())] for file in files]
    cases = merged(shares)
    for case in cases:
        print(*lines(case), sep="\n")
    runs, failed = sum(len(c.seeds) for c in cases), sum(len(c.failed) for c in cases)
    cpu_s = sum(case.cpu_s for case in cases)
    print(f"\n{len(cases)} cases, {runs} runs, {cpu_s:.0f} s of CPU time: {failed} failed")
    if options.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([asdict(case) for case in cases], indent=2) + "\n")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    main()
