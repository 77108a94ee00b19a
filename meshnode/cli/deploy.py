"""`meshnode deploy` and `undeploy`: ask for a model on the mesh, and watch it come up."""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Final, Self

import typer

from meshnode.cli.arguments import (
    AsJson,
    CaFile,
    DataDir,
    Gateway,
    KeyFile,
    client_of,
    no_node,
    unknown_model,
)
from meshnode.cli.inspect import print_models
from meshnode.cli.output import plain, print_json, terminal
from meshnode.client.calls import deployment_path
from meshnode.client.deploying import Wish
from meshnode.client.mesh import MeshClient
from meshnode.client.results import DeployProgress
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.options import parse_duration

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.status import Status

_LINE_INTERVAL_S: Final = 5.0
"""Between lines about an upload where there is no terminal: a log stays short."""


def deploy(
    path: Annotated[
        str, typer.Argument(help="A model folder (DIR/1/model.onnx) or a bare .onnx file.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Public name of the model.", show_default="the folder's or file's"),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many nodes shall serve it.",
            show_default="1, or the number of --on",
        ),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="A node that shall serve it, by name or id; repeatable.", metavar="NODE"),
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until the replicas are ready.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="How long to wait.", metavar="DURATION")] = "120s",
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """Serve a model on the mesh: its files travel to the nodes that will serve it."""
    timeout_s = parse_duration("--timeout", timeout)
    if not Path(path).expanduser().exists():
        raise ConfigError(f"{path!r} does not exist; name a model folder or an .onnx file")
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        nodes = _check_nodes(client, on or [])
        wanted = replicas or len(nodes) or 1
        if nodes and wanted > len(nodes):
            raise ConfigError(f"{wanted} replicas do not fit on the {len(nodes)} nodes of --on")
        wish = Wish(path, name, wanted, nodes)
        with _Display() as display:
            entry = client.run(
                client.deployment(wish, None if no_wait else timeout_s, display.show)
            )
    if json:
        print_json(entry)
    else:
        print_models([entry])


def undeploy(
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    json: AsJson = False,
    gateway: Gateway = None,
    key_file: KeyFile = None,
    ca_file: CaFile = None,
    data_dir: DataDir = None,
) -> None:
    """Stop serving a model everywhere."""
    with client_of(data_dir, gateway, key_file, ca_file) as client:
        try:
            answer = client.delete(deployment_path(name))
        except ModelNotFound as error:
            raise unknown_model(client, name, error) from None
    if json:
        print_json(answer if answer is not None else {"name": name})
    else:
        typer.echo(f"{plain(name)} is no longer deployed.")


def _check_nodes(client: MeshClient, wanted: Sequence[str]) -> list[str]:
    """Return the ids of the nodes that `--on` names, each once, in the order given."""
    if not wanted:
        return []
    nodes = client.get("/mesh/v1/nodes")
    ids: dict[str, None] = {}
    for text in wanted:
        found = [node for node in nodes if text in (node["id"], node["name"])]
        alive = [node for node in found if node["state"] in ("alive", "suspect")]
        if not found:
            known = [str(node["name"]) for node in nodes]
            raise no_node(text, known)
        if not alive:
            raise ConfigError(f"node {text!r} is {found[0]['state']}; name one that is alive")
        if len(alive) > 1:
            choices = ", ".join(str(node["id"]) for node in alive)
            raise ConfigError(f"several nodes are called {text!r}; name one by its id: {choices}")
        ids[str(alive[0]["id"])] = None
    return list(ids)


class _Display:
    """Shows on stderr how far a deployment is: a bar and a spinner on a terminal, else lines."""

    def __init__(self) -> None:
        self._console = terminal(stderr=True)
        self._bar: Progress | None = None
        self._spinner: Status | None = None
        self._said_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""
        self._clear()

    def show(self, progress: DeployProgress) -> None:
        """Show the newest state."""
        if not self._console.is_terminal:
            self._say(progress)
        elif progress.stage == "uploading":
            self._draw(progress)
        else:
            if self._spinner is None:
                self._clear()
                self._spinner = self._console.status("")
                self._spinner.start()
            self._spinner.update(plain(progress.text))

    def _say(self, progress: DeployProgress) -> None:
        now = time.monotonic()
        if progress.stage == "uploading":
            if now - self._said_s < _LINE_INTERVAL_S and progress.sent_bytes < progress.total_bytes:
                return
            self._said_s = now
        typer.echo(plain(progress.text), err=True)

    def _draw(self, progress: DeployProgress) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

        if self._bar is None:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.add_task("", total=progress.total_bytes)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=progress.sent_bytes)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._spinner is not None:
            self._spinner.stop()
        self._bar = self._spinner = None
