"""`meshnode deploy` and `undeploy`: ask for a model on the mesh, and watch it come up."""

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, DataDir, client_of, did_you_mean
from meshnode.cli.inspect import print_models
from meshnode.cli.output import plain, print_json, terminal
from meshnode.client.api import ControlClient, deployment_path, mesh_model_path
from meshnode.errors import ConfigError, DeadlineExceeded, ModelNotFound, PeerError
from meshnode.options import parse_duration

POLL_INTERVAL_S = 0.2
"""Between looks at a deployment: below what a person notices, and cheap for the daemon."""


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
    data_dir: DataDir = None,
) -> None:
    """Serve a model on the mesh: its files travel to the nodes that will serve it."""
    deadline = time.monotonic() + parse_duration("--timeout", timeout)
    place = Path(path).expanduser().absolute()
    if not place.exists():
        raise ConfigError(f"{path!r} does not exist; name a model folder or an .onnx file")
    client = client_of(data_dir)
    nodes = _check_nodes(client, on or [])
    wanted = replicas or len(nodes) or 1
    if nodes and wanted > len(nodes):
        raise ConfigError(f"{wanted} replicas do not fit on the {len(nodes)} nodes of --on")
    request = {"path": str(place), "name": name, "replicas": wanted, "on": nodes}
    # The daemon hashes all files before it answers, which takes a while for a large model.
    remaining_s = deadline - time.monotonic()
    entry = client.post("/mesh/v1/deployments", request, timeout_s=max(remaining_s, 1.0))
    if not no_wait:
        entry = _wait(client, entry, wanted, deadline, timeout)
    if json:
        print_json(entry)
    else:
        print_models([entry])


def undeploy(
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    json: AsJson = False,
    data_dir: DataDir = None,
) -> None:
    """Stop serving a model everywhere."""
    client = client_of(data_dir)
    try:
        answer = client.delete(deployment_path(name))
    except ModelNotFound as error:
        raise unknown_model(client, name, error) from None
    if json:
        print_json(answer if answer is not None else {"name": name})
    else:
        typer.echo(f"{plain(name)} is no longer deployed.")


def unknown_model(client: ControlClient, name: str, error: ModelNotFound) -> ModelNotFound:
    """Return the daemon's error with the nearest model's name added, where there is one."""
    known = [str(entry["name"]) for entry in client.get("/mesh/v1/models")]
    return error if name in known else ModelNotFound(f"{error}{did_you_mean(name, known)}")


def _check_nodes(client: ControlClient, wanted: list[str]) -> list[str]:
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
            raise ConfigError(f"no node is called {text!r}{did_you_mean(text, known)}")
        if not alive:
            raise ConfigError(f"node {text!r} is {found[0]['state']}; name one that is alive")
        if len(alive) > 1:
            choices = ", ".join(str(node["id"]) for node in alive)
            raise ConfigError(f"several nodes are called {text!r}; name one by its id: {choices}")
        ids[str(alive[0]["id"])] = None
    return list(ids)


@dataclass(frozen=True, slots=True)
class _Progress:
    """How far a deployment is.

    Attributes:
        ready: Replicas that serve the deployed version.
        wanted: How many shall.
        others: `node: state` of each replica that does not serve it yet, and how many replicas
            no node can take.
        failed: Why the first failed replica failed, or None.
    """

    ready: int
    wanted: int
    others: tuple[str, ...]
    failed: str | None

    def __str__(self) -> str:
        return "; ".join([f"{self.ready} of {self.wanted} replicas ready", *self.others])


def _progress(entry: Mapping[str, Any], versions: Collection[int], wanted: int) -> _Progress:
    """Read a model's entry; replicas of other versions, or with other files, do not count."""
    replicas = [it for it in entry["replicas"] if it["version"] in versions and it["current"]]
    failed = [it for it in replicas if it["state"] == "failed"]
    others = [f"{it['node']}: {it['state']}" for it in replicas if it["state"] != "ready"]
    missing = entry.get("missing", 0)
    if missing:
        reasons = [f"{it['node']}: {it['reason']}" for it in entry.get("ineligible", ())]
        others.append(f"no node can take {missing} more ({', '.join(reasons) or 'none is left'})")
    first = failed[0] if failed else None
    return _Progress(
        ready=sum(1 for it in replicas if it["state"] == "ready"),
        wanted=wanted,
        others=tuple(others),
        failed=first and f"{first['node']}: {first.get('reason') or 'no reason given'}",
    )


def _wait(
    client: ControlClient, entry: Any, wanted: int, deadline: float, timeout: str
) -> dict[str, Any]:
    """Poll until each deployed version has its replicas; shows each change on stderr."""
    name = str(entry["name"])
    versions = entry["deployed"]
    with ExitStack() as stack:
        console = terminal(stderr=True)
        spinner = (
            stack.enter_context(console.status(f"{plain(name)}: asked for"))
            if console.is_terminal
            else None
        )
        shown = ""
        while True:
            progress = _progress(entry, versions, (entry.get("wanted") or wanted) * len(versions))
            text = f"{plain(name)}: {plain(progress)}"
            if spinner is not None:
                spinner.update(text)
            elif text != shown:
                typer.echo(text, err=True)
                shown = text
            if progress.failed is not None:
                raise PeerError(f"{name} failed on {progress.failed}")
            if progress.ready >= progress.wanted:
                return dict(entry)
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(
                    f"{name} is not ready after {timeout} ({progress}); it goes on in the "
                    "background, see: meshnode models"
                )
            time.sleep(POLL_INTERVAL_S)
            entry = _look(client, name, entry["revision"])


def _look(client: ControlClient, name: str, revision: str) -> Any:
    """Return the model's entry; the daemon that took the deployment has it at once.

    Raises:
        PeerError: if it was withdrawn or replaced meanwhile.
    """
    try:
        entry = client.get(mesh_model_path(name))
    except ModelNotFound:
        entry = {}
    if "revision" not in entry:
        raise PeerError(f"{name} was undeployed before it was ready")
    if entry["revision"] != revision:
        raise PeerError(f"{name} was deployed again before it was ready; the later one counts")
    return entry
