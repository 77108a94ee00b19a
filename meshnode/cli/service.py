"""`meshnode service`: start this device's node at boot, by the platform's own supervisor.

| platform | without root | as root | tried |
|---|---|---|---|
| Linux with systemd | a user unit | a system unit, run as the owner of the data folder | yes |
| macOS | a launchd agent | the same | no |
| Windows | a scheduled task at log-on | the same | no |

A service starts in no shell and in no folder of its owner's, so the files of settings that count where it
is installed are written into it by their absolute paths, and what cannot come along is told.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meshnode.cli import service_files
from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.output import print_json, print_table
from meshnode.cli.settings import ConfigFile, EnvFile, data_folder, load_settings, settings_in
from meshnode.cli.supervisors import State, Supervisor, supervisor
from meshnode.errors import ConfigError, MeshError
from meshnode.folderlock import Holder, holder
from meshnode.options import check_name
from meshnode.settings.environment import read_text
from meshnode.settings.layers import ENVIRONMENT, Kind
from meshnode.settings.load import CONFIG_NAME

if TYPE_CHECKING:
    from meshnode.settings.load import Loaded

app = typer.Typer(
    name="service",
    no_args_is_help=True,
    help="Start this device's node at boot (systemd; launchd and Windows untested).",
)

_ANSWER_S = 2.0  # a status is answered from the daemon's own tables
_VARIABLE = re.compile(r"^\s*(?:export\s+)?MESHNODE_", re.MULTILINE)  # in TOML, that begins no line

ForSystem = Annotated[
    bool | None,
    typer.Option(
        "--system/--user",
        help="A service of the machine (needs root) or of this user.",
        show_default="--system for root, else --user",
    ),
]


Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="For a second node on this machine: the service is called meshnode-NAME.",
        show_default="meshnode",
    ),
]


@app.command()
def install(
    show: Annotated[
        bool, typer.Option("--print", help="Print the file and change nothing.")
    ] = False,
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind",
            metavar="KIND",
            help="With --print: for systemd, launchd or windows.",
            show_default="this machine's",
        ),
    ] = None,
    name: Name = None,
    system: ForSystem = None,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    env_file: EnvFile = None,
) -> None:
    """Start this node now and at each boot; a second time brings the service up to date.

    The files of settings that count here are written into it: those that --config and --env-file name,
    else those that MESHNODE_CONFIG and MESHNODE_ENV_FILE name, else .env, else those of the service as
    it is. Variables of this shell do not reach it.
    """
    if kind is not None and not show:
        raise ConfigError(
            "--kind goes with --print: what installs a service is the machine's own supervisor"
        )
    loaded = load_settings({}, data_dir=data_dir, config=config, env_file=env_file)
    folder = loaded.data_dir
    installed = (
        _supervisor(folder, name=name, system=system).installed_text() if kind is None else ""
    )
    files = _files(loaded, installed)
    _warn_of_what_stays_here(loaded, files)
    made = _supervisor(folder, name=name, system=system, files=files, kind=kind)
    if show:
        typer.echo(made.text, nl=False)
        return
    made.require_here()
    _require_member(folder)
    _require_own(made, folder)
    running, state = holder(folder), made.state()
    if running is not None and running.pid != state.pid:
        raise _runs_by_itself(running, folder)
    is_new = made.write()
    if not is_new and state.enabled and running is not None:
        typer.echo(f"The service is installed and running already: {made.file}")
        return
    made.activate()
    typer.echo(f"Installed and started: {made.file}")
    for path in files.values():
        typer.echo(f"It reads {path} at each start: keep that file.")
    if hint := made.hint():
        typer.echo(hint)


@app.command()
def uninstall(name: Name = None, system: ForSystem = None, data_dir: DataDir = None) -> None:
    """Stop the service and remove it; the node's data stays."""
    folder = data_folder(data_dir)
    found = _supervisor(folder, name=name, system=system)
    if not found.file.exists():
        typer.echo(f"No service is installed: there is no {found.file}.")
        return
    found.require_here()
    if data_dir is not None:  # else its name says which one is meant
        _require_own(found, folder)
    found.remove()
    typer.echo("The service is stopped and removed. The node's data stays; see `meshnode leave`.")


