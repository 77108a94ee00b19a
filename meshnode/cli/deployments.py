"""`meshnode deployments`, `get`, `history`, `rollback`, `pause`, `resume`, `env` and `delete`."""

from typing import Annotated, Any

import msgspec
import typer

from meshnode.cli.apply import Force, NoWait, Timeout, print_edit
from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh, unknown_model
from meshnode.cli.deploy_display import Display
from meshnode.cli.output import plain, print_json, print_table
from meshnode.client.calls import deployment_path
from meshnode.client.deployment_results import DeploymentEdit
from meshnode.client.mesh import MeshClient
from meshnode.client.results import DeploymentInfo
from meshnode.deployment_file import spec_of
from meshnode.deployment_writing import write_toml
from meshnode.errors import ConfigError, ModelNotFound
from meshnode.options import parse_duration

Name = Annotated[str, typer.Argument(metavar="NAME", help="Public name of the deployment.")]
Revision = Annotated[
    str,
    typer.Option(
        metavar="REVISION",
        help="As it was in this revision: its id, or the beginning of it.",
        show_default="the one that counts",
    ),
]


@asks_mesh
def deployments(mesh: AskedMesh, json: AsJson = False) -> None:
    """List what the mesh is to serve, and how that stands."""
    with mesh.client() as client:
        found = client.deployments()
    if json:
        print_json(msgspec.to_builtins(found))
        return
    columns = ("NAME", "STATUS", "VERSION", "REPLICAS", "URL", "ID", "REASON")
    rows = [
        (
            each.name,
            each.status,
            _versions(each),
            f"{each.ready}/{each.wanted}",
            next(iter(each.urls), None),
            each.id,
            each.reason,
        )
        for each in found
    ]
    empty = "Nothing is deployed; deploy a model with: meshnode apply FILE, or meshnode deploy PATH"
    print_table(columns, rows, empty=empty, droppable=("ID", "URL", "VERSION"))


