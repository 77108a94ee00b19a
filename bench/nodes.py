"""Processes under measurement: daemons and the servers they are compared with.

Each is a context that ends its process, by its id, however the block is left: Ctrl-C, an error.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import psutil

from meshnode.client.mesh import MeshClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START_LIMIT_S = 60.0
"""How long a process may take to answer; a machine of many tenants is slow at times."""


def end_on_sigterm() -> None:
    """Let SIGTERM leave the contexts as Ctrl-C does, so that no daemon is left behind."""

    def leave(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


SETTLE_S = 10.0
"""After a node's start: it measures its machine's speed once, for some seconds."""


def free_port() -> int:
    """Return a TCP port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens at its port.

    Raises:
        RuntimeError: if it ends instead, or takes longer than `START_LIMIT_S`.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not open port {port}")


@contextlib.contextmanager
def running(*arguments: str, quiet: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run this Python with arguments; the process is ended when the block is left."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if quiet else None,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass
class MeshNode:
    """One daemon under test."""

    control: MeshClient
    port: int
    pid: int

    @property
    def rss_mb(self) -> float:
        """Resident memory of the daemon in megabytes."""
        return float(psutil.Process(self.pid).memory_info().rss) / 1e6


def join_arguments(
    folder: Path, name: str, *arguments: str, http: str = "127.0.0.1:0"
) -> list[str]:
    """Return the arguments for Python that start a daemon on loopback, away from real meshes."""
    return [
        "-m", "meshnode", "join", *arguments, "--name", name, "--data-dir", str(folder / name),
        "--listen", "127.0.0.1:0", "--http", http, "--no-mdns",
    ]  # fmt: skip


def status_of(control: MeshClient, process: subprocess.Popen[bytes]) -> dict[str, object]:
    """Wait for a daemon's control channel and return its status.

    Raises:
        RuntimeError: if the daemon ends instead, or takes longer than `START_LIMIT_S`.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            return dict(control.get("/mesh/v1/status"))
        except MeshError:
            time.sleep(0.01)
    raise RuntimeError(f"{process.args!r} did not start in {START_LIMIT_S:g} s")


@contextlib.contextmanager
def node(folder: Path, name: str, *arguments: str, quiet: bool = False) -> Iterator[MeshNode]:
    """Run a daemon; the block begins when it answers."""
    with running(*join_arguments(folder, name, *arguments), quiet=quiet) as process:
        control = MeshClient.local(folder / name)
        status = status_of(control, process)
        port = int(str(status["http"]).rpartition(":")[2].rstrip("/"))
        yield MeshNode(control, port, process.pid)


def is_ready(control: MeshClient) -> bool:
    """Whether any model has a replica that is ready, as this node sees it."""
    models = control.get("/mesh/v1/models")
    return any(replica["state"] == "ready" for model in models for replica in model["replicas"])
