"""Devices as network namespaces, each with a network, host name, home folder and terminal of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

COMMAND_LIMIT_S = 60.0
_BY_NAME = 'echo "$1" > /proc/sys/kernel/hostname; shift; exec "$@"'
_SAVE_STATE = '\ncode=$?; export -p > "$STATE.new"; printf "cd %q\\n" "$PWD" >> "$STATE.new"; mv "$STATE.new" "$STATE"; exit $code'


def why_not_here() -> str | None:
    """Return why this machine cannot have such devices, or None if it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "nft", "unshare", "curl", "openssl"):
        if shutil.which(tool) is None:
            return f"the devices need {tool}"
    tried = subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this container may make no network namespaces"


def ip(*words: str) -> None:
    """Run `ip`, which must succeed."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Done:
    """What a command printed, stdout and stderr together as a terminal shows them."""

    def __init__(self, command: str, code: int, output: str) -> None:
        self.command, self.code, self.output = command, code, output

    def __repr__(self) -> str:
        return f"$ {self.command}\n{self.output}(exit code {self.code})"


class Begun:
    """Commands that were begun and may not have ended."""

    def __init__(self, command: str, process: subprocess.Popen[bytes], output: Path) -> None:
        self._command, self._process, self._output = command, process, output

    def so_far(self) -> Done:
        """What they have printed; the exit code is that of a success while they run."""
        return Done(
            self._command, self._process.poll() or 0, self._output.read_text(errors="replace")
        )

    def wait(self) -> Done:
        """Wait until they have ended by themselves."""
        self._process.wait(COMMAND_LIMIT_S)
        return self.so_far()


class Device:
    """A machine of its own: network, host name, home folder, terminal."""

    def __init__(self, network: Network, name: str) -> None:
        self.network, self.name = network, name
        self.namespace = f"{network.tag}-{name}"
        self.home = network.folder / name
        self.home.mkdir()
        self.state = self.home / ".terminal"
        ip("netns", "add", self.namespace)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        ip("-n", self.namespace, *words)

    def set(self, name: str, value: str) -> None:
        """Set a kernel parameter of this device's network."""
        self.run(f"echo {value} > /proc/sys/{name}")

    def address(self, interface: str, address: str, gateway: str | None = None) -> None:
        # Without `nodad` an IPv6 address is unusable for its first second.
        self.ip("addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
        if gateway is not None:
            self.ip("route", "add", "default", "via", gateway)

    def nft(self, rules: str) -> None:
        """Load firewall rules, in addition to those that are there."""
        done = self._start(["nft", "-f", "-"], rules.encode(), limit_s=10)
        assert done.code == 0, f"{rules}:\n{done!r}"

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MESHNODE_", "XDG_", "PYTHON", "PIP_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "STATE": str(self.state),
            "PATH": ":".join([*map(str, self.network.tools), os.environ["PATH"]]),
            "COLUMNS": "200",
            **self.network.environment,
        }

    def run(
        self,
        command: str,
        *,
        stdin: str = "",
        fails: bool = False,
        limit_s: float = COMMAND_LIMIT_S,
    ) -> Done:
        """Type commands into this device's terminal; `cd` and exports stay for the next ones.

        Args:
            command: One or more lines of shell; the first that fails ends them.
            stdin: What is typed when they read.
            fails: Whether they must fail, rather than work.
            limit_s: How long they may take.
        """
        done = self.attempt(command, stdin=stdin, limit_s=limit_s)
        right = (done.code != 0) == fails
        assert right, f"on {self.name}:\n{done!r}\n{self.network.log_ends()}"
        return done

    def attempt(self, command: str, *, stdin: str = "", limit_s: float = COMMAND_LIMIT_S) -> Done:
        """Type commands as `run` does, whatever comes of it."""
        return self._start(_shell(command), stdin.encode(), limit_s, command)

    def begin(self, command: str) -> Begun:
        """Type commands that wait for something, and look at them while they do."""
        output = self.network.folder / f"output-{secrets.token_hex(4)}"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                self.inside(_shell(command)), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream, env=self.environment, cwd=self.home,
            )  # fmt: skip
        return Begun(command, process, output)

    def _start(
        self, words: list[str], stdin: bytes, limit_s: float, command: str | None = None
    ) -> Done:
        # Output goes to a file: a daemon that was started keeps no reader of a pipe waiting.
        output = self.network.folder / f"output-{secrets.token_hex(4)}"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                self.inside(words), stdin=subprocess.PIPE, stdout=stream, stderr=stream,
                env=self.environment, cwd=self.home,
            )  # fmt: skip
            try:
                process.communicate(stdin, limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(
                    f"{self.name}: longer than {limit_s} s: {command or words}\n"
                    f"{output.read_text(errors='replace')}\n{self.network.log_ends()}"
                ) from None
        return Done(
            command or " ".join(words), process.returncode, output.read_text(errors="replace")
        )

    def inside(self, words: list[str]) -> list[str]:
        """Return the command line that runs these words on this device."""
        enter = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        return [*enter, "sh", "-c", _BY_NAME, "sh", self.name, *words]

    def write(self, path: str, text: str) -> None:
        """Write a file; `~` and relative paths start at the home folder."""
        file = self.home / path.removeprefix("~/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def processes(self) -> list[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False
        )
        return [int(pid) for pid in listed.stdout.split()]

    def power_off(self) -> None:
        """End every process of this device at once, as a pulled plug does; cut its network."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.01)

    def log_end(self) -> str:
        log = self.home / ".local/share/meshnode/logs/meshnode.log"
        return "".join(log.read_text().splitlines(keepends=True)[-15:]) if log.exists() else ""


class Network:
    """All devices of one run; a context manager that leaves nothing behind."""

    def __init__(self, folder: Path, environment: dict[str, str], *tools: Path) -> None:
        """Keep home folders in `folder`; `tools` are folders that come first in every PATH."""
        self.folder, self.environment, self.tools = folder, environment, tools
        self.tag = f"mesh{os.getpid()}{secrets.token_hex(2)}"
        self.devices: dict[str, Device] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for device in self.devices.values():
            device.power_off()
            with contextlib.suppress(AssertionError):
                ip("netns", "del", device.namespace)

    def add(self, name: str) -> Device:
        device = Device(self, name)
        self.devices[name] = device
        return device

    def cable(self, one: Device, name: str, other: Device, other_name: str) -> None:
        """Connect two devices' interfaces."""
        ip("link", "add", name, "netns", one.namespace, "type", "veth",
           "peer", "name", other_name, "netns", other.namespace)  # fmt: skip
        one.ip("link", "set", name, "up")
        other.ip("link", "set", other_name, "up")

    def log_ends(self) -> str:
        ends = [(name, device.log_end()) for name, device in self.devices.items()]
        return "\n".join(f"--- log of {name}:\n{end}" for name, end in ends if end)


def bridge(network: Network, owner: Device, devices: list[Device]) -> None:
    """Connect devices to a bridge `lan` of `owner`."""
    owner.ip("link", "add", "lan", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
    owner.ip("link", "set", "lan", "up")
    for device in devices:
        network.cable(device, "eth0", owner, device.name)
        owner.ip("link", "set", device.name, "master", "lan")


def _shell(command: str) -> list[str]:
    """Return the words that run commands in a device's terminal, as it was left."""
    script = f'[ ! -e "$STATE" ] || . "$STATE"\nset -e\n{command}'
    return ["bash", "-c", f"trap {_quote(_SAVE_STATE)} EXIT\n{script}"]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def poll(condition: Any, limit_s: float, what: str) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {limit_s} s: {what}")
