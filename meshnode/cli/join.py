"""`meshnode join`: check what was asked, then be the daemon."""

import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from meshnode.cli.arguments import DataDir
from meshnode.client.paths import data_dir as choose_data_dir
from meshnode.config import DEFAULT_HTTP_PORT, DEFAULT_MESH_PORT
from meshnode.errors import ConfigError
from meshnode.options import (
    DEFAULT_HTTP,
    DEFAULT_LISTEN,
    JoinOptions,
    check_invite_text,
    check_loopback,
    check_name,
    name_from_host,
    parse_address,
    parse_interfaces,
    parse_labels,
)
from meshnode.types import Address


def join(
    invite: Annotated[
        str | None,
        typer.Argument(
            help="The mesh1… line from `meshnode invite` on a member.", metavar="INVITE"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="This node's name.", show_default="the host name")
    ] = None,
    region: Annotated[str, typer.Option(help="Where this node is, such as eu-west.")] = "default",
    zone: Annotated[str, typer.Option(help="A place within the region.")] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label of this node; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    listen: Annotated[str, typer.Option(help="The mesh: TCP and UDP.", metavar="HOST:PORT")] = str(
        DEFAULT_LISTEN
    ),
    http: Annotated[
        str | None,
        typer.Option(
            help="The HTTP gateway; loopback only.",
            metavar="HOST:PORT",
            show_default=str(DEFAULT_HTTP),
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            "--model-repository",
            metavar="DIR",
            help="Serve every model of this model repository.",
        ),
    ] = None,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Offer no HTTP.")] = False,
    new: Annotated[
        bool, typer.Option("--new", help="Found a new mesh without looking for others.")
    ] = False,
    no_mdns: Annotated[
        bool,
        typer.Option("--no-mdns", help="Do not announce or search on the local network."),
    ] = False,
    mdns_interface: Annotated[
        list[str] | None,
        typer.Option(
            help="Limit that to the network of this address; repeatable.", metavar="ADDRESS"
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run this device's node, in the foreground, until Ctrl-C.

    With an invite it joins that mesh; later, a plain `meshnode join` rejoins it.

    Without one it looks for a mesh on the local network, and founds one if there is none.
    """
    if invite is not None and new:
        raise ConfigError("an invite joins an existing mesh and --new founds one; give one of them")
    if no_mdns and mdns_interface:
        raise ConfigError("--mdns-interface says where to announce and --no-mdns leaves it out")
    if no_gateway and http is not None:
        raise ConfigError("--http says where the gateway listens and --no-gateway leaves it out")
    options = JoinOptions(
        invite=None if invite is None else check_invite_text(invite),
        name=name_from_host(socket.gethostname()) if name is None else check_name("--name", name),
        region=check_name("--region", region),
        zone=check_name("--zone", zone) if zone else "",
        labels=parse_labels(label or ()),
        listen=parse_address("--listen", listen, DEFAULT_MESH_PORT),
        http=None if no_gateway else _http(http),
        data_dir=str(choose_data_dir(data_dir, os.environ)),
        models=None if models is None else _repository(models),
        new=new,
        mdns=not no_mdns,
        mdns_interfaces=parse_interfaces(mdns_interface or ()),
    )
    from meshnode.daemon import run

    raise typer.Exit(run(options))


def _http(text: str | None) -> Address:
    if text is None:
        return DEFAULT_HTTP
    return check_loopback(parse_address("--http", text, DEFAULT_HTTP_PORT))


def _repository(text: str) -> str:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(
            f"--models {text!r} is not a folder; it must hold one folder per model, "
            "such as DIR/digits/1/model.onnx"
        )
    return str(folder)
