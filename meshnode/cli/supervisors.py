"""The platforms' own ways to keep the daemon running: systemd, launchd, Windows' task scheduler."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshnode.cli import service_files
from meshnode.cli.output import plain
from meshnode.errors import ConfigError, MeshError, PeerError
from meshnode.limits import SERVICE_TOOL_TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

KINDS: Final = ("systemd", "launchd", "windows")
"""Supervisors by the word that `--kind` takes."""

SYSTEM_UNITS = Path("/etc/systemd/system")
"""Where an administrator's units lie (systemd.unit(5))."""


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

    def remove(self) -> None:
        """Stop the daemon, and take the service back.

        Raises:
            ConfigError: if its file cannot be removed.
            PeerError: if the platform's tool fails.
        """
        self.deactivate()
        try:
            self.file.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.file} cannot be removed ({error.strerror}); run this as root"
            ) from None
        self.forget()

    def hint(self) -> str:
        """Return what else its owner may want to do; empty for nothing."""
        return ""


class Systemd(Supervisor):
    """systemd, as the machine's or as this user's."""

    def __init__(self, name: str, command: Sequence[str], data_dir: Path, *, system: bool) -> None:
        """Make the unit's text."""
        self._system = system
        self._tool = ["systemctl"] if system else ["systemctl", "--user"]
        self._unit = f"{name}.service"
        user = _owner(data_dir) if system else None
        self.text = service_files.systemd_unit(command, str(data_dir), user=user)
        self.file = (SYSTEM_UNITS if system else _own_units()) / self._unit

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

    def __init__(self, name: str, command: Sequence[str]) -> None:
        """Make the property list."""
        more = name.removeprefix(service_files.NAME).replace("-", ".", 1)
        label = service_files.LAUNCHD_LABEL + more
        self.text = service_files.launchd_plist(command, label)
        self.file = _agents() / f"{label}.plist"
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

    def __init__(self, name: str, command: Sequence[str], data_dir: Path) -> None:
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


def supervisor(
    name: str,
    command: Sequence[str],
    folder: Path,
    *,
    system: bool | None,
    kind: str | None = None,
) -> Supervisor:
    """Return the supervisor of this platform, or of another one for its text, with nothing changed yet.

    Args:
        name: What the service is called.
        command: Program (an absolute path) and arguments.
        folder: The node's data folder.
        system: Whether it is the machine's; None for that where this is root.
        kind: One of `KINDS`; None for this platform's.

    Raises:
        ConfigError: if there is no such kind.
    """
    if kind is None:
        kind = {"darwin": "launchd", "win32": "windows"}.get(sys.platform, "systemd")
    if kind not in KINDS:
        raise ConfigError(f"--kind is {kind!r}; there are {', '.join(KINDS)}")
    if kind == "launchd":
        return Launchd(name, command)
    if kind == "windows":
        return TaskScheduler(name, command, folder)
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return Systemd(name, command, folder, system=is_root if system is None else system)


def installed_for(folder: Path) -> list[Supervisor]:
    """Return the services that start the node of a data folder, as far as this user sees them."""
    return [
        each
        for each in _all_installed(folder)
        if service_files.folder_of(each.installed_text()) == str(folder)
    ]


def _all_installed(folder: Path) -> Iterator[Supervisor]:
    command = [sys.executable]
    if sys.platform == "darwin":
        for file in sorted(_agents().glob(f"{service_files.LAUNCHD_LABEL}*.plist")):
            more = file.stem.removeprefix(service_files.LAUNCHD_LABEL).replace(".", "-", 1)
            yield Launchd(service_files.NAME + more, command)
    elif sys.platform == "win32":
        if (folder / "service.xml").exists():
            yield TaskScheduler(service_files.NAME, command, folder)
    else:
        for system, place in ((False, _own_units()), (True, SYSTEM_UNITS)):
            for file in sorted(place.glob(f"{service_files.NAME}*.service")):
                yield Systemd(file.stem, command, folder, system=system)


def _own_units() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "systemd" / "user"


def _agents() -> Path:
    return Path("~/Library/LaunchAgents").expanduser()


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
            command, capture_output=True, text=True, check=False, timeout=SERVICE_TOOL_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unusable(command[0], error) from None


def _unusable(tool: str, error: Exception) -> MeshError:
    return PeerError(f"{tool} did not work: {error}; {_instead()}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout or f"exit code {done.returncode}").strip().splitlines()
    return plain(" ".join(lines))
