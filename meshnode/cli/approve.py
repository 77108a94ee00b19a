"""`meshnode approve`: admit a device that shows a code, or see which devices wait."""

from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import ConfigError
from meshnode.options import check_name
from meshnode.types import Role

_REQUESTS = "/mesh/v1/join-requests"


@asks_mesh
def approve(
    mesh: AskedMesh,
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="The six digits that the new device shows; without them, the devices that wait are listed.",
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="What the device will be: member (serves only), operator or admin.",
            metavar="ROLE",
            show_default="operator",
        ),
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            help="Where the device is, unless it says so itself.",
            metavar="REGION",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Admit the device that shows this code: run it on the node that the device names.

    Read the code on the device itself. Who reads it to you from elsewhere may be somebody else.
    """
    if code is None and (role is not None or region is not None):
        raise ConfigError("--role and --region are for a device: name it by the code that it shows")
    roles = [str(each) for each in Role]
    if role is not None and role not in roles:
        raise ConfigError(f"--role: {role!r} is none; there are {', '.join(roles)}")
    if region:
        check_name("--region", region)
    with mesh.client() as client:
        if code is None:
            _list(client.get(_REQUESTS), json=json)
            return
        wish = {"code": code, "role": role or str(Role.OPERATOR), "region": region or ""}
        admitted = client.post(f"{_REQUESTS}/approve", wish)
    if json:
        print_json(admitted)
    else:
        typer.echo(
            f"{plain(admitted['name'])} ({plain(admitted['node'])}) is admitted as {plain(admitted['role'])}. "
            "It shows in `meshnode nodes` in a moment."
        )


def _list(waiting: list[dict[str, Any]], *, json: bool) -> None:
    if json:
        print_json(waiting)
        return
    print_table(
        ["NAME", "FROM", "ID", "ASKED", "UNTIL"],
        [
            (each["name"], each["address"], each["node"], each["asked_at"], each["expires_at"])
            for each in waiting
        ],
        empty="No device asks this node to join. On a new device run: meshnode join",
        droppable=("ASKED", "ID"),
    )
    if waiting:
        typer.echo("\nAdmit one with the code that it shows: meshnode approve CODE")
