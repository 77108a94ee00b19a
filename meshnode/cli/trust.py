"""`meshnode trust`: who belongs to the mesh, by whose word, and what they may do."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, DataDir, asks_mesh, client_of
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import ConfigError
from meshnode.types import Role

app = typer.Typer(
    name="trust",
    help="Members and roles: who belongs to this mesh, and by whose word.",
    no_args_is_help=True,
)

_TRUST = "/mesh/v1/trust"

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before.")]


@app.command()
@asks_mesh
def show(
    mesh: AskedMesh,
    json: AsJson = False,
) -> None:
    """Show who is a member, with which role, who let each in, and who was evicted."""
    with mesh.client() as client:
        trust = client.get(_TRUST)
    if json:
        print_json(trust)
        return
    root = "sealed: it admits nobody" if trust["sealed"] else "not sealed"
    typer.echo(f"Mesh {plain(trust['mesh'])}; its root key is {root}.\n")
    print_table(
        ["NAME", "ROLE", "STATE", "BY", "SINCE", "INVITE", "USED", "ID"],
        [
            (
                row["name"],
                row["role"],
                row["state"],
                _by(row),
                row["at"],
                row["invite_id"],
                f"{row['used']} of {row['uses']}" if row["uses"] else None,
                row["id"],
            )
            for row in trust["members"]
        ],
        empty="No members are known.",
        droppable=("ID", "USED", "INVITE", "STATE"),
    )
    if trust["revoked"]:
        typer.echo("\nNo members any more:\n")
        print_table(
            ["NAME", "BY", "AT", "WHY", "ID"],
            [
                (row["name"], row["by_name"], row["at"], row["why"], row["id"])
                for row in trust["revoked"]
            ],
            empty="",
            droppable=("ID",),
        )


@app.command()
@asks_mesh
def role(
    mesh: AskedMesh,
    node: Annotated[str, typer.Argument(metavar="NODE", help="Its name or its id.")],
    new_role: Annotated[Role, typer.Argument(metavar="ROLE", help="member, operator or admin.")],
    json: AsJson = False,
) -> None:
    """Give a node another role: a second admin, or fewer rights for one that needs less.

    Only an admin's node can do it, and the last admin stays one.
    """
    with mesh.client() as client:
        path = f"/mesh/v1/roles/{quote(node, safe='')}"
        done = client.put(path, {"role": str(new_role)})
    if json:
        print_json(done)
        return
    now = "is now" if done["changed"] else "was already"
    typer.echo(f"{plain(done['name'])} {now} {plain(done['role'])} of the mesh.")


@app.command()
def rotate(yes: Yes = False, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Give this device's node another key, in case somebody has read the one that it has.

    It stays in the mesh with its role, its models and its name, under another id. The old key is out
    for ever. The daemon begins anew with it, which takes some seconds.
    """
    _confirm("Give this node another key, and so another id?", yes=yes)
    with client_of(data_dir) as client:
        done = client.post(f"{_TRUST}/rotate", {})
    if json:
        print_json(done)
        return
    typer.echo(f"This node is {plain(done['node'])} now; {plain(done['former'])} is out for ever.")


@app.command()
def seal(yes: Yes = False, json: AsJson = False, data_dir: DataDir = None) -> None:
    """Put the mesh's root key out of use for ever, and remove it from this device if it is here.

    Nothing needs it any more once the mesh is founded: members are admitted by members. Only an
    admin's node can do it.
    """
    _confirm("Seal the mesh's root key, for ever?", yes=yes)
    with client_of(data_dir) as client:
        done = client.post(f"{_TRUST}/seal", {})
    if json:
        print_json(done)
        return
    how = "is sealed" if done["changed"] else "was sealed before"
    typer.echo(f"The root key of mesh {plain(done['mesh'])} {how}: it admits nobody any more.")


def _confirm(question: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("that is for ever; to do it, add --yes")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _by(row: dict[str, Any]) -> str:
    if row["how"] == "founded":
        return "founder"
    if row["how"] == "rotated":
        return "new key"
    return str(row["by_name"] or row["by"] or "")
