"""`meshnode evict`: take a node out of the mesh for ever."""

import sys
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json
from meshnode.errors import ConfigError
from meshnode.limits import MAX_EVICTION_REASON_LENGTH


@asks_mesh
def evict(
    mesh: AskedMesh,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name or its id.")],
    reason: Annotated[
        str, typer.Option(help="Why, for its owner and the other admins.", metavar="TEXT")
    ] = "",
    with_invited: Annotated[
        bool,
        typer.Option(
            "--with-invited",
            help="Evict those that it invited as well, and those that these invited.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")] = False,
    json: AsJson = False,
) -> None:
    """Take a node out of the mesh for ever, by its key: a stolen or sold device, or a wrong guest.

    Its links are closed at once and its invites are void; it can come back only by a new invite, as a
    new node. Only an admin's node can do it.
    """
    if len(reason) > MAX_EVICTION_REASON_LENGTH:
        raise ConfigError(f"--reason: a reason has at most {MAX_EVICTION_REASON_LENGTH} characters")
    _confirm(node, with_invited=with_invited, yes=yes)
    wish = {"node": node, "reason": reason, "with_invited": with_invited}
    with mesh.client() as client:
        done = client.post("/mesh/v1/evictions", wish)
    if json:
        print_json(done)
    else:
        _tell(done)


def _confirm(node: str, *, with_invited: bool, yes: bool) -> None:
    """Make sure that somebody means it: there is no way back."""
    if yes:
        return
    more = ", with all that it invited" if with_invited else ""
    if not sys.stdin.isatty():
        raise ConfigError(f"evicting {node} is for ever{more}; to do it, add --yes")
    if not typer.confirm(f"Evict {plain(node)}{more}, for ever?", err=True):
        raise typer.Exit(1)


def _tell(done: dict[str, Any]) -> None:
    name = plain(done["name"])
    if done["changed"]:
        typer.echo(f"{name} is evicted: no node of this mesh talks to it from now on.")
    else:
        typer.echo(f"{name} was evicted before.")
    also = [plain(each["name"]) for each in done["evicted"] if each["id"] != done["node"]]
    if also:
        typer.echo(f"Evicted with it: {', '.join(also)}.")
    if done["sealed"]:
        typer.echo(
            "It had the mesh's root key, which is sealed now: it admits nobody any more, and the members "
            "stay as they are."
        )
    for key in done["keys"]:
        typer.echo(
            f"It made the API key {plain(key['name'])} ({', '.join(map(plain, key['scopes']))}), which is "
            f"valid still; to take it back: meshnode keys revoke {plain(key['name'])}"
        )
