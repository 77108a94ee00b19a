"""`meshnode stop`, `leave` and `logs`: the daemon of this machine as a process."""

import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.output import print_json
from meshnode.cli.settings import data_folder
from meshnode.client.control import was_cut_off
from meshnode.client.ending import ask_to_end, end_at_once
from meshnode.client.log_files import LogReader
from meshnode.errors import ConfigError, MeshError, PeerError
from meshnode.folderlock import Holder, holder
from meshnode.options import parse_duration

FOLLOW_INTERVAL_S = 0.25
"""How often a followed log is looked at for new lines."""

Timeout = Annotated[
    str, typer.Option(help="How long to wait until it has ended.", metavar="DURATION")
]
_NOT_NAMED = (
    "no line names {request}: unless the node was started with --log-level debug, it logs only requests "
    "that were slow or failed through no fault of the client; another node may have taken it"
)
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
    """Leave the mesh: say goodbye and forget it; to come back, this device needs a new invite.

    A service that starts this node at boot is removed, too, unless told to --keep.
    """
    folder = data_folder(data_dir)
    limit_s = parse_duration("--timeout", timeout)
    if not keep and not (folder / "mesh").exists():
        _require_not_starting(folder)
        _forget_eviction(folder)
        _tell_no_member(folder, json=json)
        return
    alone = _is_alone(folder)
    if keep:
        ended = ask_to_end(folder, timeout_s=limit_s, leave=False, only_ready=True, say=_progress)
        outcome = _outcome(ended, did_the_rest=not was_cut_off(folder))
        _tell_left(outcome, json=json, forgotten=False, alone=alone, services=())
        return
    _confirm(folder, yes=yes, alone=alone)
    ended = ask_to_end(folder, timeout_s=limit_s, leave=True, only_ready=True, say=_progress)
    outcome = _outcome(ended, did_the_rest=not (folder / "mesh").exists())
    if outcome is not _Outcome.TOLD:
        _forget(folder)
    removed = _remove_services(folder)
    _tell_left(outcome, json=json, forgotten=True, alone=alone, services=removed)


class _Outcome(Enum):
    """What became of the daemon of a node that leaves."""

    TOLD = "it said goodbye"
    CUT_OFF = "it ended before its goodbye"
    NOT_RUNNING = "it did not run"


def _outcome(ended: Holder | None, *, did_the_rest: bool) -> _Outcome:
    """Tell it by whether a daemon ran, and whether it did what comes after a goodbye."""
    if ended is None:
        return _Outcome.NOT_RUNNING
    return _Outcome.TOLD if did_the_rest else _Outcome.CUT_OFF


def _require_not_starting(folder: Path) -> None:
    running = holder(folder)
    if running is not None:
        raise PeerError(
            f"{running} is about to join or to found a mesh on {folder}; try again once "
            "`meshnode status` answers, or end it with `meshnode stop`"
        )


def _remove_services(folder: Path) -> tuple[str, ...]:
    """Take away what would start this node at boot; return its files, and tell of what stays."""
    from meshnode.cli.supervisors import installed_for

    removed = []
    for service in installed_for(folder):
        try:
            service.require_here()
            service.remove()
        except MeshError as error:
            typer.echo(
                f"warning: the service {service.file} could not be removed ({error}). It will not found "
                "a mesh by itself; remove it with `meshnode service uninstall`, as root if it is root's",
                err=True,
            )
        else:
            removed.append(str(service.file))
    return tuple(removed)


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


def _forget_eviction(folder: Path) -> None:
    """Let a device that was evicted be as new; what is left of that mesh goes."""
    from meshnode.datafolder import DataFolder, read_evicted

    if read_evicted(folder) is None:
        return
    opened = DataFolder(folder)
    try:
        opened.start_anew()
    finally:
        opened.close()
    typer.echo("What was left of the mesh that evicted this device is removed.", err=True)


def _tell_no_member(folder: Path, *, json: bool) -> None:
    if json:
        print_json({"told": False, "forgotten": False, "services_removed": []})
    else:
        typer.echo(f"{folder} belongs to no mesh; there is nothing to leave.")


def _tell_left(
    outcome: _Outcome, *, json: bool, forgotten: bool, alone: bool, services: tuple[str, ...]
) -> None:
    if json:
        told = outcome is _Outcome.TOLD
        print_json({"told": told, "forgotten": forgotten, "services_removed": list(services)})
        return
    if alone:
        typer.echo("No other node is in this mesh, so none had to be told.")
    elif outcome is _Outcome.TOLD:
        typer.echo("The other nodes have been told.")
    else:
        reason = (
            "The daemon does not run"
            if outcome is _Outcome.NOT_RUNNING
            else "The daemon ended before its goodbye (see `meshnode logs`)"
        )
        typer.echo(
            f"{reason}, so the other nodes could not be told: they see this node as dead, and forget "
            "it in time."
        )
    for file in services:
        typer.echo(f"The service that started this node is removed: {file}")
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
    model: Annotated[
        str | None,
        typer.Option(help="Only lines about this model, and what it prints.", metavar="NAME"),
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
        if model is not None and record.get("model") != model:
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
        found = log.last(lines, wanted)
        for record in found:
            show(record)
        if request is not None and lines and not found:
            typer.echo(_NOT_NAMED.format(request=request), err=True)
        while follow:
            for record in filter(wanted, log.new()):
                show(record)
            time.sleep(FOLLOW_INTERVAL_S)


def _folder(option: str | None) -> Path:
    return data_folder(option)


def _progress(sentence: str) -> None:
    typer.echo(sentence, err=True)
