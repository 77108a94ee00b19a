"""`meshnode service`: start this device's node at boot, by the platform's own supervisor.

| platform | without root | as root | tried |
|---|---|---|---|
| Linux with systemd | a user unit | a system unit, run as the owner of the data folder | yes |
| macOS | a launchd agent | the same | no |
| Windows | a scheduled task at log-on | the same | no |
"""

import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from meshnode.cli import service_files
from meshnode.cli.arguments import AsJson, DataDir
from meshnode.cli.output import plain, print_json, print_table
from meshnode.cli.settings import data_folder, working_folder
from meshnode.errors import ConfigError, MeshError, PeerError
from meshnode.folderlock import holder
from meshnode.options import check_name

app = typer.Typer(
    name="service",
    no_args_is_help=True,
    help="Start this device's node at boot (systemd; launchd and Windows untested).",
)

SYSTEM_UNITS = Path("/etc/systemd/system")
"""Where an administrator's units lie (systemd.unit(5))."""

_TOOL_TIMEOUT_S = 90.0  # starting waits until the node is a member

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


@dataclass(frozen=True, slots=True)
class State:
    """What is known of an installed service.

    Attributes:
        installed: Whether its file is there.
        enabled: Whether it starts by itself.
        active: What the supervisor calls its state, such as `active`.
        pid: Its process, or None.
    """

    installed: bool
    enabled: bool
    active: str
    pid: int | None


class Supervisor(ABC):
    """One platform's way to keep a program running.

    Attributes:
        file: What tells it about the daemon.
        text: That file's content.
    """

    file: Path
    text: str

    @abstractmethod
    def require_here(self) -> None:
        """Raise ConfigError, with what to do instead, where it does not run."""

    @abstractmethod
    def activate(self) -> None:
        """Let it start the daemon now and at each boot; the file is there."""

    @abstractmethod
    def deactivate(self) -> None:
        """Stop the daemon and let it start no more; the file is still there."""

    @abstractmethod
    def forget(self) -> None:
        """Notice that the file is gone."""

    @abstractmethod
    def state(self) -> State:
        """Ask for the daemon's state."""

    def installed_text(self) -> str:
        """Return what is installed now under this name; empty for nothing, or nothing readable."""
        try:
            return self.file.read_text(errors="replace")
        except OSError:
            return ""

    def write(self) -> bool:
        """Write the file; False if it was there already, as it is now."""
        encoding = (
            "utf-16" if self.text.startswith('<?xml version="1.0" encoding="UTF-16"') else "utf-8"
        )
        content = self.text.encode(encoding)
        try:
            if self.file.exists() and self.file.read_bytes() == content:
                return False
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_bytes(content)
        except OSError as error:
            raise ConfigError(
                f"{self.file} cannot be written ({error.strerror or error}); use --user for a service "
                "of your own, or run this as root"
            ) from None
        return True

    def hint(self) -> str:
        """Return what else its owner may want to do; empty for nothing."""
        return ""


class Systemd(Supervisor):
    """systemd, as the machine's or as this user's."""

    def __init__(self, name: str, command: list[str], data_dir: Path, *, system: bool) -> None:
        """Make the unit's text."""
        self._system = system
        self._tool = ["systemctl"] if system else ["systemctl", "--user"]
        self._unit = f"{name}.service"
        user = _owner(data_dir) if system else None
        self.text = service_files.systemd_unit(command, str(data_dir), user=user)
        config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
        own = Path(config).expanduser() / "systemd" / "user"
        self.file = (SYSTEM_UNITS if system else own) / self._unit

    def require_here(self) -> None:
        """Raise ConfigError where systemd does not run, or not for this user."""
        if shutil.which("systemctl") is None:
            raise ConfigError(f"there is no systemd on this machine; {_instead()}")
        asked = _run([*self._tool, "show", "--property=Version"])
        if asked.returncode != 0:
            whose = "here" if self._system else "for this user"
            raise ConfigError(f"systemd does not run {whose} ({_said(asked)}); {_instead()}")

    def activate(self) -> None:
        """Reload, enable, and start anew."""
        self._call("daemon-reload")
        self._call("enable", self._unit)
        self._call("restart", self._unit)

    def deactivate(self) -> None:
        """Stop and disable."""
        self._call("disable", "--now", self._unit)

    def forget(self) -> None:
        """Reload."""
        self._call("daemon-reload")

    def state(self) -> State:
        """Read the unit's properties."""
        names = ("ActiveState", "UnitFileState", "MainPID")
        asked = _run([*self._tool, "show", self._unit, f"--property={','.join(names)}"])
        found = dict(line.partition("=")[::2] for line in asked.stdout.splitlines())
        pid = found.get("MainPID", "0")
        return State(
            installed=self.file.exists(),
            enabled=found.get("UnitFileState", "").startswith("enabled"),
            active=found.get("ActiveState") or "unknown",
            pid=int(pid) if pid.isdigit() and pid != "0" else None,
        )

    def hint(self) -> str:
        """Tell what a user's unit needs to start without a log-in."""
        if self._system:
            return ""
        return (
            "A user's service starts when you log in. To start it at boot: loginctl enable-linger "
            "(or install it as root, with --data-dir of this node)"
        )

    def _call(self, *arguments: str) -> None:
        done = _run([*self._tool, *arguments])
        if done.returncode != 0:
            scope = "" if self._system else "--user "
            raise PeerError(
                f"`{shlex.join([*self._tool, *arguments])}` failed: {_said(done)}. See why with: "
                f"journalctl {scope}-u {self._unit} -e, and: meshnode logs"
            )


