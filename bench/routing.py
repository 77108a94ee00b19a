"""Every row of the table of routing, over several seeds: what was found, what is to be reached, and whether it is.

    make bench-routing      or  python -m bench.routing [--rows a,b] [--seeds 1,2,3] [--seconds 15]

`bench.routing_rows` says what the rows play. Nearly all targets are ratios to an oracle that knows what no
gateway can know, on the same requests; they are virtual, so they are the same on any machine.

Each row is written to `bench-results/routing.json`, and to the page if there is one, as soon as it is measured. Where
only some rows are asked for, the others stay as they were measured before.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec

from bench.routing_rows import ROWS, Figure, Row, Runs
from meshnode.sim.policies.catalogue import known

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

RESULTS: Final = Path("bench-results") / "routing.json"

SEEDS: Final = (1, 2, 3, 4, 5)
"""Those of the page that is committed."""


class Finding(msgspec.Struct, frozen=True):
    """One figure over all seeds.

    Attributes:
        figure: What it is and what is to be reached; its own number is that of the first seed.
        by_seed: The number of each seed, in their order; None where there was nothing to make it from.
    """

    figure: Figure
    by_seed: tuple[float | None, ...]

    @property
    def found(self) -> float:
        """The number that is held against the target: the median of the seeds, or the worst; NaN if one has none."""
        numbers = [each for each in self.by_seed if each is not None]
        if len(numbers) < len(self.by_seed):
            return math.nan
        if not self.figure.always:
            return median(numbers)
        return min(numbers) if self.figure.at_least else max(numbers)

    @property
    def is_reached(self) -> bool:
        """Whether the target is reached; NaN reaches none."""
        target = self.figure.target
        return self.found >= target if self.figure.at_least else self.found <= target

    @property
    def bound(self) -> str:
        """The target, as people write it."""
        return f"{'≥' if self.figure.at_least else '≤'} {number(self.figure.target)}"


class Measured(msgspec.Struct, frozen=True):
    """One row, as it was measured.

    Attributes:
        letter: Of the row.
        policy: Who chose.
        seeds: With which it was played.
        seconds: For how long steady loads were played; None for as long as their scenarios say.
        findings: Its figures.
    """

    letter: str
    policy: str
    seeds: tuple[int, ...]
    seconds: float | None
    findings: tuple[Finding, ...]


def row_of(letter: str) -> Row:
    """Return the row that is called so."""
    return next(each for each in ROWS if each.letter == letter)


def found_by(letter: str, seed: int, policy: str, seconds: float | None) -> list[Figure]:
    """Play a row with one seed and return its figures."""
    return row_of(letter).figures(Runs(seed, policy, seconds))


def findings(by_seed: Sequence[Sequence[Figure]]) -> tuple[Finding, ...]:
    """Return a row's figures over all seeds."""
    return tuple(
        Finding(
            figures[0], tuple(None if math.isnan(each.found) else each.found for each in figures)
        )
        for figures in zip(*by_seed, strict=True)
    )


def measured(
    letters: Sequence[str],
    seeds: tuple[int, ...],
    policy: str,
    seconds: float | None,
    workers: int,
) -> Iterable[Measured]:
    """Play rows with all seeds, several at once, and yield each row when all its seeds are there."""
    if workers <= 1:
        for letter in letters:
            found = [found_by(letter, seed, policy, seconds) for seed in seeds]
            yield Measured(letter, policy, seeds, seconds, findings(found))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = [
            (letter, [pool.submit(found_by, letter, seed, policy, seconds) for seed in seeds])
            for letter in letters
        ]
        for letter, of_seeds in waiting:
            found = [each.result() for each in of_seeds]
            yield Measured(letter, policy, seeds, seconds, findings(found))


def number(value: float) -> str:
    """Return a figure for people."""
    return f"{value:.4g}" if value == 0 or value >= 0.1 or math.isnan(value) else f"{value:.2g}"


def numbers(finding: Finding) -> list[str]:
    """Return what each seed found, for people."""
    return [number(math.nan if each is None else each) for each in finding.by_seed]


def line(letter: str, finding: Finding) -> str:
    """Return a figure as a line of the terminal's table."""
    mark = "reached" if finding.is_reached else "MISSED"
    found = f"{number(finding.found):>9}  {finding.bound:<8}{mark:<9}"
    return f"{letter}  {finding.figure.name:<58}{found}{' '.join(numbers(finding))}"


