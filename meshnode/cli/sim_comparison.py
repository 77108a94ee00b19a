"""The tables of `meshnode sim compare`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import typer

from meshnode.cli.output import plain, print_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshnode.sim.running.compare import Comparison, Standing

_REGRET_HEADINGS: Final = {
    "p99_ms": "P99",
    "p99_9_ms": "P99.9",
    "mean_ms": "MEAN",
    "goodput_share": "IN TIME",
}
"""Heading of each metric whose regret is told."""

_MOST_NODES_SHOWN = 40
"""Of more nodes the table tells the mean of each class; the JSON document has all."""


def print_comparison(comparison: Comparison) -> None:
    """Print for people what a comparison found."""
    standings = comparison.standings
    typer.echo(
        plain(
            f"{comparison.scenario.name}: {standings[0].figures['requests']:,.0f} requests, the same "
            f"for each policy; depth {comparison.depth}, seed {comparison.seed}"
            + (f", counted from second {comparison.after_s:g} on" if comparison.after_s else "")
        )
    )
    typer.echo("")
    _print_figures(standings)
    if any(each.regret for each in standings):
        typer.echo("")
        typer.echo(
            "Regret: how many times worse than an oracle, which knows the true queues and speeds"
        )
        typer.echo(
            "(size-blind), and the work of each request too, and sheds what would be late (omniscient)."
        )
        typer.echo("")
        _print_regret(standings)
    typer.echo("")
    _print_utilisation(comparison)
    for each in standings:
        for violation in each.result.violations:
            typer.echo("")
            typer.echo(
                plain(
                    f"{each.policy}: {violation.invariant} did not hold at {violation.time_s:.3f} s: "
                    f"{violation.message}"
                )
            )


def _print_figures(standings: Sequence[Standing]) -> None:
    print_table(
        ["POLICY", "P50", "P99", "P99.9", "MEAN", "ERRORS", "IN TIME", "ATTEMPTS", "BUSY"],
        [
            (
                each.policy,
                *(_ms(each.figures[name]) for name in ("p50_ms", "p99_ms", "p99_9_ms", "mean_ms")),
                f"{each.figures['errors']:,.0f}",
                _percent(each.figures["goodput_share"]),
                _number(each.figures["attempts_per_request"], 3),
                _percent(each.figures["utilisation"]),
            )
            for each in standings
        ],
        empty="Nothing was played.",
        droppable=("MEAN", "BUSY"),
    )


def _print_regret(standings: Sequence[Standing]) -> None:
    oracles = tuple(standings[-1].regret)
    columns = {
        (oracle, metric): f"{heading} VS {oracle.upper()}"
        for oracle in oracles
        for metric, heading in _REGRET_HEADINGS.items()
    }
    print_table(
        ["POLICY", *columns.values()],
        [
            (
                each.policy,
                *(_number(each.regret[oracle][metric], 2) for oracle, metric in columns),
            )
            for each in standings
        ],
        empty="",
        droppable=[
            columns[oracle, metric] for metric in ("mean_ms", "p99_9_ms") for oracle in oracles
        ],
    )


def _print_utilisation(comparison: Comparison) -> None:
    """Print how busy each node was under each policy, or each class of them."""
    standings = comparison.standings
    machines = standings[0].result.machines
    groups: dict[str, tuple[str, ...]] = {each.name: (each.name,) for each in machines}
    heading = "BUSY NODE"
    if len(machines) > _MOST_NODES_SHOWN:
        heading = "BUSY CLASS"
        groups = {
            f"{device} ({len(names)})": names
            for device in dict.fromkeys(machine.device_class for machine in machines)
            if (names := tuple(each.name for each in machines if each.device_class == device))
        }
    print_table(
        [heading, *(each.policy.upper() for each in standings)],
        [
            (group, *(_percent(_mean(each.utilisation, names)) for each in standings))
            for group, names in groups.items()
        ],
        empty="",
    )


def _mean(utilisation: Mapping[str, float], names: Sequence[str]) -> float:
    shares = [share for name in names if not math.isnan(share := utilisation.get(name, math.nan))]
    return sum(shares) / len(shares) if shares else math.nan


def _ms(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:,.{digits}f}"
