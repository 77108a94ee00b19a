"""`meshnode sim list`, `show` and `check`: which scenarios there are, what one says, and whether one is right."""

from typing import Annotated

import typer

from meshnode.cli.arguments import AsJson
from meshnode.cli.output import plain, print_json, print_table


def list_scenarios(json: AsJson = False) -> None:
    """List the scenarios that come with meshnode."""
    from meshnode.sim.scenario.reading import library, read

    rows = []
    for name in library():
        scenario = read(name)
        rows.append(
            {
                "name": name,
                "title": scenario.title,
                "depth": scenario.depth,
                "nodes": sum(each.count for each in scenario.nodes),
                "duration_s": scenario.duration_s,
                "faults": len(scenario.faults),
            }
        )
    if json:
        print_json(rows)
        return
    print_table(
        ["NAME", "DEPTH", "NODES", "SECONDS", "TITLE"],
        [
            (row["name"], row["depth"], row["nodes"], f"{row['duration_s']:g}", row["title"])
            for row in rows
        ],
        empty="No scenarios come with this installation.",
        droppable=("SECONDS", "DEPTH"),
    )


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One that `sim list` lists.")],
) -> None:
    """Print a scenario's file, to read it or to begin an own one with it."""
    from meshnode.sim.scenario.reading import path_of

    typer.echo(path_of(name).read_text(encoding="utf-8"), nl=False)


def check(
    scenario: Annotated[
        str, typer.Argument(metavar="SCENARIO", help="A file, or a name of `sim list`.")
    ],
    json: AsJson = False,
) -> None:
    """Check a scenario's file without playing it; says line and key of what is wrong."""
    from meshnode.sim.scenario.reading import read

    found = read(scenario)
    nodes = sum(each.count for each in found.nodes)
    if json:
        print_json(
            {
                "name": found.name,
                "depth": found.depth,
                "seed": found.seed,
                "nodes": nodes,
                "regions": [*found.regions],
                "duration_s": found.duration_s,
                "faults": len(found.faults),
                "expect": len(found.expect),
            }
        )
        return
    typer.echo(
        f"{plain(found.name)} is right: {nodes} nodes in {len(found.regions)} regions, "
        f"{len(found.faults)} faults in {found.duration_s:g} s, depth {found.depth}."
    )
