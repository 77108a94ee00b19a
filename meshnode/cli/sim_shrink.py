"""`meshnode sim shrink`: cuts a failing scenario down to what makes it fail."""

import shlex
from typing import Annotated

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.output import plain, print_json
from meshnode.cli.sim_run import Depth, Policy, ScenarioName, Seed
from meshnode.errors import UsageError

_EXIT_INTERRUPTED = 130


def shrink(
    scenario: ScenarioName,
    seed: Seed = None,
    depth: Depth = None,
    policy: Policy = "mesh",
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write what is left to this file.",
            show_default="standard output",
        ),
    ] = None,
    tries: Annotated[int, typer.Option("--tries", min=1, help="Play at most so many.")] = 400,
    json: AsJson = False,
) -> None:
    """Cut a failing scenario down to what makes it fail, with the same seed."""
    from meshnode.sim.running.shrinking import shrink as cut_down
    from meshnode.sim.running.timeline import summary
    from meshnode.sim.scenario.reading import read
    from meshnode.sim.scenario.writing import to_toml

    def tell(what: str, played: int) -> None:
        typer.echo(f"{played:>4} played; left: {what}", err=True)

    found = cut_down(
        read(scenario),
        seed=seed,
        depth=depth and depth.upper(),
        policy=policy,
        progress=tell,
        max_tries=tries,
    )
    text = to_toml(found.scenario)
    if output is not None:
        _write(output, text)
    if json:
        print_json(
            {
                "fails_with": found.fails_with,
                "summary": summary(found.result),
                "seed": found.scenario.seed,
                "depth": found.scenario.depth,
                "nodes": len(found.result.machines),
                "faults": len(found.scenario.faults),
                "duration_s": found.scenario.duration_s,
                "tries": found.tries,
                "finished": found.is_finished,
                "trace_hash": found.result.trace_hash,
                "toml": text,
            }
        )
    else:
        typer.echo(plain(f"It still fails: {summary(found.result)}"), err=True)
        if output is None:
            typer.echo(text, nl=False)
        else:
            named = f"./{output}" if output.startswith("-") else output
            typer.echo(f"Play it: meshnode sim run {plain(shlex.quote(named))}")
    if found.is_broken_off:
        raise typer.Exit(_EXIT_INTERRUPTED)


def _write(path: str, text: str) -> None:
    from pathlib import Path

    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