class Launchd(Supervisor):
    """launchd, for this user. Written from its manual; never tried on a Mac."""

    def __init__(self, name: str, command: list[str]) -> None:
        """Make the property list."""
        more = name.removeprefix(service_files.NAME).replace("-", ".", 1)
        label = service_files.LAUNCHD_LABEL + more
        self.text = service_files.launchd_plist(command, label)
        agents = Path("~/Library/LaunchAgents").expanduser()
        self.file = agents / f"{label}.plist"
        self._domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 0}"
        self._target = f"{self._domain}/{label}"

    def require_here(self) -> None:
        """Raise ConfigError where there is no launchctl."""
        if shutil.which("launchctl") is None:
            raise ConfigError(f"there is no launchctl on this machine; {_instead()}")

    def activate(self) -> None:
        """Load the job anew; it starts at once."""
        _run(["launchctl", "bootout", self._target])
        _require(["launchctl", "bootstrap", self._domain, str(self.file)])

    def deactivate(self) -> None:
        """Unload the job, which stops it."""
        _require(["launchctl", "bootout", self._target])

    def forget(self) -> None:
        """Nothing: launchd reads the folder at log-in."""

    def state(self) -> State:
        """Ask for the job."""
        asked = _run(["launchctl", "print", self._target])
        lines = [line.strip().partition(" = ") for line in asked.stdout.splitlines()]
        found = {key: value for key, _, value in lines}
        pid = found.get("pid", "")
        return State(
            installed=self.file.exists(),
            enabled=asked.returncode == 0,
            active=found.get("state") or "not loaded",
            pid=int(pid) if pid.isdigit() else None,
        )


class TaskScheduler(Supervisor):
    """Windows' task scheduler, for this user. Written from its manual; never tried on Windows."""

    def __init__(self, name: str, command: list[str], data_dir: Path) -> None:
        """Make the task's text."""
        self._task = name
        domain, name = os.environ.get("USERDOMAIN", ""), os.environ.get("USERNAME", "")
        user = f"{domain}\\{name}" if domain else name
        self.text = service_files.windows_task(command, user)
        self.file = data_dir / "service.xml"

    def installed_text(self) -> str:
        """Ask for the task: its file lies in the data folder, and another one has another."""
        asked = _run(["schtasks", "/Query", "/TN", self._task, "/XML"])
        return asked.stdout if asked.returncode == 0 else ""

    def require_here(self) -> None:
        """Raise ConfigError where there is no schtasks."""
        if shutil.which("schtasks") is None:
            raise ConfigError(f"there is no schtasks on this machine; {_instead()}")

    def activate(self) -> None:
        """Create the task, and run it."""
        _require(["schtasks", "/Create", "/TN", self._task, "/XML", str(self.file), "/F"])
        _require(["schtasks", "/Run", "/TN", self._task])

    def deactivate(self) -> None:
        """Delete the task; `meshnode stop` ends the daemon itself."""
        _require(["schtasks", "/Delete", "/TN", self._task, "/F"])

    def forget(self) -> None:
        """Nothing is left to do."""

    def state(self) -> State:
        """Ask for the task."""
        asked = _run(["schtasks", "/Query", "/TN", self._task, "/FO", "CSV", "/NH"])
        there = asked.returncode == 0
        active = asked.stdout.strip().rpartition(",")[2].strip('"') if there else "not installed"
        return State(installed=self.file.exists(), enabled=there, active=active, pid=None)


