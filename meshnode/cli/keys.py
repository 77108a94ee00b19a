"""`meshnode keys`: the API keys with which other machines call the mesh's gateways."""

from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.output import plain, print_json, print_table
from meshnode.errors import ConfigError, MeshError
from meshnode.key_limit import read_limit
from meshnode.options import is_loopback, parse_duration

app = typer.Typer(
    name="keys",
    help="API keys: who may call this mesh's gateways from elsewhere.",
    no_args_is_help=True,
)

_KEYS = "/mesh/v1/keys"

Rate = Annotated[
    str | None,
    typer.Option(
        help="Requests that its holder may send to each gateway: 10/s, 600/min, 5000/h, 100000/d.",
        metavar="NUMBER/UNIT",
        show_default="any number",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(
        help="Requests that each gateway answers for it at once.",
        metavar="NUMBER",
        show_default="any number",
    ),
]
HighestPriority = Annotated[
    str | None,
    typer.Option(
        help="The highest priority of its requests: low, normal or high. Under overload low ones are refused first.",
        metavar="PRIORITY",
        show_default="high",
    ),
]
Share = Annotated[
    int | None,
    typer.Option(
        help="What is its own of an overloaded gateway, beside 1 of another key.",
        metavar="NUMBER",
        show_default="1",
    ),
]


@app.command()
@asks_mesh
def create(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What you call it: phone, ci.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it allows, each with all before it: infer (and read), deploy, admin; of several the widest.",
            metavar="SCOPE",
            show_default="infer",
        ),
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            help="How long it is valid: 12h, 90d.",
            metavar="DURATION",
            show_default="until it is revoked",
        ),
    ] = None,
    rate: Rate = None,
    concurrency: Concurrency = None,
    priority: HighestPriority = None,
    share: Share = None,
    json: AsJson = False,
) -> None:
    """Make an API key and print it: this once, for the mesh keeps only its hash."""
    ttl_s = None if ttl is None else round(parse_duration("--ttl", ttl))
    if ttl_s is not None and ttl_s < 1:
        raise ConfigError(f"--ttl: {ttl!r} is shorter than a second")
    wish = {
        "name": name,
        "scopes": list(dict.fromkeys(scope or ["infer"])),
        "ttl_s": ttl_s,
        **_limit(rate, concurrency, priority, share),
    }
    with mesh.client() as client:
        made = client.post(_KEYS, wish)
        url = "" if json else _url(client)
    if json:
        print_json(made)
        return
    until = f"until {made['expires_at']}" if made["expires_at"] else "until it is revoked"
    limited = _limited(made)
    limited = f", with {limited}" if limited else ""
    typer.echo(
        f"API key {plain(made['name'])}, for {_scopes(made)}, valid {plain(until)}{limited}:\n"
    )
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
@asks_mesh
def list_(
    mesh: AskedMesh,
    json: AsJson = False,
) -> None:
    """List the mesh's API keys, revoked ones too; their secrets nobody knows."""
    with mesh.client() as client:
        keys = client.get(_KEYS)
    if json:
        print_json(keys)
        return
    print_table(
        [
            "NAME",
            "ID",
            "SCOPES",
            "STATE",
            "RATE",
            "CONCURRENCY",
            "PRIORITY",
            "SHARE",
            "CREATED",
            "EXPIRES",
            "REVOKED",
        ],
        [
            (
                key["name"],
                key["id"],
                _scopes(key),
                key["state"],
                key.get("rate"),
                key.get("concurrency"),
                key.get("priority"),
                key.get("share"),
                key["created_at"],
                key["expires_at"],
                key["revoked_at"],
            )
            for key in keys
        ],
        empty="This mesh has no API keys; make one with: meshnode keys create NAME",
        droppable=("SHARE", "PRIORITY", "REVOKED", "CREATED", "CONCURRENCY", "RATE"),
    )


@app.command()
@asks_mesh
def limit(
    mesh: AskedMesh,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name or its id.")],
    rate: Rate = None,
    concurrency: Concurrency = None,
    priority: HighestPriority = None,
    share: Share = None,
    json: AsJson = False,
) -> None:
    """Say how much the holder of an API key may ask; without options: as much as everybody."""
    with mesh.client() as client:
        changed = client.put(
            f"{_KEYS}/{quote(key, safe='')}", _limit(rate, concurrency, priority, share)
        )
    if json:
        print_json(changed)
        return
    named = f"API key {plain(changed['name'])} ({plain(changed['id'])})"
    limited = _limited(changed) or "no limit"
    typer.echo(f"{named} has {limited}{'' if changed['changed'] else ', as before'}.")


@app.command()
@asks_mesh
def revoke(
    mesh: AskedMesh,
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its name or its id.")],
    json: AsJson = False,
) -> None:
    """Revoke an API key for ever: every gateway of the mesh refuses it once it has heard of it."""
    with mesh.client() as client:
        revoked = client.delete(f"{_KEYS}/{quote(key, safe='')}")
    if json:
        print_json(revoked)
        return
    named = f"API key {plain(revoked['name'])} ({plain(revoked['id'])})"
    if revoked["changed"]:
        typer.echo(f"{named} is revoked.")
    else:
        typer.echo(f"{named} was revoked before, at {plain(revoked['revoked_at'])}.")


def _limit(
    rate: str | None, concurrency: int | None, priority: str | None, share: int | None
) -> dict[str, Any]:
    """Return a limit's fields; an older node, which knows none of them, is not told of no limit."""
    read_limit(rate, concurrency, priority, share)  # what is none is told before anything is asked
    fields = {"rate": rate, "concurrency": concurrency, "priority": priority, "share": share}
    return {name: value for name, value in fields.items() if value is not None}


def _limited(key: dict[str, Any]) -> str:
    """Return a key's limit in words; empty if it has none."""
    parts = []
    if key.get("rate"):
        parts.append(f"at most {plain(key['rate'])}")
    if key.get("concurrency"):
        parts.append(f"at most {key['concurrency']} at once")
    if key.get("priority", "high") != "high":
        parts.append(f"a priority of {plain(key['priority'])} at most")
    if key.get("share", 1) != 1:
        parts.append(f"{key['share']} shares")
    return ", ".join([*parts[:-2], " and ".join(parts[-2:])])


def _scopes(key: dict[str, Any]) -> str:
    return ", ".join(plain(scope) for scope in key["scopes"])


def _url(client: Any) -> str:
    """Return where the node's gateway is, or a place to fill in."""
    try:
        return str(client.get("/mesh/v1/status")["http"] or "http://GATEWAY:8470")
    except MeshError:  # the key is there already, and must be shown
        return "http://GATEWAY:8470"
