"""What commands print: tables for people, one JSON document for programs, errors on stderr.

Strings from other nodes and models pass through `plain` before they reach a terminal: a model's
error text must not move the cursor or set the window's title.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

# Wide enough that a pipe never cuts or wraps; tables only take what their content needs.
_PIPE_WIDTH = 100_000


def plain(text: object) -> str:
    """Return text whose unprintable characters (escape sequences too) are replaced by `?`."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def print_json(document: Any) -> None:
    """Print one JSON document on one line of stdout, ASCII only."""
    typer.echo(json.dumps(document))


def print_notes(document: Mapping[str, Any]) -> None:
    """Print on stderr the sentences that a node has to say of what it was given."""
    for sentence in document.get("warnings") or ():
        typer.echo(f"note: {plain(sentence)}", err=True)


def print_error(message: object) -> None:
    """Print `error: sentence` on stderr; of an error that has several lines, each on its own."""
    lines = getattr(message, "lines", ()) or (message,)
    typer.echo("error: " + "\n".join(plain(line) for line in lines), err=True)


def give_up_output() -> bool:
    """Find out whether stdout can be written; if not, let it lead nowhere from now on.

    Else Python would try once more to write at the end, and say so with a traceback.

    Returns:
        Whether it cannot.
    """
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def terminal(*, stderr: bool = False) -> "Console":
    """Return a console that takes text literally; it has no width limit unless on a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    console = Console(file=stream, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    droppable: Sequence[str] = (),
) -> None:
    """Print a table, or the sentence `empty` when it has no rows.

    On a terminal that is too narrow the `droppable` columns go, in their order; if that is not
    enough, cells fold onto more lines, but nothing is cut off.
    """
    if not rows:
        typer.echo(empty)
        return
    from rich.table import Table
    from rich.text import Text

    console = terminal()
    columns, rows = _fit(columns, rows, console.width, droppable)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():  # without the spaces that fill the last column
        typer.echo(line.rstrip())


def _fit(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    width: int,
    droppable: Sequence[str],
) -> tuple[list[str], list[list[object]]]:
    """Leave out droppable columns, in their order, until the table fits the width."""
    kept = list(range(len(columns)))
    for name in droppable:
        widest = [max(len(str(row[at])) for row in (columns, *rows)) + 2 for at in kept]
        if sum(widest) <= width:
            break
        kept.remove(columns.index(name))
    return [columns[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _cell(value: object) -> Any:
    from rich.text import Text

    text = "-" if value is None or value == "" else plain(value)
    return Text(text, style=_STYLES.get(text, ""), overflow="fold")


_STYLES = {
    "alive": "green",
    "ready": "green",
    "suspect": "yellow",
    "paused": "yellow",
    "loading": "yellow",
    "fetching": "yellow",
    "unloading": "yellow",
    "dead": "red",
    "failed": "red",
    "left": "dim",
}