@app.command()
def install(
    show: Annotated[
        bool, typer.Option("--print", help="Print the file and change nothing.")
    ] = False,
    name: Name = None,
    system: ForSystem = None,
    data_dir: DataDir = None,
) -> None:
    """Start this node now and at each boot; a second time brings the service up to date."""
    folder, env_file = data_folder(data_dir), _env_file()
    supervisor = _supervisor(folder, name=name, system=system, env_file=env_file)
    if show:
        typer.echo(supervisor.text, nl=False)
        return
    supervisor.require_here()
    _require_member(folder)
    _require_own(supervisor, folder)
    running, state = holder(folder), supervisor.state()
    if running is not None and running.pid != state.pid:
        raise ConfigError(
            f"{running} runs on {folder} by itself; stop it first with `meshnode stop`, then install "
            "the service, which starts it again"
        )
    is_new = supervisor.write()
    if not is_new and state.enabled and running is not None:
        typer.echo(f"The service is installed and running already: {supervisor.file}")
        return
    supervisor.activate()
    typer.echo(f"Installed and started: {supervisor.file}")
    if env_file is not None:
        typer.echo(f"It reads {env_file} at each start: keep that file.")
    if hint := supervisor.hint():
        typer.echo(hint)


@app.command()
def uninstall(name: Name = None, system: ForSystem = None, data_dir: DataDir = None) -> None:
    """Stop the service and remove it; the node's data stays."""
    folder = data_folder(data_dir)
    supervisor = _supervisor(folder, name=name, system=system)
    if not supervisor.file.exists():
        typer.echo(f"No service is installed: there is no {supervisor.file}.")
        return
    supervisor.require_here()
    if data_dir is not None:  # else its name says which one is meant
        _require_own(supervisor, folder)
    supervisor.deactivate()
    try:
        supervisor.file.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{supervisor.file} cannot be removed ({error.strerror}); run this as root"
        ) from None
    supervisor.forget()
    typer.echo("The service is stopped and removed. The node's data stays; see `meshnode leave`.")


@app.command()
def status(
    name: Name = None, system: ForSystem = None, json: AsJson = False, data_dir: DataDir = None
) -> None:
    """Show whether the service is installed, starts by itself, and runs."""
    supervisor = _supervisor(data_folder(data_dir), name=name, system=system)
    if supervisor.file.exists():
        supervisor.require_here()
        state = supervisor.state()
    else:
        state = State(installed=False, enabled=False, active="not installed", pid=None)
    found: dict[str, Any] = {
        "installed": state.installed,
        "enabled": state.enabled,
        "active": state.active,
        "pid": state.pid,
        "file": str(supervisor.file),
        "data_dir": service_files.folder_of(supervisor.installed_text())
        if state.installed
        else None,
    }
    if json:
        print_json(found)
        return
    words = {True: "yes", False: "no"}
    rows = [(name, words.get(value, value)) for name, value in found.items()]
    print_table(("SERVICE", ""), rows, empty="")


def _supervisor(
    folder: Path, *, name: str | None, system: bool | None, env_file: Path | None = None
) -> Supervisor:
    command = [sys.executable, "-m", "meshnode", "join", "--data-dir", str(folder)]
    if env_file is not None:  # a service has another working folder
        command += ["--env-file", str(env_file)]
    called = service_files.NAME
    if name is not None:
        called += f"-{check_name('--name', name)}"
    if sys.platform == "darwin":
        return Launchd(called, command)
    if sys.platform == "win32":
        return TaskScheduler(called, command, folder)
    is_root = os.geteuid() == 0
    return Systemd(called, command, folder, system=is_root if system is None else system)


def _env_file() -> Path | None:
    """Return the `.env` file whose variables count for a node that is started here, if there is one."""
    from meshnode.settings.environment import read_env_file

    found = read_env_file(os.environ, working_folder(), None)
    return None if found is None else found[0]


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


def _owner(folder: Path) -> str:
    """Return who owns the data folder: the user that a machine's service runs as."""
    try:
        return folder.owner()
    except (OSError, KeyError):
        return "root"


def _instead() -> str:
    return "start the node by hand with `meshnode join --detach`, and again after each boot"


def _require(command: list[str]) -> None:
    done = _run(command)
    if done.returncode != 0:
        raise PeerError(f"`{shlex.join(command)}` failed: {_said(done)}; see also: meshnode logs")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - the platform's own tool, with our own words
            command, capture_output=True, text=True, check=False, timeout=_TOOL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unusable(command[0], error) from None


def _unusable(tool: str, error: Exception) -> MeshError:
    return PeerError(f"{tool} did not work: {error}; {_instead()}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout or f"exit code {done.returncode}").strip().splitlines()
    return plain(" ".join(lines))