@asks_mesh
def get(
    mesh: AskedMesh,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its public name, or its id.")],
    revision: Revision = "",
    toml: Annotated[
        bool,
        typer.Option("--toml", help="Print the definition alone, as `meshnode apply` takes it."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Show a deployment: its definition, where it is, and how it stands."""
    if toml and json:
        raise ConfigError("--toml and --json are two ways to print it: give one of them")
    with mesh.client() as client:
        try:
            found = client.deployment_of(name, revision=revision)
        except ModelNotFound as error:
            raise unknown_model(client, name, error) from None
    if json:
        print_json(msgspec.to_builtins(found))
    elif toml:
        typer.echo(_toml(found), nl=False)
    else:
        rows = [
            ("name", found.name),
            ("id", found.id),
            ("status", found.status),
            ("reason", found.reason),
            ("urls", ", ".join(found.urls)),
            ("placed on", ", ".join(found.placed)),
            ("replicas", f"{found.ready} ready of {found.wanted} wanted"),
            *_scaling(found),
            *_release(found),
            ("revision", found.revision),
            ("changed at", found.changed_at),
            ("changed by", found.changed_by),
        ]
        print_table(("DEPLOYMENT", ""), [row for row in rows if row[1]], empty="")
        typer.echo(f"\n{_definition(found)}", nl=False)


def _scaling(found: DeploymentInfo) -> list[tuple[str, str]]:
    """Return who decides how many replicas there are, and why; nothing where their number is fixed."""
    if found.scaling is None:
        return []
    steward = found.scaling.steward or "none yet"
    return [
        ("steward", f"{steward}, epoch {found.scaling.epoch}"),
        ("why so many", found.scaling.why),
        ("decided at", found.scaling.decided_at or ""),
    ]


def _release(found: DeploymentInfo) -> list[tuple[str, str]]:
    """Return how its release stands, or came out; nothing without one."""
    release = found.release
    if release is None:
        return []
    state = (release.outcome or release.phase).replace("_", " ")
    place = f", step {release.step} of {release.steps}" if 0 < release.step <= release.steps else ""
    why = f": {release.reason}" if release.reason else ""
    said = (
        f"{release.strategy}, version {release.baseline} → {release.candidate}, {state}{place}{why}"
    )
    return [("release", f"{said}; version {release.serving} serves" if release.outcome else said)]


def _toml(found: DeploymentInfo) -> str:
    """Return a definition as a file, with where it is from."""
    return (
        f"# {found.name}, revision {found.revision}, of {found.changed_at}\n"
        "# To have `meshnode apply` refuse to override what others change meanwhile, write:\n"
        f'# revision = "{found.revision}"\n'
        f"{_definition(found)}"
    )


def _definition(found: DeploymentInfo) -> str:
    return write_toml([spec_of(found.definition)])


@asks_mesh
def history(mesh: AskedMesh, name: Name, json: AsJson = False) -> None:
    """List the revisions of a deployment, newest first: when, by whom, and what changed."""
    with mesh.client() as client:
        found = client.deployment_history(name)
    if json:
        print_json(msgspec.to_builtins(found))
        return
    rows = [
        (
            f"{each.id} *" if each.counts else each.id,
            each.at,
            each.by,
            f"{each.summary} (overwritten unseen by {each.overwritten_by})"
            if each.overwritten_by
            else each.summary,
        )
        for each in found
    ]
    print_table(("REVISION", "AT", "BY", "CHANGE"), rows, empty="")


@asks_mesh
def rollback(
    mesh: AskedMesh,
    name: Name,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="REVISION",
            help="The revision to restore: its id, or the beginning of it.",
            show_default="the last that asked for something else",
        ),
    ] = "",
    force: Force = False,
    no_wait: NoWait = False,
    timeout: Timeout = "120s",
    json: AsJson = False,
) -> None:
    """Restore an earlier revision of a deployment, also of one that was deleted."""
    timeout_s = parse_duration("--timeout", timeout)
    with mesh.client() as client:
        base = None if force else client.deployment_history(name)[0].id
        edit = client.rollback(name, to=to, revision=base, timeout_s=max(60.0, timeout_s))
        edit = _settled(client, edit, None if no_wait else timeout_s)
    _print(edit, json=json)


@asks_mesh
def pause(mesh: AskedMesh, name: Name, json: AsJson = False) -> None:
    """Let a deployment serve nothing, and keep its definition; `meshnode resume` goes on."""
    with mesh.client() as client:
        edit = client.pause(name)
    _print(edit, json=json)


@asks_mesh
def resume(
    mesh: AskedMesh,
    name: Name,
    no_wait: NoWait = False,
    timeout: Timeout = "120s",
    json: AsJson = False,
) -> None:
    """Serve a deployment again that was paused."""
    timeout_s = parse_duration("--timeout", timeout)
    with mesh.client() as client:
        edit = _settled(client, client.resume(name), None if no_wait else timeout_s)
    _print(edit, json=json)


@asks_mesh
def env(
    mesh: AskedMesh,
    name: Name,
    variables: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE|KEY-]...",
            help="KEY=VALUE sets a variable, KEY- takes it away; without any they are listed.",
        ),
    ] = None,
    no_wait: NoWait = False,
    timeout: Timeout = "120s",
    json: AsJson = False,
) -> None:
    """Show or change the variables of a deployment's code; its replicas are loaded anew where they change."""
    timeout_s = parse_duration("--timeout", timeout)
    wanted = dict(map(_variable, variables or ()))
    with mesh.client() as client:
        if not wanted:
            _print_env(client.deployment_of(name), json=json)
            return
        edit = client.set_env(name, wanted)
        edit = _settled(client, edit, None if no_wait else timeout_s)
    _print(edit, json=json)


def _variable(text: str) -> tuple[str, str | None]:
    key, equals, value = text.partition("=")
    if equals and key:
        return key, value
    if text.endswith("-") and len(text) > 1:
        return text[:-1], None
    raise ConfigError(f"{text!r} is neither KEY=VALUE nor KEY-, such as MODE=fast or MODE-")


def _print_env(found: DeploymentInfo, *, json: bool) -> None:
    variables: dict[str, Any] = found.definition.get("env", {})
    if json:
        print_json(variables)
        return
    for key, value in variables.items():
        typer.echo(f"{plain(key)}={plain(value)}")


@asks_mesh
def delete(mesh: AskedMesh, name: Name, force: Force = False, json: AsJson = False) -> None:
    """Stop serving a deployment everywhere; its history stays, and `meshnode rollback` restores it."""
    with mesh.client() as client:
        try:
            base = "" if force else client.deployment_of(name).revision
            query = f"?revision={base}" if base else ""
            answer = client.delete(deployment_path(name) + query)
        except ModelNotFound as error:
            raise unknown_model(client, name, error) from None
    if json:
        print_json(answer)
    else:
        typer.echo(
            f"{plain(name)} is no longer deployed; to restore it: meshnode rollback {plain(name)}"
        )


def _settled(client: MeshClient, edit: DeploymentEdit, wait_s: float | None) -> DeploymentEdit:
    """Wait until a changed deployment has its replicas, unless it is paused or nobody waits."""
    if wait_s is None or edit.model is None or not client.deployment_of(edit.name).enabled:
        return edit
    with Display() as display:
        return client.run(client.readiness(edit, wait_s, display.show))


def _print(edit: DeploymentEdit, *, json: bool) -> None:
    if json:
        print_json(msgspec.to_builtins(edit))
    else:
        print_edit(edit)


def _versions(found: DeploymentInfo) -> str:
    return ", ".join(dict.fromkeys(str(each.version) for each in found.versions))
