"""`meshnode config`: what this node's settings are, where they are from, and what is wrong with them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.output import print_error, print_json, print_table
from meshnode.cli.settings import ConfigFile, EnvFile, load_settings
from meshnode.errors import MeshError
from meshnode.folderlock import holder

if TYPE_CHECKING:
    from meshnode.settings.layers import Fault, Setting, Settings
    from meshnode.settings.load import Loaded

_EXIT_FAULTS = 2
_ANSWER_S = 2.0  # a status is answered from the daemon's own tables

app = typer.Typer(name="config", help="Show and check this node's settings.", no_args_is_help=True)


@app.command()
def show(
    json: AsJson = False,
    limits: Annotated[
        bool, typer.Option("--limits", help="Show the fixed limits with their reasons instead.")
    ] = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    env_file: EnvFile = None,
) -> None:
    """Show every setting, its value, and where it is from, as `meshnode join` would take them.

    It reads the same variables and files as `meshnode join`, and needs no running daemon. Values
    of membership are shown where they differ from the profile's; --json shows all.
    """
    if limits:
        _show_limits(json)
        return
    loaded = load_settings({}, data_dir=data_dir, config=config, env_file=env_file)
    settings = loaded.settings
    if json:
        print_json(
            {
                "data_dir": _data_dir(loaded),
                "files": list(loaded.files),
                "settings": [_document(each) for each in settings.by_key.values()],
                "faults": [_fault(each) for each in settings.faults],
            }
        )
    else:
        rows = [
            ["data_dir", str(loaded.data_dir), _data_dir(loaded)["from"]],
            *([each.field.key, each.text, _origin(each)] for each in _shown(settings)),
        ]
        print_table(["SETTING", "VALUE", "FROM"], rows, empty="")
        _tell_of_other_files(loaded)
    _end(settings.faults, quiet=json)


@app.command()
def check(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A TOML file; else all that join reads.")
    ] = None,
    json: AsJson = False,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    env_file: EnvFile = None,
) -> None:
    """Find every fault in this node's settings; exits with 2 if there is one.

    With FILE, only that TOML file is checked.
    """
    if file is not None:
        from meshnode.settings.load import check_file
        from meshnode.settings.machine import on_this_machine

        settings, files = on_this_machine(check_file(file)), (str(file),)
    else:
        loaded = load_settings({}, data_dir=data_dir, config=config, env_file=env_file)
        settings, files = loaded.settings, loaded.files
    faults = settings.faults
    if json:
        print_json({"files": list(files), "faults": [_fault(each) for each in faults]})
    elif not faults:
        read = ", ".join(files) or "no files, only the environment"
        typer.echo(f"No faults ({read}).")
    _end(faults, quiet=json)


@app.command()
def example() -> None:
    """Print a config.toml that explains every setting and chooses none."""
    from meshnode.settings.document import example as text

    typer.echo(text(), nl=False)


def _tell_of_other_files(loaded: "Loaded") -> None:
    """Say where the daemon that runs has other settings than a start from here would have."""
    from meshnode.client.mesh import MeshClient

    try:
        if holder(loaded.data_dir) is None:
            return
        with MeshClient.local(loaded.data_dir) as client:
            status = client.get("/mesh/v1/status", timeout_s=_ANSWER_S)
    except MeshError:
        return
    kept = str(loaded.data_dir / "options")
    read = [path for path in status.get("config_files", ()) if path != kept]
    if read != [path for path in loaded.files if path != kept]:
        typer.echo(
            f"note: this is what a start from here takes. The daemon that runs now was started with "
            f"{', '.join(read) or 'no file'}",
            err=True,
        )


def _shown(settings: "Settings") -> "list[Setting]":
    from meshnode.settings.fields import FIELDS
    from meshnode.settings.layers import Kind

    return [
        each
        for key, each in settings.by_key.items()
        if key in FIELDS or each.source.kind is not Kind.DEFAULT
    ]


def _end(faults: "tuple[Fault, ...]", *, quiet: bool) -> None:
    if not quiet:
        for fault in faults:
            print_error(fault)
    if faults:
        raise typer.Exit(_EXIT_FAULTS)


def _origin(setting: "Setting") -> str:
    from meshnode.settings.layers import Kind

    if setting.source.kind is Kind.DEFAULT and setting.field.key.startswith("membership."):
        return "profile"
    return setting.source.named(setting.field)


def _document(setting: "Setting") -> dict[str, Any]:
    field = setting.field
    return {
        "key": field.key,
        "value": setting.plain,
        "from": _origin(setting),
        "source": setting.source.kind.name.lower(),
        "path": setting.source.path or None,
        "overrides": [
            {
                "value": field.kind.plain(value),
                "from": source.named(field),
                "source": source.kind.name.lower(),
                "path": source.path or None,
            }
            for source, value in setting.overridden
        ],
    }


def _data_dir(loaded: "Loaded") -> dict[str, str]:
    from meshnode.settings.layers import Kind

    source = loaded.data_dir_source
    name = "environment MESHNODE_DATA_DIR" if source.kind is Kind.ENVIRONMENT else source.kind.value
    if source.path:
        name = f"{Path(source.path).name} ({source.path})"
    return {"value": str(loaded.data_dir), "from": name}


def _fault(fault: "Fault") -> dict[str, Any]:
    source = fault.source
    return {
        "message": str(fault),
        "key": fault.key or None,
        "source": source.kind.name.lower() if source else None,
        "path": (source.path or None) if source else None,
        "line": fault.line or None,
    }


def _show_limits(json: bool) -> None:
    from meshnode import reference

    rows = reference.limits()
    if json:
        print_json(
            [
                {
                    "name": row.name,
                    "value": row.value,
                    "unit": row.unit,
                    "section": row.section,
                    "reason": row.reason,
                }
                for row in rows
            ]
        )
        return
    print_table(
        ["LIMIT", "VALUE", "REASON"],
        [[row.name, row.readable, row.reason] for row in rows],
        empty="",
    )
