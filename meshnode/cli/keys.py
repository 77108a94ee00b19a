"""`meshnode keys`: the API keys with which other machines call the mesh's gateways."""

from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from meshnode.cli.arguments import AsJson, CaFile, DataDir, Gateway, KeyFile, client_of
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import ConfigError, MeshError
from meshnode.options import is_loopback, parse_duration

app = typer.Typer(
    name="keys",
    help="API keys: who may call this mesh's gateways from elsewhere.",
    no_args_is_help=True,
)

_KEYS = "/mesh/v1/keys"


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it: phone, ci.")],
    scope: Annotated[
        str,
        typer.Option(
            help="What it allows, each with all before it: infer (and read), deploy, admin.",
            metavar="SCOPE",
        ),
    ] = "infer",
    ttl: Annotated[
        str | None,
        typer.Option(
            help="How long it is valid: 12h, 90d.",
            metavar="DURATION",
            show_default="until it is revoked",
        ),
    ] = None,
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """Make an API key and print it: this once, for the mesh keeps only its hash."""
    ttl_s = None if ttl is None else round(parse_duration("--ttl", ttl))
    if ttl_s is not None and ttl_s < 1:
        raise ConfigError(f"--ttl: {ttl!r} is shorter than a second")
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        made = client.post(_KEYS, {"name": name, "scopes": [scope], "ttl_s": ttl_s})
        url = "" if json else _url(client)
    if json:
        print_json(made)
        return
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    typer.echo(f"API key {plain(made['name'])}, for {_scopes(made)}, valid {plain(until)}:\n")
    typer.echo(f"  {plain(made['key'])}\n")
    typer.echo("It is shown this once: keep it like a password. Send it with each request:\n")
    typer.echo(
        f"  curl -H 'Authorization: Bearer {plain(made['key'])}' {plain(url)}/mesh/v1/models\n"
    )
    if is_loopback(urlsplit(url).hostname or ""):
        typer.echo(
            "This gateway is reached from its own machine only. For other machines start the node with "
            "--http 0.0.0.0:8470, or put a proxy before it.\n"
        )
    typer.echo(f"To take it back, on any node: meshnode keys revoke {plain(made['name'])}")


@app.command(name="list")
def list_(
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """List the mesh's API keys, revoked ones too; their secrets nobody knows."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        keys = client.get(_KEYS)
    if json:
        print_json(keys)
        return
    print_table(
        ["NAME", "ID", "SCOPES", "STATE", "CREATED", "EXPIRES", "REVOKED"],
        [
            (
                key["name"],
                key["id"],
                _scopes(key),
                key["state"],
                key["created_at"],
                key["expires_at"],
                key["revoked_at"],
            )
            for key in keys
        ],
        empty="This mesh has no API keys; make one with: meshnode keys create NAME",
        droppable=("REVOKED", "CREATED"),
    )


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name or its id.")],
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke an API key for ever: every gateway of the mesh refuses it once it has heard of it."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        revoked = client.delete(f"{_KEYS}/{quote(key, safe='')}")
    if json:
        print_json(revoked)
        return
    named = f"API key {plain(revoked['name'])} ({plain(revoked['id'])})"
    if revoked["changed"]:
        typer.echo(f"{named} is revoked.")
    else:
        typer.echo(f"{named} was revoked before, at {plain(revoked['revoked_at'])}.")


def _scopes(key: dict[str, Any]) -> str:
    return ", ".join(plain(scope) for scope in key["scopes"])


def _url(client: Any) -> str:
    """Return where the node's gateway is, or a place to fill in."""
    try:
        return str(client.get("/mesh/v1/status")["http"] or "http://GATEWAY:8470")
    except MeshError:  # the key is there already, and must be shown
        return "http://GATEWAY:8470"
