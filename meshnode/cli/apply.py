"""`meshnode apply` and `diff`: let the mesh serve what a file says, and see what that would change."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer

from meshnode.cli.arguments import AsJson, AskedMesh, asks_mesh
from meshnode.cli.deploy import copies_folder
from meshnode.cli.deploy_display import Display
from meshnode.cli.output import plain, print_json, print_notes
from meshnode.client.deployment_results import DeploymentChange, DeploymentEdit
from meshnode.client.orders import FORMATS, Orders
from meshnode.errors import ConfigError, MeshError
from meshnode.limits import MAX_DEPLOYMENT_FILE_BYTES
from meshnode.options import parse_duration

_STDIN: Final = "-"
_DIFFERENT: Final = 1
"""Exit code of `diff` where something differs, as that of diff(1)."""

_TROUBLE: Final = 2
"""Exit code of `diff` where that could not be found out."""

_TOML_LINE: Final = re.compile(r"\s*(?:\[|[A-Za-z0-9_.\"-]+\s*=)")

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...", help="TOML (.toml) or YAML (.yaml, .yml); - for standard input."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Override what others have changed since it was made.")
]
NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Do not wait until the replicas are ready.")
]
Timeout = Annotated[str, typer.Option(help="How long to wait.", metavar="DURATION")]


@asks_mesh
def apply(
    mesh: AskedMesh,
    files: Files,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would change.")
    ] = False,
    force: Force = False,
    no_wait: NoWait = False,
    timeout: Timeout = "120s",
    json: AsJson = False,
) -> None:
    """Serve what deployment files say, and change nothing that is so already."""
    timeout_s = parse_duration("--timeout", timeout)
    orders = _orders(files)
    wait_s = None if no_wait or dry_run else timeout_s
    with mesh.client() as client, Display() as display:
        edits = client.run(
            client.application(
                orders,
                wait_s,
                display.show,
                dry_run=dry_run,
                force=force,
                retry=force,
                copies=copies_folder(mesh.data_dir),
            )
        )
    if json:
        print_json(msgspec.to_builtins(edits))
        return
    for edit in edits:
        print_edit(edit, dry_run=dry_run)


@asks_mesh
def diff(
    mesh: AskedMesh,
    subject: Annotated[
        str,
        typer.Argument(metavar="FILE|NAME", help="A deployment file, or the name of a deployment."),
    ],
    before: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="Of a deployment: since this revision.",
            show_default="the one before",
        ),
    ] = "",
    after: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="REVISION",
            help="Of a deployment: up to this revision.",
            show_default="the one that counts",
        ),
    ] = "",
    json: AsJson = False,
) -> None:
    """Show what a file would change, or what changed from one revision to another.

    The exit code is 0 if nothing differs, 1 if something does, and 2 if that could not be found out.
    """
    try:
        if _is_file(subject):
            if before or after:
                raise ConfigError(
                    "--from and --to go with the name of a deployment, not with a file"
                )
            is_same = _diff_file(mesh, subject, json=json)
        else:
            is_same = _diff_revisions(mesh, subject, before, after, json=json)
    except MeshError as error:
        vars(error)["exit_code"] = _TROUBLE  # 1 says that something differs
        raise
    if not is_same:
        raise typer.Exit(_DIFFERENT)


def _diff_file(mesh: AskedMesh, file: str, *, json: bool) -> bool:
    orders = _orders([file])
    with mesh.client() as client, Display() as display:
        folder = copies_folder(mesh.data_dir)
        edits = client.run(
            client.application(orders, None, display.show, dry_run=True, force=True, copies=folder)
        )
    if json:
        print_json(msgspec.to_builtins(edits))
    else:
        for edit in edits:
            print_edit(edit, dry_run=True)
    return not any(edit.changed for edit in edits)


def _diff_revisions(mesh: AskedMesh, name: str, before: str, after: str, *, json: bool) -> bool:
    with mesh.client() as client:
        found = client.deployment_diff(name, before=before, after=after)
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        typer.echo(
            f"{plain(found.name)}: from {plain(found.before or 'nothing')} to {plain(found.after)}"
        )
        print_changes(found.changes)
    return not found.changes


def print_edit(edit: DeploymentEdit, *, dry_run: bool = False) -> None:
    """Print what came of a change, or would."""
    print_notes({"warnings": edit.warnings})
    name = plain(edit.name)
    if not edit.changed:
        typer.echo(f"{name}: nothing changes")
        return
    would = "would be" if dry_run else "is"
    what = "new" if edit.is_new else "changed"
    named = f", id {plain(edit.id)}" if edit.id else ""
    typer.echo(
        f"{name}: {would} {what}" + ("" if dry_run else f"{named}, revision {plain(edit.revision)}")
    )
    print_changes(edit.changes)


def print_changes(changes: Sequence[DeploymentChange]) -> None:
    """Print changes, one on a line."""
    for change in changes:
        typer.echo(f"  {plain(change.key)}: {_shown(change.before)} → {_shown(change.after)}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return plain(value if isinstance(value, str) else msgspec.json.encode(value).decode())


def _is_file(subject: str) -> bool:
    return subject == _STDIN or Path(subject).suffix.lower() in FORMATS


def _orders(files: Sequence[str]) -> Orders:
    """Return what files say, with all their mistakes."""
    orders = Orders()
    if files.count(_STDIN) > 1:
        raise ConfigError("standard input can be read once: give - once")
    for file in files:
        if file != _STDIN:
            orders.add_file(Path(file))
            continue
        content = sys.stdin.buffer.read(MAX_DEPLOYMENT_FILE_BYTES + 1)
        try:
            text = content.decode()
        except UnicodeDecodeError:
            orders.told.append("standard input: it is not text in UTF-8")
            continue
        lines = (
            line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")
        )
        is_toml = bool(_TOML_LINE.match(next(lines, "")))
        orders.add_text(text, "toml" if is_toml else "yaml", "standard input", Path.cwd())
    return orders
