"""Options that many commands share, and how a command reaches its daemon."""

import difflib
import os
from collections.abc import Iterable
from typing import Annotated

import typer

from meshnode.client.api import ControlClient
from meshnode.client.paths import DATA_DIR_VARIABLE, data_dir

DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        envvar=DATA_DIR_VARIABLE,
        help="The node's data folder; it tells which daemon is meant.",
        show_default="the platform's data folder",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def client_of(option: str | None) -> ControlClient:
    """Return a client of the daemon that `--data-dir` (or its variable, or the default) means."""
    return ControlClient(data_dir(option, os.environ))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or nothing if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
