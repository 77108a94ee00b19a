"""`meshnode sim compare`: the same requests through several policies, next to what is possible."""

from typing import TYPE_CHECKING, Annotated

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.output import print_json
from meshnode.cli.sim_comparison import print_comparison
from meshnode.cli.sim_progress import shown_progress
from meshnode.cli.sim_report import require_writable, write_html
from meshnode.cli.sim_run import Depth, ScenarioName, Seed
from meshnode.errors import UsageError

if TYPE_CHECKING:
    from meshnode.sim.running.result import Result

_EXIT_DID_NOT_HOLD = 1
_EXIT_INTERRUPTED = 130


def compare(
    scenario: ScenarioName,
    policies: Annotated[
        str,
        typer.Option(
            "--policies",
            metavar="NAME,...",
            help="Who chooses between replicas, one after the other; 'oracle' is both oracles.",
        ),
    ] = "random,round-robin,least-loaded,p2c,peak-ewma,prequal,mesh,oracle",
    seed: Seed = None,
    depth: Depth = None,
    after_s: Annotated[
        float,
        typer.Option("--after", metavar="SECONDS", min=0, help="Count requests from then on."),
    ] = 0.0,
    report: Annotated[
        str | None,
        typer.Option("--report", metavar="FILE", help="Write an HTML page about all runs."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Play a scenario once per policy, with the same requests, and compare."""
    from meshnode.sim.policies.catalogue import parse
    from meshnode.sim.running.compare import compare as compared
    from meshnode.sim.running.compare import document, run_order
    from meshnode.sim.running.playing import play
    from meshnode.sim.scenario.reading import read

    found = read(scenario)
    played_at = (depth or found.depth).upper()
    names = parse(policies)
    order = run_order(names, played_at)
    if after_s >= found.duration_s:
        raise UsageError(
            f"--after {after_s:g} leaves no request: the load of {found.name!r} ends at "
            f"{found.duration_s:g} s"
        )
    require_writable(report)
    used_seed = found.seed if seed is None else seed
    with shown_progress(found.name) as progress:

        def play_with(policy: str) -> "Result":
            done = order.index(policy)

            def tell(what: str, share: float) -> None:
                progress(f"{policy}: {what}" if what else policy, (done + share) / len(order))

            return play(
                found,
                depth=played_at,
                seed=used_seed,
                policy=policy,
                source=scenario,
                progress=tell,
            )

        comparison = compared(found, names, played_at, used_seed, play_with, after_s)
    write_html([each.result for each in comparison.standings], report)
    if json:
        print_json(document(comparison))
    else:
        print_comparison(comparison)
    if any(each.result.broken_off for each in comparison.standings):
        raise typer.Exit(_EXIT_INTERRUPTED)
    if not comparison.ok:
        raise typer.Exit(_EXIT_DID_NOT_HOLD)
