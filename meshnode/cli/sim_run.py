"""`meshnode sim run`: plays a scenario and says whether everything held."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.output import plain, print_json, print_table
from meshnode.cli.sim_progress import shown_progress
from meshnode.cli.sim_report import require_writable, write_html
from meshnode.errors import UsageError
from meshnode.limits import MAX_SEED

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result

_EXIT_DID_NOT_HOLD = 1
_EXIT_INTERRUPTED = 130

ScenarioName = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A file, or a name of `sim list`.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, max=MAX_SEED, help="Decides every draw.", show_default="the scenario's"
    ),
]
Depth = Annotated[
    str | None,
    typer.Option(
        "--depth",
        metavar="A|B|C",
        help="A: the cores as discrete events; B: whole daemons in virtual time; C: processes.",
        show_default="the scenario's",
    ),
]

Policy = Annotated[
    str, typer.Option("--policy", help="Who chooses between replicas; see `sim compare`.")
]


def run(
    scenario: ScenarioName,
    seed: Seed = None,
    depth: Depth = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Play so many seeds; stop at the first failure.")
    ] = 1,
    policy: Policy = "mesh",
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="FILE", help="Write an HTML page about it."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Play a scenario: its mesh, its load, its faults; say whether all held."""
    from meshnode.sim.running.document import document
    from meshnode.sim.running.playing import play
    from meshnode.sim.scenario.reading import read

    found = read(scenario)
    depth = depth and depth.upper()
    number = found.seed if seed is None else seed
    last = number + seeds - 1
    if last > MAX_SEED:
        raise UsageError(f"--seeds {seeds} from seed {number} goes beyond {MAX_SEED}; begin lower")
    require_writable(report)
    runs: list[dict[str, Any]] = []
    while True:
        with shown_progress(f"{found.name}, seed {number}") as progress:
            result = play(
                found, depth=depth, seed=number, policy=policy, source=scenario, progress=progress
            )
        runs.append({"seed": number, "ok": result.ok, "trace_hash": result.trace_hash})
        if not json and seeds > 1:
            typer.echo(f"seed {number}: {'held' if result.ok else 'DID NOT HOLD'}")
        if not result.ok or number == last:
            break
        number += 1
    write_html([result], report)
    if json:
        print_json({**document(result), "runs": runs})
    else:
        _print(result)
    if result.broken_off:
        raise typer.Exit(_EXIT_INTERRUPTED)
    if not result.ok:
        raise typer.Exit(_EXIT_DID_NOT_HOLD)


def _print(result: "Result") -> None:
    from meshnode.sim.running.document import codes
    from meshnode.sim.running.expectations import condition, figures, shown
    from meshnode.sim.running.timeline import failure

    scenario = result.scenario
    typer.echo(plain(f"{scenario.name}: {scenario.title}" if scenario.title else scenario.name))
    typer.echo(
        f"{len(result.machines)} nodes, {result.simulated_s:.1f} s at depth {result.depth} in "
        f"{result.cpu_s:.1f} s of CPU, seed {result.seed}"
        + (f", trace {result.trace_hash[:16]}" if result.trace_hash else "")
    )
    made = figures(result)
    if made["requests"]:
        typer.echo("")
        ended: Any = ", ".join(f"{count:,} {code}" for code, count in codes(result).items())
        rows = [(name, shown(name, made[name])) for name in _SHOWN]
        print_table(["FIGURE", "VALUE"], [("calls", ended), *rows], empty="")
    if result.verdicts:
        typer.echo("")
        print_table(
            ["EXPECTED", "FOUND", "HOLDS"],
            [
                (
                    condition(each.expect),
                    shown(each.expect.metric, each.found),
                    "yes" if each.holds else "NO",
                )
                for each in result.verdicts
            ],
            empty="",
        )
    if not result.ok:
        typer.echo("")
        for line in failure(result).splitlines():
            typer.echo(plain(line))


_SHOWN = (
    "error_rate", "p50_ms", "p99_ms", "p99_9_ms", "goodput_share", "attempts_per_request",
    "failed_attempt_share", "longest_outage_s", "utilisation", "agree",
)  # fmt: skip
