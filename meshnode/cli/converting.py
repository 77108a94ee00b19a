"""What `convert` and `optimize` share: the question about code, the progress line, the tables."""

from __future__ import annotations

import math
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from meshnode.cli.output import plain, print_table, terminal
from meshnode.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshnode.models.convert.agreement import Agreement

_EXIT_INTERRUPTED = 130


def ask_about_code(model: str, reason: str, *, yes: bool) -> None:
    """Ask before a model is loaded that can run its author's code.

    Args:
        model: What is to be loaded.
        reason: Why it can run code; empty if it cannot.
        yes: Whether `--yes` was given.

    Raises:
        ConfigError: if there is no terminal to ask on.
    """
    if not reason:
        return
    warning = f"Loading {plain(model)} can run its author's code: {reason}."
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{warning} If you trust its author, add --yes")
    typer.echo(warning, err=True)
    if not typer.confirm("Do you trust its author?", err=True):
        raise typer.Exit(_EXIT_INTERRUPTED)


@contextmanager
def shown_steps() -> Iterator[Callable[[str], None]]:
    """Show on stderr what goes on: a spinner on a terminal, else a line for each step.

    Yields:
        What to tell each step.
    """
    console = terminal(stderr=True)
    if not console.is_terminal:
        yield lambda text: typer.echo(plain(text), err=True)
        return
    with console.status("starting") as status:
        yield lambda text: status.update(plain(text))


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def number(value: float) -> float | None:
    """Return a number that JSON can hold; None for an infinite one."""
    return value if math.isfinite(value) else None


def agreement_document(agreement: Agreement) -> dict[str, Any]:
    """Return an agreement as the JSON document has it."""
    return {
        "sample": agreement.sample,
        "rows": agreement.rows,
        "score": agreement.score,
        "outputs": [
            {
                "name": each.name,
                "max_error": number(each.max_error),
                "mean_error": number(each.mean_error),
                "relative_error": number(each.relative_error),
                "top1": each.top1,
            }
            for each in agreement.outputs
        ],
    }


def print_agreement(agreement: Agreement) -> None:
    """Print how far each output is from the original's."""
    source = "made-up inputs" if agreement.sample == "random" else plain(agreement.sample)
    typer.echo(f"Agreement with the original on {agreement.rows} rows of {source}:")
    print_table(
        ["OUTPUT", "MAX ERROR", "MEAN ERROR", "TOP-1"],
        [
            (
                each.name,
                f"{each.max_error:.2g}",
                f"{each.mean_error:.2g}",
                "-" if each.top1 is None else f"{each.top1:.2%}",
            )
            for each in agreement.outputs
        ],
        empty="The model has no outputs.",
    )


def print_notes(notes: tuple[str, ...], agreement: Agreement) -> None:
    """Print what should be known besides."""
    for note in notes:
        typer.echo(f"Note: {plain(note)}.")
    if agreement.sample == "random":
        typer.echo(
            "Note: made-up inputs say little about accuracy; give real ones with --sample FILE.npz."
        )