def page(rows: Sequence[Measured]) -> str:
    """Return the committed page: every row that was measured, with its seeds; and why what is missed is."""
    every = [finding for each in rows for finding in each.findings]
    reached = sum(finding.is_reached for finding in every)
    parts = [
        "<!-- Generated by `make bench-routing`; do not edit. -->",
        "",
        "# Routing: what was to be reached, and what is",
        "",
        f"{reached} of {len(every)} figures reach their target. Latencies are virtual: the same",
        "code and seed give the same figures on any machine. A figure is the median of the seeds, or where it says",
        "*every seed* the worst of them. What the words mean is at the top of `bench/routing_rows.py`; how the mesh",
        "does it is in [routing.md](routing.md). Play a scenario yourself with, for example,",
        "`meshnode sim compare fleet-1-10-50 --policies mesh,p2c,prequal,oracle --seed 1`.",
        "",
        "| row | scenarios | figure | found | target | reached | by seed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in rows:
        parts += _cells(each)
    absent = [row.letter for row in ROWS if row.letter not in {each.letter for each in rows}]
    if absent:
        parts += ["", f"Not measured yet: {', '.join(f'**{letter}**' for letter in absent)}."]
    parts += _played(rows)
    missed = [each for each in rows if not all(finding.is_reached for finding in each.findings)]
    if missed:
        parts += ["", "## What is missed, and why", ""]
        parts += [f"- **{each.letter}** {_why(each)}" for each in missed]
    return "\n".join(parts) + "\n"


def _cells(measured: Measured) -> Iterable[str]:
    row = row_of(measured.letter)
    named = f"**{row.letter}** {row.title}", ", ".join(f"`{each}`" for each in row.scenarios)
    for finding in measured.findings:
        cells = (
            *named,
            finding.figure.name,
            number(finding.found),
            finding.bound + (", every seed" if finding.figure.always else ""),
            "yes" if finding.is_reached else "**no**",
            " · ".join(numbers(finding)),
        )
        yield f"| {' | '.join(cells)} |"
        named = ("", "")


def _played(rows: Sequence[Measured]) -> Iterable[str]:
    """Say with which seeds, and how long, rows were played; most are alike."""
    alike: dict[tuple[tuple[int, ...], float | None], list[str]] = {}
    for each in rows:
        alike.setdefault((each.seeds, each.seconds), []).append(each.letter)
    yield ""
    for (seeds, seconds), letters in alike.items():
        long = "" if seconds is None else f", steady loads for {number(seconds)} s"
        named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
        yield f"- Rows {', '.join(letters)}: {named}{long}."


def _why(measured: Measured) -> str:
    row = row_of(measured.letter)
    missed = [each.figure.name for each in measured.findings if not each.is_reached]
    return f"{'; '.join(missed)}. {row.why_missed or 'The reason is not known yet.'}"


def earlier(path: Path) -> list[Measured]:
    """Return what was measured before; nothing if there is no such file, or it is of another kind."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Measured])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def merged(before: Sequence[Measured], new: Measured) -> list[Measured]:
    """Return rows in the order of the table, a new one in its place."""
    known_rows = {each.letter: each for each in (*before, new)}
    return [known_rows[row.letter] for row in ROWS if row.letter in known_rows]


def write(rows: Sequence[Measured], into: Path | None) -> None:
    """Write what is known: the file, and the page if there is to be one."""
    RESULTS.parent.mkdir(exist_ok=True)
    told = json.dumps(msgspec.to_builtins(rows), indent=1, ensure_ascii=False)
    RESULTS.write_text(told + "\n", encoding="utf-8")
    if into is not None:
        into.write_text(page(rows), encoding="utf-8")


def main() -> None:
    """Measure, print, write `bench-results/routing.json`, and the page if that is asked for."""
    parser = argparse.ArgumentParser(prog="bench.routing", description=__doc__.splitlines()[0])
    letters = ",".join(row.letter for row in ROWS)
    parser.add_argument("--rows", default=letters, help=f"comma-separated; all of them: {letters}")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="comma-separated")
    parser.add_argument("--seconds", type=float, help="of the steady loads, to be quicker")
    parser.add_argument("--policy", default="mesh", help="which one is measured")
    parser.add_argument("--workers", type=int, default=1, help="processes that play at once")
    parser.add_argument("--page", type=Path, help="write the table there, as Markdown")
    asked = parser.parse_args()
    wanted = {each.strip() for each in asked.rows.split(",") if each.strip()}
    chosen = [row.letter for row in ROWS if row.letter in wanted]
    if len(chosen) != len(wanted):
        parser.error(f"--rows {asked.rows}: the rows are {letters}")
    seeds = tuple(int(each) for each in asked.seeds.split(","))
    policy = known(asked.policy)
    rows = [] if len(chosen) == len(ROWS) else earlier(RESULTS)
    rows = [each for each in rows if each.policy == policy]
    is_all_reached = True
    if not chosen:  # only the page, of what is known
        write(rows, asked.page)
    for each in measured(chosen, seeds, policy, asked.seconds, asked.workers):
        for finding in each.findings:
            print(line(each.letter, finding), flush=True)
            is_all_reached = is_all_reached and finding.is_reached
        rows = merged(rows, each)
        write(rows, asked.page)
    sys.exit(0 if is_all_reached else 1)


if __name__ == "__main__":
    main()
