"""`meshnode deploy` and `undeploy`: ask for a model on the mesh, and watch it come up."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.cli.arguments import (
    AsJson,
    AskedMesh,
    Metric,
    Note,
    asks_mesh,
    check_note,
    no_node,
    parse_metrics,
    parse_variant,
    unknown_model,
)
from meshnode.cli.deploy_display import Display
from meshnode.cli.inspect import print_models
from meshnode.cli.output import plain, print_json, print_notes
from meshnode.cli.settings import data_folder
from meshnode.client.applying import MODEL_FILES
from meshnode.client.calls import deployment_path
from meshnode.client.deploying import Wish
from meshnode.client.mesh import MeshClient
from meshnode.client.publishing import ARTIFACTS_PATH
from meshnode.client.sources import COPIES_FOLDER
from meshnode.deployment_file import read_autoscaling, release_plan
from meshnode.errors import ConfigError, InvalidRequest, ModelError, ModelNotFound
from meshnode.limits import MAX_VERSION
from meshnode.models.exposure import exposed_path
from meshnode.models.manifest import check_model_name
from meshnode.models.repository.source_urls import is_url
from meshnode.options import parse_duration
from meshnode.state.scaling import TARGETS


@asks_mesh
def deploy(
    mesh: AskedMesh,
    path: Annotated[
        str,
        typer.Argument(
            help="A model folder (DIR/1/model.onnx), a bare model file, the URL of one, or the name of "
            "what was published."
        ),
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
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="A further form of the model, such as int8=PATH; each node takes the form that "
            "suits it; repeatable.",
            metavar="NAME=PATH",
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_VERSION,
            help="Of what was published under the name: this version.",
            show_default="the newest",
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Deploy what was published under the name, though something here is called so too.",
        ),
    ] = False,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--path",
            help="A path under which the gateways offer it too, such as /count-cars; empty for none.",
            metavar="/PATH",
            show_default="the configuration's",
        ),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="What it does for clients that know only tasks: chat, completion or embedding, with "
            ":input=NAME,output=NAME,... where that is not clear; empty for none; repeatable.",
            metavar="TASK",
            show_default="the configuration's",
        ),
    ] = None,
    cache: Annotated[
        bool | None,
        typer.Option(
            "--cache/--no-cache",
            help="Whether answers are kept and given again for equal requests.",
            show_default="the configuration's",
        ),
    ] = None,
    least: Annotated[
        int | None,
        typer.Option(
            "--min",
            min=0,
            help="Autoscaling: the fewest replicas; at 0 the model sleeps while nobody asks. Goes with --max.",
            show_default="1",
        ),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            "--max",
            min=1,
            help="Autoscaling: the most replicas; their number then follows --target.",
            show_default="no autoscaling",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Autoscaling: what the number follows, such as concurrency=2 or qps=30; repeatable "
            "(docs/autoscaling.md).",
            metavar="NAME=NUMBER",
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="How it takes the place of the version that serves now: canary, blue_green, shadow or ab "
            "(docs/releases.md).",
            metavar="NAME",
            show_default="directly",
        ),
    ] = "",
    steps: Annotated[
        str,
        typer.Option(
            help="Of canary: the percents of the requests that it gets, one after the other.",
            metavar="PERCENT,...",
            show_default="5,20,50",
        ),
    ] = "",
    metric: Metric = None,
    note: Note = "",
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until the replicas are ready.")
    ] = False,
    timeout: Annotated[str, typer.Option(help="How long to wait.", metavar="DURATION")] = "120s",
    json: AsJson = False,
) -> None:
    """Serve a model on the mesh: its files travel to the nodes that will serve it."""
    timeout_s = parse_duration("--timeout", timeout)
    metrics = parse_metrics(metric or [])
    variants = [parse_variant(text) for text in variant or []]
    check_note(note)
    autoscaling = autoscaling_of(least, most, target or [])
    release = release_of(strategy, steps)
    if endpoint:
        check_path(endpoint)
    is_artifact = published or _is_artifact(path)
    if published:
        check_model_name(path)
    if is_artifact and (name or variants or metrics or note):
        raise ConfigError(
            f"{path!r} names what was published, and is no path of this machine that was meant: it is "
            "deployed as it was published, without --name, --variant, --metric and --note"
        )
    if version is not None and not is_artifact:
        raise ConfigError("--version goes with the name of what was published, not with a path")
    for each in (path, *(place for _, place in variants)):
        if not is_artifact and not is_url(each) and not Path(each).expanduser().exists():
            raise ConfigError(
                f"{each!r} does not exist; name a model folder, a model file or a URL"
            )
    with mesh.client() as client:
        nodes = _check_nodes(client, on or [])
        if not is_artifact:
            _tell_published(client, path, name)
        begin = len(nodes) if autoscaling is None else least or 1
        wanted = replicas or max(1, begin)
        if nodes and wanted > len(nodes):
            raise ConfigError(f"{wanted} replicas do not fit on the {len(nodes)} nodes of --on")
        wish = Wish(
            path,
            name,
            wanted,
            nodes,
            copies_folder(mesh.data_dir) if is_url(path) else "",
            metrics=metrics,
            note=note,
            artifact=is_artifact,
            version=version,
            endpoint=endpoint,
            tasks=None if task is None else [text for text in task if text],
            cache=cache,
            autoscaling=autoscaling,
            release=release,
        )
        wait_s = None if no_wait else timeout_s
        with Display() as display:
            # The replicas are waited for once all forms are there: each node then has its choice.
            entry = client.run(client.deployment(wish, None if variants else wait_s, display.show))
            print_notes(entry)
            for number, (form, place) in enumerate(variants, 1):
                copies = copies_folder(mesh.data_dir) if is_url(place) else ""
                further = Wish(place, entry["name"], wanted, nodes, copies, form)
                last = number == len(variants)
                entry = client.run(
                    client.deployment(further, wait_s if last else None, display.show)
                )
    if json:
        print_json(entry)
    else:
        print_models([entry])


def autoscaling_of(
    least: int | None, most: int | None, targets: Sequence[str]
) -> dict[str, float] | None:
    """Return the table `autoscaling` of what the options say; None if they say nothing of it.

    Raises:
        ConfigError: if they do not fit together.
    """
    if most is None:
        if least is not None or targets:
            raise ConfigError(
                "--min and --target go with --max, the most replicas that there may be"
            )
        return None
    table: dict[str, float] = {"max": most} if least is None else {"min": least, "max": most}
    for text in targets:
        name, _, number = text.partition("=")
        if name not in TARGETS:
            raise ConfigError(
                f"--target {text!r}: write NAME=NUMBER with one of {', '.join(TARGETS)}"
            )
        try:
            table[name] = float(number)
        except ValueError:
            raise ConfigError(f"--target {text!r}: write NAME=NUMBER, such as {name}=2") from None
    try:
        read_autoscaling(table)
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    return table


def release_of(strategy: str, steps: str) -> dict[str, Any] | None:
    """Return the table `release` of what the options say; None if they say nothing of it.

    Raises:
        ConfigError: if they do not fit together.
    """
    if not strategy:
        if steps:
            raise ConfigError("--steps goes with --strategy canary")
        return None
    table: dict[str, Any] = {"strategy": strategy}
    if steps:
        try:
            table["steps"] = [float(each) for each in steps.split(",")]
        except ValueError:
            raise ConfigError(f"--steps {steps!r}: write percents, such as 5,20,50") from None
    try:
        release_plan(table)
    except InvalidRequest as error:
        raise ConfigError(str(error)) from None
    return table


def check_path(text: str) -> None:
    """Check what `--path` says.

    Raises:
        ConfigError: if no model can be offered there.
    """
    try:
        exposed_path(text)
    except ModelError as error:
        raise ConfigError(f"--path: {error}") from None


@asks_mesh
def undeploy(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(help="Public name of the model.")],
    json: AsJson = False,
) -> None:
    """Stop serving a model everywhere."""
    with mesh.client() as client:
        try:
            client.delete(deployment_path(name))
        except ModelNotFound as error:
            raise unknown_model(client, name, error) from None
    if json:
        print_json({"name": name})
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


def _tell_published(client: MeshClient, path: str, name: str | None) -> None:
    """Say that a path is deployed, where something published is called so too."""
    if name is not None or is_url(path) or not _is_name(path):
        return
    found = client.get(ARTIFACTS_PATH)
    if any(each["published"] and each["name"] == path for each in found):
        typer.echo(
            f"note: {path!r} here is deployed, not what was published under that name; for that: meshnode "
            f"deploy {path} --published",
            err=True,
        )


def _is_artifact(path: str) -> bool:
    """Whether this is the name of something published: a plain name, and no path here."""
    if is_url(path) or Path(path).expanduser().exists() or Path(path).suffix in MODEL_FILES:
        return False
    return _is_name(path)


def _is_name(path: str) -> bool:
    """Whether a model could be called so."""
    try:
        check_model_name(path)
    except ModelError:
        return False
    return True


def copies_folder(data_dir: str | None) -> str:
    """Return where what a URL names is kept; empty where this user cannot write there."""
    folder = Path(data_folder(data_dir))
    can_write = folder.is_dir() and os.access(folder, os.W_OK)
    return str(folder / COPIES_FOLDER) if can_write else ""
