"""Options that many commands share, and how a command reaches its daemon."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final, NamedTuple, ParamSpec

import typer

from meshnode.cli.settings import client_environment, data_folder, environment
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.limits import DAEMON_ANSWER_TIMEOUT_S, MAX_NOTE_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

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


class AskedMesh(NamedTuple):
    """The mesh that a command asks, as its options say; `client_of` has the words.

    Attributes:
        data_dir: What `--data-dir` said.
        gateway: What every `--gateway` said.
        key_file: What `--key-file` said.
        ca_file: What `--ca-file` said.
    """

    data_dir: str | None = None
    gateway: Sequence[str] | None = None
    key_file: str | None = None
    ca_file: str | None = None

    def client(self) -> MeshClient:
        """Return a client of it; close it."""
        return client_of(self.data_dir, self.gateway, self.key_file, self.ca_file)


def _mesh_options(
    *,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> AskedMesh:
    return AskedMesh(data_dir, gateway, key_file, ca_file)


_Rest = ParamSpec("_Rest")


def asks_mesh(command: Callable[Concatenate[AskedMesh, _Rest], None]) -> Callable[..., None]:
    """Give a command the options that say which mesh it asks, after its own; it gets them as its first argument.

    Typer reads a command's options from its signature, so that is what is put together here.
    """
    options = inspect.signature(_mesh_options, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    shown = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own.values()][1:]

    carry_out: Callable[..., None] = command

    @functools.wraps(command)
    def run(**given: Any) -> None:
        mesh = _mesh_options(**{name: given.pop(name) for name in options})
        carry_out(mesh, **given)

    parameters = [*shown, *options.values()]
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


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


Metric = Annotated[
    list[str] | None,
    typer.Option(
        help="How good it was found to be, such as accuracy=0.97; repeatable.",
        metavar="NAME=NUMBER",
    ),
]
Note = Annotated[str, typer.Option(help="What is to be known of it.", show_default=False)]


def asked_region(option: str, region: str | None) -> str:
    """Return the region that an option asks for, empty where it was not given.

    Raises:
        ConfigError: if it was given empty, as by a script whose variable is not set: a rule is not ignored.
    """
    if region is not None and not region.strip():
        raise ConfigError(f"{option} is empty; name a region, or leave it out")
    return region or ""


def check_note(note: str) -> None:
    """Check what `--note` says.

    Raises:
        ConfigError: if it is too long.
    """
    if len(note) > MAX_NOTE_LENGTH:
        raise ConfigError(f"--note has {len(note)} characters; it may have {MAX_NOTE_LENGTH}")


def parse_metrics(texts: Sequence[str]) -> dict[str, float]:
    """Return the metrics that `--metric` gives.

    Raises:
        ConfigError: if one is not NAME=NUMBER.
    """
    metrics: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            metrics[name.strip()] = float(number)
        except ValueError:
            metrics[name.strip()] = math.nan
        if not name.strip() or not math.isfinite(metrics[name.strip()]):
            raise ConfigError(f"--metric {text!r} is not NAME=NUMBER, such as accuracy=0.97")
    return metrics


def parse_variant(text: str) -> tuple[str, str]:
    """Return name and path of a `--variant`."""
    name, equals, place = text.partition("=")
    if not name or not equals or not place:
        raise ConfigError(
            f"--variant {text!r} is not NAME=PATH; for example: --variant int8=small.onnx"
        )
    return name, place
