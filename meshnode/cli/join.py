"""`meshnode join`: check what was asked, then be the daemon."""

import os
import socket
from functools import partial
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
    DEFAULT_REGION,
    Chosen,
    check_invite_text,
    check_loopback,
    join_options,
    parse_address,
    parse_interfaces,
)


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
    region: Annotated[
        str | None,
        typer.Option(help="Where this node is, such as eu-west.", show_default=DEFAULT_REGION),
    ] = None,
    zone: Annotated[
        str | None, typer.Option(help="A place within the region; '' for none.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label of this node; repeatable; '' for none.", metavar="KEY=VALUE"),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="The mesh: TCP and UDP.", metavar="HOST:PORT", show_default=str(DEFAULT_LISTEN)
        ),
    ] = None,
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
            help="Serve every model of this model repository; '' for none.",
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

    With an invite it joins that mesh; later, a plain `meshnode join` rejoins it, with the same name,
    region, zone, labels, listen and http addresses (or --no-gateway) and models, which it keeps in
    its data folder. An option given anew replaces what is kept.

    Without one it looks for a mesh on the local network, and founds one if there is none.
    """
    if invite is not None and new:
        raise ConfigError("an invite joins an existing mesh and --new founds one; give one of them")
    if no_mdns and mdns_interface:
        raise ConfigError("--mdns-interface says where to announce and --no-mdns leaves it out")
    if no_gateway and http is not None:
        raise ConfigError("--http says where the gateway listens and --no-gateway leaves it out")
    folder = choose_data_dir(data_dir, os.environ)
    given = Chosen(
        name=name,
        region=region,
        zone=zone,
        labels=None if label is None else tuple(filter(None, label)),
        listen=None
        if listen is None
        else str(parse_address("--listen", listen, DEFAULT_MESH_PORT)),
        http="" if no_gateway else _http(http),
        models=_repository(models) if models else models,
    )
    make = partial(
        join_options,
        host_name=socket.gethostname(),
        data_dir=str(folder),
        invite=None if invite is None else check_invite_text(invite),
        new=new,
        mdns=not no_mdns,
        mdns_interfaces=parse_interfaces(mdns_interface or ()),
    )
    make(given)  # what is wrong with it is told before what is wrong with what is kept
    from meshnode.datafolder import kept_options  # brings the cryptography; `nodes` needs none

    options = make(kept_options(folder).changed_by(given))
    from meshnode.daemon import run

    raise typer.Exit(run(options))


def _http(text: str | None) -> str | None:
    if text is None:
        return None
    return str(check_loopback(parse_address("--http", text, DEFAULT_HTTP_PORT)))


def _repository(text: str) -> str:
    folder = Path(text).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(
            f"--models {text!r} is not a folder; it must hold one folder per model, "
            "such as DIR/digits/1/model.onnx"
        )
    return str(folder)
