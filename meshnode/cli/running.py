"""`meshnode stop`, `leave` and `logs`: the daemon of this machine as a process."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.output import print_json
from meshnode.cli.settings import data_folder
from meshnode.client.ending import ask_to_end, end_at_once
from meshnode.client.log_files import LogReader
from meshnode.errors import ConfigError
from meshnode.options import parse_duration

FOLLOW_INTERVAL_S = 0.25
"""How often a followed log is looked at for new lines."""

Timeout = Annotated[
    str, typer.Option(help="How long to wait until it has ended.", metavar="DURATION")
]
_LEVELS = ("debug", "info", "warning", "error", "critical")


def stop(
    timeout: Timeout = "40s",
    now: Annotated[
        bool, typer.Option("--now", help="End it within seconds; cuts off requests that run.")
    ] = False,
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Stop this device's node: it finishes what runs and says goodbye; `join` brings it back."""
    folder = data_folder(data_dir)
    limit_s = parse_duration("--timeout", timeout)
    ended = end_at_once(folder) if now else ask_to_end(folder, timeout_s=limit_s, say=_progress)
    if json:
        print_json({"stopped": ended is not None, "pid": ended.pid if ended else None})
    elif ended is None:
        typer.echo(f"No meshnode daemon is running on {folder}.")
    else:
        typer.echo("Stopped. `meshnode join` starts it again, as the same node.")


def leave(
    keep: Annotated[
        bool, typer.Option("--keep", help="Say goodbye, but stay able to come back.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before the mesh's root key is lost.")
    ] = False,
    timeout: Timeout = "40s",
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Leave the mesh: say goodbye and forget it; to come back, this device needs a new invite."""
    folder = data_folder(data_dir)
    limit_s = parse_duration("--timeout", timeout)
    if not keep and not (folder / "mesh").exists():
        _tell_no_member(folder, json=json)
        return
    alone = _is_alone(folder)
    if keep:
        ended = ask_to_end(folder, timeout_s=limit_s, say=_progress)
        _tell_left(json=json, told=ended is not None, forgotten=False, alone=alone)
        return
    _confirm(folder, yes=yes, alone=alone)
    ended = ask_to_end(folder, timeout_s=limit_s, leave=True, say=_progress)
    if ended is None or (folder / "mesh").exists():  # it does not run, or could not finish
        _forget(folder)
    _tell_left(json=json, told=ended is not None, forgotten=True, alone=alone)


def _confirm(folder: Path, *, yes: bool, alone: bool) -> None:
    """Make sure that whoever removes a mesh's root key means it."""
    if yes or not _has_root_key(folder):
        return
    consequence = f"{folder} holds the root key of its mesh, which is nowhere else. " + (
        "No other device has ever joined, so the mesh ends with it, its models and API keys too"
        if alone
        else "Without it the other nodes go on and can still invite, but nobody will be its admin "
        "any more"
    )
    if not _is_terminal():
        raise ConfigError(
            f"{consequence}. Copy {folder / 'mesh'} to a safe place if in doubt; to go on, add --yes"
        )
    typer.echo(f"{consequence}.", err=True)
    if not typer.confirm("Leave all the same?", err=True):
        raise typer.Exit(1)


def _is_terminal() -> bool:
    return sys.stdin.isatty()


def _has_root_key(folder: Path) -> bool:
    from meshnode.datafolder import read_mesh  # brings the cryptography; `stop` needs none

    mesh = read_mesh(folder)
    return mesh is not None and bool(mesh.root_seed)


def _is_alone(folder: Path) -> bool:
    from meshnode.datafolder import is_alone

    return is_alone(folder)


def _forget(folder: Path) -> None:
    from meshnode.datafolder import DataFolder

    opened = DataFolder(folder)
    try:
        opened.forget()
    finally:
        opened.close()


def _tell_no_member(folder: Path, *, json: bool) -> None:
    if json:
        print_json({"told": False, "forgotten": False})
    else:
        typer.echo(f"{folder} belongs to no mesh; there is nothing to leave.")


def _tell_left(*, json: bool, told: bool, forgotten: bool, alone: bool) -> None:
    if json:
        print_json({"told": told, "forgotten": forgotten})
        return
    if alone:
        typer.echo("No other node is in this mesh, so none had to be told.")
    elif told:
        typer.echo("The other nodes have been told.")
    else:
        typer.echo(
            "The daemon does not run, so the other nodes could not be told: they see this node as "
            "dead, and forget it in time."
        )
    if forgotten:
        typer.echo("The mesh is forgotten; to join one again, use a new invite.")
    else:
        typer.echo("Nothing is forgotten; `meshnode join` brings this node back.")


def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is logged from now on.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many of the last lines to print.")
    ] = 100,
    level: Annotated[
        str, typer.Option(help="Only these and worse: debug, info, warning, error.")
    ] = "debug",
    request: Annotated[
        str | None, typer.Option(help="Only lines with this request id or trace id.", metavar="ID")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print this node's log, also when it does not run."""
    from meshnode.daemon.log_format import format_text

    if level not in _LEVELS:
        raise ConfigError(f"--level {level!r} is no level; write debug, info, warning or error")
    worst = _LEVELS.index(level)

    def wanted(record: dict[str, Any]) -> bool:
        if request is not None and request not in (
            record.get("request_id"),
            record.get("trace_id"),
        ):
            return False
        found = record.get("level")
        return worst == 0 or (found in _LEVELS and _LEVELS.index(found) >= worst)

    def show(record: dict[str, Any]) -> None:
        if json:
            print_json(record)
        else:
            typer.echo(format_text(record))

    path = data_folder(data_dir) / "logs" / "meshnode.log"
    with LogReader(path) as log:
        if not log.exists and not follow:
            raise ConfigError(f"there is no log at {path}: no node has run on this folder yet")
        for record in log.last(lines, wanted):
            show(record)
        while follow:
            for record in filter(wanted, log.new()):
                show(record)
            time.sleep(FOLLOW_INTERVAL_S)


def _folder(option: str | None) -> Path:
    return data_folder(option)


def _progress(sentence: str) -> None:
    typer.echo(sentence, err=True)