@app.command()
def status(
    name: Name = None, system: ForSystem = None, json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Show whether the service is installed, starts by itself, and runs."""
    found = _supervisor(data_folder(data_dir), name=name, system=system)
    if found.file.exists():
        found.require_here()
        state = found.state()
    else:
        state = State(installed=False, enabled=False, active="not installed", pid=None)
    document: dict[str, Any] = {
        "installed": state.installed,
        "enabled": state.enabled,
        "active": state.active,
        "pid": state.pid,
        "file": str(found.file),
        "data_dir": service_files.folder_of(found.installed_text()) if state.installed else None,
    }
    if json:
        print_json(document)
        return
    words = {True: "yes", False: "no"}
    rows = [(name, words.get(value, value)) for name, value in document.items()]
    print_table(("SERVICE", ""), rows, empty="")


def _supervisor(
    folder: Path,
    *,
    name: str | None,
    system: bool | None,
    files: dict[str, str] | None = None,
    kind: str | None = None,
) -> Supervisor:
    command = [sys.executable, "-m", "meshnode", "join", "--rejoin", "--data-dir", str(folder)]
    for option, path in (files or {}).items():
        command += [option, path]
    called = service_files.NAME
    if name is not None:
        called += f"-{check_name('--name', name)}"
    return supervisor(called, command, folder, system=system, kind=kind)


def _files(loaded: "Loaded", installed: str) -> dict[str, str]:
    """Return the files of settings that a service must name, by option: what it finds itself is not one.

    Args:
        loaded: What counts here.
        installed: The service as it is, whose files stay where nothing else was named.
    """
    found = {"--config": loaded.config_file, "--env-file": loaded.env_file}
    if service_files.folder_of(installed) == str(loaded.data_dir):
        for option, path in found.items():
            before = service_files.option_of(installed, option)
            if not path and before is not None and Path(before).is_file():
                found[option] = before
    if found["--config"] == str(loaded.data_dir / CONFIG_NAME):
        found["--config"] = ""
    return {option: path for option, path in found.items() if path}


def _warn_of_what_stays_here(loaded: "Loaded", files: dict[str, str]) -> None:
    """Tell which settings count here and not in the service.

    Raises:
        ConfigError: if the service could not start with what is left.
    """
    folder = loaded.data_dir
    service = settings_in(folder, files.get("--config"), files.get("--env-file"))
    service.require_sound()
    differ = [
        each
        for key, each in loaded.settings.by_key.items()
        if key in service.by_key and each.value != service.by_key[key].value
    ]
    variables = [each.field.variable for each in differ if each.source == ENVIRONMENT]
    if variables:
        typer.echo(
            f"warning: {', '.join(variables)} of this shell will not reach the service; put what it shall "
            f"have into {folder / CONFIG_NAME} (`meshnode config show` tells what counts)",
            err=True,
        )
    for each in differ:
        if each.source.kind is Kind.ENV_FILE:
            typer.echo(
                f"warning: {each.said()} is another path for the service, which starts in another "
                "folder; write it in full",
                err=True,
            )


def _runs_by_itself(running: Holder, folder: Path) -> ConfigError:
    """Return the error for a node that runs already, with the files that its service must name."""
    from meshnode.client.mesh import MeshClient

    again = ["meshnode", "service", "install", "--data-dir", str(folder)]
    try:
        with MeshClient.local(folder) as client:
            read = client.get("/mesh/v1/status", timeout_s=_ANSWER_S).get("config_files", ())
    except MeshError:
        read = ()
    for path in read:
        if path not in (str(folder / "options"), str(folder / CONFIG_NAME)):
            again += ["--env-file" if _is_env_file(path) else "--config", path]
    return ConfigError(
        f"{running} runs on {folder} by itself; stop it first with `meshnode stop`, then install "
        f"the service, which starts it again: {shlex.join(again)}"
    )


def _is_env_file(path: str) -> bool:
    try:
        return _VARIABLE.search(read_text(Path(path))) is not None
    except ConfigError:
        return False


def _require_own(supervisor: Supervisor, folder: Path) -> None:
    """Refuse to touch the service of another node."""
    other = service_files.folder_of(supervisor.installed_text())
    if other is not None and other != str(folder):
        raise ConfigError(
            f"{supervisor.file} is the service of the node on {other}, not of {folder}; give this one "
            "a name of its own with --name NAME"
        )


def _require_member(folder: Path) -> None:
    """Refuse a folder that belongs to no mesh: at boot nobody is there to read what join prints."""
    if not (folder / "mesh").exists():
        raise ConfigError(
            f"{folder} belongs to no mesh yet; join or found one first: meshnode join --data-dir "
            f"{shlex.quote(str(folder))} --detach, then meshnode stop, then install the service"
        )
