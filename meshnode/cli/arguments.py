"""Options that many commands share, and how a command reaches its daemon."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Final

import typer

from meshnode.cli.settings import client_environment, data_folder, environment
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.limits import DAEMON_ANSWER_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshnode.client.mesh import MeshClient

DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="The node's data folder (MESHNODE_DATA_DIR); it tells which daemon is meant.",
        show_default="the platform's data folder",
    ),
]

JSON_ASKED: Final = "meshnode.json"
"""Under this name the command line remembers that an error, too, is to be a JSON document."""


def _remember(context: typer.Context, wanted: bool) -> bool:
    context.meta[JSON_ASKED] = wanted
    return wanted


AsJson = Annotated[
    bool, typer.Option("--json", callback=_remember, help="Print one JSON document.")
]


Gateway = Annotated[
    list[str] | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        help="Ask this gateway instead of the daemon of this machine (MESHNODE_GATEWAY); several in "
        "turn, where one fails.",
        show_default=False,
    ),
]

KeyFile = Annotated[
    str | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="File with the API key for it (MESHNODE_API_KEY_FILE, or the key in MESHNODE_API_KEY).",
        show_default=False,
    ),
]

CaFile = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        metavar="FILE",
        help="Certificates (PEM) to trust for https instead of the system's (MESHNODE_CA_FILE).",
        show_default=False,
    ),
]


def client_of(
    data_dir: str | None,
    gateway: Sequence[str] | None = None,
    key_file: str | None = None,
    ca_file: str | None = None,
) -> MeshClient:
    """Return a client of the gateways that are meant, else of this machine's daemon; close it.

    Gateways are those of `--gateway`; without it and without `--data-dir`, those of the variable.

    Args:
        data_dir: What `--data-dir` said.
        gateway: What every `--gateway` said.
        key_file: What `--key-file` said.
        ca_file: What `--ca-file` said.

    Raises:
        ConfigError: if both a gateway and a data folder were named, or something cannot be used.
    """
    # A daemon imports this module with `join`, and needs no client.
    from meshnode.client.endpoints import (
        API_KEY_FILE_VARIABLE,
        CA_FILE_VARIABLE,
        GATEWAY_VARIABLE,
        control_target,
        gateway_target,
        split_urls,
    )
    from meshnode.client.mesh import MeshClient

    if gateway and data_dir:
        raise ConfigError(
            "--gateway asks a gateway and --data-dir a daemon of this machine: give one of them"
        )
    urls = [url for text in gateway or () for url in split_urls(text)]
    if not urls and not data_dir:
        urls = split_urls(environment().get(GATEWAY_VARIABLE, ""))
    if not urls:
        if key_file:
            raise ConfigError("--key-file is for a gateway: name one with --gateway")
        if ca_file:
            raise ConfigError("--ca-file is for a gateway: name one with --gateway")
        return MeshClient.of(
            control_target(data_folder(data_dir)), timeout_s=DAEMON_ANSWER_TIMEOUT_S
        )
    options = {
        GATEWAY_VARIABLE: gateway,
        API_KEY_FILE_VARIABLE: key_file,
        CA_FILE_VARIABLE: ca_file,
    }
    variables = client_environment({name for name, value in options.items() if value})
    target = gateway_target(urls, None, variables, key_file=key_file, ca_file=ca_file)
    shown = [endpoint.url for endpoint in target.endpoints if endpoint.shows_key]
    if target.api_key and shown:
        typer.echo(
            f"warning: the API key goes to {', '.join(shown)} unencrypted; use https where others can "
            "listen",
            err=True,
        )
    return MeshClient.of(target, timeout_s=DAEMON_ANSWER_TIMEOUT_S)


def unknown_model(client: MeshClient, name: str, error: ModelNotFound) -> ModelNotFound:
    """Return the gateway's error with the nearest model's name added, where there is one."""
    known = [str(entry["name"]) for entry in client.get("/mesh/v1/models")]
    return error if name in known else ModelNotFound(f"{error}{did_you_mean(name, known)}")


def no_node(name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a node that is not there, with the nearest name or where to look."""
    hint = did_you_mean(name, known) or "; see: meshnode nodes"
    return ConfigError(f"no node is called {name!r}{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or nothing if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
