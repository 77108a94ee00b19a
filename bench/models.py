"""The model plane: what it adds to a runtime, what batching gains, processes, transfers, memory.

    make bench-models     or  python -m bench.models [cnn overhead batching hop transfer swarm reloads bake]
                                                     [--seconds 4] [--rounds 5] [--json]

Each part runs in a process of its own, next to its baseline in the same run, interleaved: only ratios mean
something, since other machines and other minutes differ by half. What the figures are to reach is in
docs/BENCHMARKS.md. Everything is on loopback and away from real meshes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path("bench-results") / "models.json"


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        label: What was measured, with its unit.
        value: The figure.
        least: At least this is wanted; None where less is better, or it is there to compare with.
        most: At most this is wanted.
    """

    label: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is what was wanted."""
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def __str__(self) -> str:
        line = f"{self.label:66s} {self.value:10.3f}"
        if self.least is not None:
            line += f"   wanted >= {self.least:g}"
        if self.most is not None:
            line += f"   wanted <= {self.most:g}"
        if self.least is not None or self.most is not None:
            line += "  ok" if self.is_met else "  missed"
        return line


def _parts() -> dict[str, Callable[[float, int], list[Figure]]]:
    """Return the parts by name; each gets seconds for one round, and rounds."""
    from bench import baked_start, model_execution, model_transfer

    return {
        "cnn": model_execution.cnn,
        "overhead": model_execution.overhead,
        "batching": model_execution.batching,
        "hop": model_execution.hop,
        "reloads": model_execution.reloads,
        "transfer": model_transfer.transfer,
        "swarm": model_transfer.swarm,
        "bake": baked_start.bake,
    }


PARTS = ("cnn", "overhead", "batching", "hop", "transfer", "swarm", "reloads", "bake")


def _run_apart(part: str, seconds: float, rounds: int) -> list[Figure]:
    command = [
        sys.executable, "-m", "bench.models", part, "--inside", "--seconds", str(seconds),
        "--rounds", str(rounds),
    ]  # fmt: skip
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return [Figure(**each) for each in json.loads(ended.stdout.splitlines()[-1])]


def main() -> None:
    """Run the parts that were named, all by default, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="of one round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part is called {min(unknown)!r}; there are {', '.join(PARTS)}")
    if given.inside:
        figures = _parts()[given.parts[0]](given.seconds, given.rounds)
        sys.stdout.write(json.dumps([asdict(each) for each in figures]) + "\n")
        return
    found: dict[str, list[Figure]] = {}
    for part in given.parts or PARTS:
        sys.stderr.write(f"{part} ...\n")
        found[part] = _run_apart(part, given.seconds, given.rounds)
        if not given.json:
            sys.stdout.write("".join(f"{part:9s} {each}\n" for each in found[part]))
            sys.stdout.flush()
    document = {part: [asdict(each) for each in figures] for part, figures in found.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(document, indent=2) + "\n")
    if given.json:
        sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
