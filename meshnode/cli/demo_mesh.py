"""The demo's daemons: real processes on loopback, in a folder that vanishes with them.

Whatever ends the demo (its own end, an error, Ctrl-C, SIGTERM), `DemoMesh.close` stops each child
that was started and removes the folder. Signals are held back for the moment between starting a
process and noting it, and while cleaning up, so that none is ever forgotten.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from meshnode.client.control import control_address, remove_control
from meshnode.client.mesh import MeshClient
from meshnode.errors import MeshError, PeerError
from meshnode.settings.environment import ENV_FILE_VARIABLE
from meshnode.settings.fields import PREFIX
from meshnode.types import Address

_START_TIMEOUT_S: Final = 20.0  # ten times what a start takes on a small machine
_STOP_TIMEOUT_S: Final = 5.0
_POLL_INTERVAL_S: Final = 0.05
_ASK_TIMEOUT_S: Final = 2.0  # signals wait for it, and people wait no longer
_LOG_TAIL_BYTES: Final = 2000
_EXIT_TERMINATED: Final = 143  # 128 + SIGTERM, as shells report it


class Interrupts:
    """Turns SIGINT and SIGTERM into exceptions, except where they are held back.

    Installed by `with`; the former handlers return at its end.
    """

    def __init__(self) -> None:
        self._held = False
        self._pending: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers (main thread only)."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold signals back for a moment; one that came meanwhile is raised at the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        pending, self._pending = self._pending, None
        if pending is not None:
            self._raise(pending)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._held:
            self._pending = number
        else:
            self._raise(number)

    @staticmethod
    def _raise(number: int) -> None:
        if number == signal.SIGTERM:
            raise SystemExit(_EXIT_TERMINATED)
        raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class DemoNode:
    """One daemon of the demo.

    Attributes:
        name: Its name in the mesh.
        region: Its region.
        process: The child process.
        client: Its control channel.
        log: Where its output goes.
        http: Address of its gateway.
    """

    name: str
    region: str
    process: subprocess.Popen[bytes]
    client: MeshClient
    log: Path
    http: Address


class DemoMesh:
    """Starts daemons and stops them; use it with `with`."""

    def __init__(self, interrupts: Interrupts) -> None:
        """Make the temporary folder."""
        self._interrupts = interrupts
        self._children: list[subprocess.Popen[bytes]] = []
        self.nodes: list[DemoNode] = []
        with interrupts.held():
            self.folder = Path(tempfile.mkdtemp(prefix="meshnode-demo-"))

    def __repr__(self) -> str:
        return f"<DemoMesh {[node.name for node in self.nodes]} in {self.folder}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, name: str, region: str, *, invite: str | None) -> DemoNode:
        """Start one daemon and wait until it answers.

        Args:
            name: Its name.
            region: Its region.
            invite: An invite of the mesh to join, or None to found one.

        Raises:
            PeerError: if it ends or does not answer in time; the message holds its last words.
        """
        data_dir = self.folder / name
        log = self.folder / f"{name}.log"
        command = [sys.executable, "-m", "meshnode", "join", *([invite] if invite else ["--new"])]
        command += ["--name", name, "--region", region, "--data-dir", str(data_dir), "--no-mdns"]
        command += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        # The user's settings are for a node of theirs: neither variables nor `.env` count here.
        environ = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        environ[ENV_FILE_VARIABLE] = os.devnull
        # What their libraries leave in the temporary folder (ONNX Runtime: `.ses`) goes with ours.
        environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(self.folder))
        with log.open("wb") as output, self._interrupts.held():
            # Its own session: Ctrl-C on the terminal reaches the demo only, which then stops them.
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ,
                start_new_session=True,
            )
            self._children.append(process)
        client = MeshClient.local(data_dir)
        status = self._wait_for_status(name, process, client, log)
        http = Address.parse(str(status["http"]).removeprefix("http://"))
        node = DemoNode(name, region, process, client, log, http)
        self.nodes.append(node)
        return node

    def _wait_for_status(
        self, name: str, process: subprocess.Popen[bytes], client: MeshClient, log: Path
    ) -> dict[str, Any]:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            if process.poll() is not None:
                raise PeerError(
                    f"the daemon {name} ended with code {process.returncode}: {tail(log)}"
                )
            try:
                # A signal between the making of a socket and the keeping of it would leave it open.
                with self._interrupts.held():
                    return dict(client.get("/mesh/v1/status", timeout_s=_ASK_TIMEOUT_S))
            except MeshError as error:
                if time.monotonic() > deadline:
                    raise PeerError(
                        f"the daemon {name} did not start ({error}): {tail(log)}"
                    ) from None
            time.sleep(_POLL_INTERVAL_S)

    def close(self) -> None:
        """Stop every daemon, first politely, and remove the folder."""
        with self._interrupts.held():
            for child in self._children:
                if child.poll() is None:
                    child.terminate()
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            for child in self._children:
                try:
                    child.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
            for data_dir in self.folder.iterdir():
                # A killed daemon leaves its socket; where paths are long it lies elsewhere.
                with contextlib.suppress(MeshError):
                    remove_control(data_dir, control_address(data_dir))
            shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll a condition every 50 ms.

    Raises:
        PeerError: if it does not hold in time; the message says what was awaited.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise PeerError(f"{what}: not after {timeout_s:g} s")
        time.sleep(_POLL_INTERVAL_S)


def tail(log: Path) -> str:
    """Return the end of a log file on one line."""
    with contextlib.suppress(OSError):
        text = log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        return " | ".join(text.split("\n")).strip(" |") or "it said nothing"
    return "it left no log"
