"""Real daemons as processes on loopback, and HTTP clients that count what fails."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from meshnode.client.mesh import MeshClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
START_LIMIT_S = 30.0
DIGIT_REQUEST = {
    "inputs": [
        {
            "name": "image",
            "shape": [1, 8, 8],
            "datatype": "FP32",
            "data": [i / 64 for i in range(64)],
        }
    ]
}


def wait_until(condition: Callable[[], Any], limit_s: float, what: str | Callable[[], str]) -> Any:
    """Poll until a condition holds and return its value; fail with `what` when it takes too long.

    A `what` that quotes a log is a function: the words that tell the reason come while it waits.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    pytest.fail(f"not within {limit_s} s: {what if isinstance(what, str) else what()}")


@dataclass
class Daemon:
    """One `meshnode join` process."""

    name: str
    data_dir: Path
    process: subprocess.Popen[bytes]
    log: Path
    control: MeshClient = field(init=False)

    def __post_init__(self) -> None:
        self.control = MeshClient.local(self.data_dir)

    def wait_ready(self) -> Daemon:
        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.process.returncode}:\n{self.output}")
            with contextlib.suppress(MeshError):
                return bool(self.status)
            return False

        wait_until(ready, START_LIMIT_S, lambda: f"{self.name} answers; it said:\n{self.output}")
        return self

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control.get("/mesh/v1/status")
        return found

    @property
    def http_port(self) -> int:
        return int(str(self.status["http"]).rpartition(":")[2])

    @property
    def mesh_port(self) -> int:
        return int(str(self.status["mesh_address"]).rpartition(":")[2])

    def invite(self, ttl_s: int = 600) -> str:
        return str(self.control.post("/mesh/v1/invites", {"ttl_s": ttl_s})["invite"])

    def states(self) -> dict[str, str]:
        """Each member's state by name, as this node sees it."""
        return {node["name"]: node["state"] for node in self.control.get("/mesh/v1/nodes")}

    def sees(self, count: int) -> bool:
        return list(self.states().values()).count("alive") == count

    def ready_nodes(self, model: str, version: int | None = None) -> set[str]:
        """Names of the nodes that serve a model, as this node sees it."""
        return {
            replica["node"]
            for entry in self.control.get("/mesh/v1/models")
            if entry["name"] == model
            for replica in entry["replicas"]
            if replica["state"] == "ready" and version in (None, replica["version"])
        }

    def has_replicas(self, count: int) -> bool:
        """Whether so many nodes serve the digits, as this node sees it."""
        return len(self.ready_nodes("digits")) == count

    def deploy(self, path: Path, **wish: Any) -> dict[str, Any]:
        body = {"path": str(path), "name": None, "replicas": None, "on": [], **wish}
        found: dict[str, Any] = self.control.post("/mesh/v1/deployments", body, timeout_s=60)
        return found

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Ask the HTTP gateway; return status, headers with lower-case names, and the JSON body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, found, json.loads(data) if is_json and data else data

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Leave cleanly; return the exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(40)


class Mesh:
    """Starts daemons and ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[Daemon] = []

    def start(
        self,
        name: str,
        *arguments: str,
        mesh: str = "127.0.0.1:0",
        http: str = "127.0.0.1:0",
        mdns: bool = False,
    ) -> Daemon:
        """Start a daemon without waiting for it; a name that ran before starts on its folder."""
        data_dir = self.folder / name
        log = self.folder / f"{name}.log"
        command = [
            sys.executable, "-m", "meshnode", "join", *arguments, "--name", name,
            "--data-dir", str(data_dir), "--listen", mesh,
            *(("--mdns-interface", "127.0.0.1") if mdns else ("--no-mdns",)),
        ]  # fmt: skip
        if "--no-gateway" not in arguments:
            command += ["--http", http]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        daemon = Daemon(name, data_dir, process, log)
        self.daemons.append(daemon)
        return daemon

    def grow(self, *names: str, regions: tuple[str, ...] = ()) -> list[Daemon]:
        """Start a mesh with these nodes and wait until all see all."""
        where = dict(zip(names, regions, strict=False))
        first = self.start(names[0], "--new", "--region", where.get(names[0], "default"))
        first.wait_ready()
        nodes = [first]
        for name in names[1:]:
            region = where.get(name, "default")
            nodes.append(self.start(name, first.invite(), "--region", region))
        for node in nodes:
            node.wait_ready()
        for node in nodes:
            wait_until(partial(node.sees, len(names)), 15, f"{node.name} sees all")
        return nodes

    def close(self) -> None:
        for daemon in self.daemons:
            if daemon.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    daemon.signal(signal.SIGCONT)
                daemon.process.kill()
                daemon.process.wait()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path)
    try:
        yield mesh
    finally:
        mesh.close()


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    """Three nodes in three regions, digits served by two of them: [founder, other, other]."""
    mesh = Mesh(tmp_path_factory.mktemp("trio"))
    try:
        nodes = mesh.grow("alpha", "beta", "gamma", regions=("eu", "us", "ap"))
        nodes[0].deploy(DIGITS, name="digits", replicas=2)
        for node in nodes:
            wait_until(partial(node.has_replicas, 2), 30, "digits is served")
        yield nodes
    finally:
        mesh.close()


@dataclass
class Sample:
    """One request of a load: when it began (monotonic s), how long it took, how it ended."""

    at: float
    took_s: float
    status: int
    route: str


class SteadyLoad:
    """Threads that keep asking one gateway, until stopped; each has one keep-alive connection."""

    def __init__(self, port: int, threads: int = 4, pause_s: float = 0.005) -> None:
        self._port = port
        self._pause_s = pause_s
        self._stop = threading.Event()
        self.samples: list[Sample] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)

    def run_for(self, seconds: float) -> None:
        time.sleep(seconds)

    @property
    def failures(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.status != 200]

    def answered_by(self, node: str) -> int:
        return sum(f"node={node}" in sample.route for sample in self.samples)

    def slowest_s(self) -> float:
        return max(sample.took_s for sample in self.samples)

    def _run(self) -> None:
        body = json.dumps(DIGIT_REQUEST).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stop.is_set():
            begin = time.monotonic()
            try:
                connection.request("POST", "/v2/models/digits/infer", body)
                response = connection.getresponse()
                response.read()
                status, route = response.status, response.headers.get("Mesh-Route", "")
            except (OSError, http.client.HTTPException) as error:
                status, route = 0, repr(error)
                connection.close()
            self.samples.append(Sample(begin, time.monotonic() - begin, status, route))
            time.sleep(self._pause_s)
        connection.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
