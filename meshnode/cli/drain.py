"""`meshnode drain`: empty a node before it is switched off, so that nobody misses it."""

import time
from typing import Annotated, Final

import msgspec
import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json
from meshnode.client.mesh import MeshClient
from meshnode.client.results import DrainInfo
from meshnode.errors import ConfigError
from meshnode.limits import DRAIN_HAND_OVER_S, DRAIN_WAIT_S, MAX_DRAIN_WAIT_S

_LOOK_S: Final = 0.5
"""Between two looks: a person waits."""

_LATE_S: Final = 5.0
"""How much later than the node's own clock allows its last word may come: it began later, and goes through the mesh."""

_UNFINISHED: Final = 1
"""Exit code where the node is not empty."""


@asks_mesh
def drain(
    mesh: AskedMesh,
    node: Annotated[
        str | None,
        typer.Argument(metavar="[NODE]", help="Its name or its id; this node if left out."),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="For how long sequences, requests and jobs that began there may go on, in seconds; they are "
            "ended then.",
            metavar="SECONDS",
        ),
    ] = DRAIN_WAIT_S,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Give up what no other node can take over, and after the time what others still load.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the node is empty.")
    ] = True,
    undo: Annotated[
        bool, typer.Option("--undo", help="Take a drain back: the node serves again.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Empty a node before it is switched off: others take over, what it began ends, nobody misses it.

    It stays drained, also when it is started again, until `--undo`. Only an operator's node can do it.
    """
    if not 0 <= timeout <= MAX_DRAIN_WAIT_S:
        raise ConfigError(f"--timeout: give 0 to {MAX_DRAIN_WAIT_S} seconds")
    with mesh.client() as client:
        name = node if node is not None else client.status().id
        if undo:
            found = client.undrain(name)
        else:
            found = client.drain(name, force=force, wait_s=round(timeout))
            if wait:
                found = _wait(client, found, timeout + DRAIN_HAND_OVER_S + _LATE_S, quiet=json)
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        _tell(found)
    if wait and not undo and not found.is_drained:
        raise typer.Exit(_UNFINISHED)


def _wait(client: MeshClient, found: DrainInfo, limit_s: float, *, quiet: bool) -> DrainInfo:
    """Return how far the node is once it is empty, cannot be, or took too long; say meanwhile what it waits for."""
    until = time.monotonic() + limit_s
    said: tuple[str, ...] = ()
    while not found.is_drained and not _is_stuck(found) and time.monotonic() < until:
        if not quiet and found.waits_for != said:
            said = found.waits_for
            if said:
                typer.echo(f"waiting for: {plain('; '.join(said))}", err=True)
        time.sleep(_LOOK_S)
        found = client.drain_state(found.node)
    return found


def _is_stuck(found: DrainInfo) -> bool:
    """Whether waiting changes nothing: all that is left of its models is what nobody else takes over."""
    return found.state == "serving" or (
        bool(found.blocked_by) and len(found.blocked_by) == found.replicas
    )


def _tell(found: DrainInfo) -> None:
    name = plain(found.name)
    if found.state == "serving":
        typer.echo(f"{name} is not drained; it serves.")
        return
    if found.is_drained:
        lost = f" {found.ended} sequence(s) took too long and were ended." if found.ended else ""
        typer.echo(f"{name} is drained: it may be stopped, and nobody misses it.{lost}")
        return
    if found.state == "away":
        typer.echo(f"{name} is away; it is to be drained when it comes back.")
        return
    typer.echo(f"{name} is draining.")
    for sentence in found.waits_for:
        typer.echo(f"  waits for: {plain(sentence)}")
    for sentence in found.blocked_by:
        typer.echo(f"  cannot go on: {plain(sentence)}")
    typer.echo(f"It goes on by itself; to take it back: meshnode drain {name} --undo")
