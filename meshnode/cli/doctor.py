"""`meshnode doctor`: try what two nodes need to meet, and say what stands between them."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.invite import read_invite
from meshnode.cli.output import plain, print_json, terminal
from meshnode.cli.settings import data_folder
from meshnode.diagnosis.checks import Result
from meshnode.errors import ConfigError
from meshnode.folderlock import holder
from meshnode.limits import DOCTOR_ANSWER_TIMEOUT_S, MAX_DOCTOR_PEERS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from meshnode.client.mesh import MeshClient

    Subject = Mapping[str, Any]

_AT_ONCE = 4  # examinations; each waits for the network, not for this machine
_MARKS = {Result.OK: ("✔", "+"), Result.NOTE: ("!", "!"), Result.FAULT: ("✘", "x")}
_STYLES = {Result.OK: "green", Result.NOTE: "yellow", Result.FAULT: "red"}


@asks_mesh
def doctor(
    mesh: AskedMesh,
    peer: Annotated[
        str | None,
        typer.Argument(
            metavar="[PEER]",
            help="A node's name or id, or an address such as 192.0.2.7:8471; without it, all nodes.",
            show_default=False,
        ),
    ] = None,
    invite: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="Try this invite, without using it; `-` reads it from standard input.",
            show_default=False,
        ),
    ] = None,
    invite_file: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Try the invite in this file.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> None:
    """Find out why nodes do not meet: dial, say hello, send datagrams, listen, compare clocks.

    Nothing is guessed and nothing is changed: each line was tried just now. The exit code is 1 if something
    has to be mended.
    """
    line = read_invite(invite, invite_file)
    if line is not None:
        if peer is not None:
            raise ConfigError("an invite names its addresses itself: give it, or PEER")
        subjects: Iterator[Subject] = iter([_try_invite(line, data_folder(mesh.data_dir))])
    else:
        subjects = _examinations(peer, mesh)
    found = []
    for subject in _with_progress(subjects, quiet=json):
        found.append(subject)
        if not json:
            _print(subject)
    faults = sum(check["result"] == Result.FAULT for each in found for check in each["checks"])
    if json:
        print_json({"faults": faults, "subjects": found})
    elif faults:
        typer.echo(f"\n{faults} thing{'s' if faults > 1 else ''} to mend.")
    else:
        typer.echo("\nNothing to mend was found.")
    if faults:
        raise typer.Exit(1)


def _examinations(peer: str | None, mesh: AskedMesh) -> Iterator[Subject]:
    """Yield each subject as soon as it is examined: by the daemon, or from here if none runs."""
    try:
        with mesh.client() as client:
            nodes = client.get("/mesh/v1/nodes")
            yield from _by_daemon(client, nodes, peer)
            return
    except ConfigError:
        if mesh.gateway or holder(data_folder(mesh.data_dir)) is not None:
            raise
    yield from _from_here(peer, data_folder(mesh.data_dir))


def _by_daemon(
    client: MeshClient, nodes: Sequence[Mapping[str, Any]], peer: str | None
) -> Iterator[Subject]:
    names = [peer] if peer is not None else ["", *_others(nodes)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        first = names.pop(0)
        yield _examined(client, first)
        running = [pool.submit(_examined, client, name) for name in names]
        for done in as_completed(running):
            yield done.result()


def _others(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ids of the other nodes, those that are missing first, of those that left none."""
    others = [node for node in nodes if not node.get("self") and node["state"] != "left"]
    others.sort(key=lambda node: (node["state"] == "alive", bool(node.get("linked"))))
    return [str(node["id"]) for node in others[:MAX_DOCTOR_PEERS]]


def _examined(client: MeshClient, peer: str) -> Subject:
    found: Subject = client.post(
        "/mesh/v1/doctor", {"peer": peer}, timeout_s=DOCTOR_ANSWER_TIMEOUT_S
    )
    return found


# Without a daemon


def _try_invite(line: str, folder: Path) -> Subject:
    from meshnode.daemon.doctor_alone import examine_invite
    from meshnode.net.clock import RealClock

    return asyncio.run(examine_invite(line, folder, RealClock()))


def _from_here(peer: str | None, folder: Path) -> Iterator[Subject]:
    from meshnode.daemon.doctor_alone import examine_stopped
    from meshnode.net.clock import RealClock

    with asyncio.Runner() as runner:
        subjects = examine_stopped(folder, peer or "", RealClock())
        while (subject := runner.run(anext(subjects, None))) is not None:
            yield subject


# Printing


def _with_progress(subjects: Iterator[Subject], *, quiet: bool) -> Iterator[Subject]:
    """Show on a terminal that something is under way."""
    console = terminal(stderr=True)
    if quiet or not console.is_terminal:
        yield from subjects
        return
    while True:
        with console.status("trying ..."):
            subject = next(subjects, None)
        if subject is None:
            return
        yield subject


def _print(subject: Subject) -> None:
    typer.echo(plain(subject["subject"]))
    for check in subject["checks"]:
        result = Result(check["result"])
        mark = typer.style(_mark(result), fg=_STYLES[result])
        typer.echo(f"  {mark} {plain(check['about'])}: {plain(check['says'])}")
        if check["to_do"] and result is not Result.OK:
            typer.echo(f"    to do: {plain(check['to_do'])}")


def _mark(result: Result) -> str:
    """Return a sign for a result that this terminal can show."""
    sign, simple = _MARKS[result]
    try:
        sign.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return simple
    return sign
