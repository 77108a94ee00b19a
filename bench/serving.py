"""Requests per second and latency of digits, served locally and one hop away.

    make bench            or  python -m bench.serving [--seconds 5] [--rounds 3]

Every server runs in the same run, interleaved, under the same load generator on the same machine,
so only ratios mean something. What the ratios are to reach is in docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench.load import LoadResult, generator, load
from meshnode.client.api import ControlClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = (1, 8, 64)
_IMAGE = [round((index * 7 % 17) / 16, 4) for index in range(64)]
_BARE = json.dumps({"inputs": _IMAGE}, separators=(",", ":")).encode()
_OIP = json.dumps(
    {
        "inputs": [{"name": "image", "shape": [1, 8, 8], "datatype": "FP32", "data": _IMAGE}],
        "outputs": [{"name": "probabilities"}],
    },
    separators=(",", ":"),
).encode()


@dataclass
class Server:
    """One row of the table."""

    name: str
    port: int
    path: str
    body: bytes
    results: dict[int, list[LoadResult]] = field(default_factory=dict)

    def median(self, connections: int) -> LoadResult:
        """The round with the median throughput."""
        rounds = sorted(self.results[connections], key=lambda result: result.per_second)
        return rounds[len(rounds) // 2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args!r} did not open port {port}")


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def _peer(mode: str, backend: int | None = None) -> Iterator[int]:
    port = _free_port()
    extra = [] if backend is None else [str(backend)]
    with _process("-m", "bench.peers", mode, str(port), *extra) as process:
        _wait_for(port, process)
        yield port


@dataclass
class MeshNode:
    """One daemon of the mesh under test."""

    control: ControlClient
    port: int
    pid: int
    first_answer_s: float

    @property
    def rss_mb(self) -> float:
        """Resident memory of the daemon in megabytes."""
        return psutil.Process(self.pid).memory_info().rss / 1e6


@contextlib.contextmanager
def _node(folder: Path, name: str, *arguments: str) -> Iterator[MeshNode]:
    data = folder / name
    begin = time.perf_counter()
    with _process(
        "-m", "meshnode", "join", *arguments, "--name", name, "--data-dir", str(data),
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--no-mdns",
    ) as process:  # fmt: skip
        control = ControlClient(data)
        status = None
        while status is None:
            if process.poll() is not None:
                raise RuntimeError(f"node {name} ended with {process.returncode}")
            try:
                status = control.get("/mesh/v1/status")
            except MeshError:
                time.sleep(0.01)
        took = time.perf_counter() - begin
        port = int(str(status["http"]).rpartition(":")[2].rstrip("/"))
        yield MeshNode(control, port, process.pid, took)


@contextlib.contextmanager
def _servers(nodes: dict[str, MeshNode]) -> Iterator[list[Server]]:
    infer = "/v2/models/digits/infer"
    with (
        _peer("raw") as raw,
        _peer("raw-proxy", raw) as raw_proxy,
        _peer("aiohttp") as bare,
        _peer("aiohttp-proxy", bare) as proxy,
    ):
        yield [
            Server("raw protocol + ORT", raw, "/", _BARE),
            Server("aiohttp + ORT", bare, "/", _BARE),
            Server("meshnode, local", nodes["alpha"].port, infer, _OIP),
            Server("raw proxy -> raw", raw_proxy, "/", _BARE),
            Server("aiohttp proxy -> aiohttp", proxy, "/", _BARE),
            Server("meshnode, one hop", nodes["beta"].port, infer, _OIP),
        ]


def _measure(servers: list[Server], rounds: int, seconds: float) -> None:
    total = len(servers) * len(CONNECTIONS) * rounds
    done = 0
    for _ in range(rounds):
        for server in servers:
            load(server.port, server.path, server.body, 8, 1)  # warm up
            for connections in CONNECTIONS:
                result = load(server.port, server.path, server.body, connections, seconds)
                server.results.setdefault(connections, []).append(result)
                done += 1
                print(f"\r{done}/{total} {server.name:28s}", end="", file=sys.stderr, flush=True)
    print("\r" + " " * 50 + "\r", end="", file=sys.stderr)


def _report(servers: list[Server]) -> None:
    print(
        f"\nload: {generator()}; requests/s, p50 and p99 in ms at 1, 8, 64 connections; medians\n"
    )
    print(f"{'':26s}" + "".join(f"| {count:>6d} conn.  p50    p99   err " for count in CONNECTIONS))
    for server in servers:
        cells = []
        for count in CONNECTIONS:
            result = server.median(count)
            errors = sum(each.errors for each in server.results[count])
            cells.append(
                f"| {result.per_second:8.0f} {result.p50_ms:8.3f} {result.p99_ms:7.2f} {errors:3d} "
            )
        print(f"{server.name:26s}" + "".join(cells))
    named = {server.name: server for server in servers}
    local, hop = named["meshnode, local"], named["meshnode, one hop"]
    raw, bare = named["raw protocol + ORT"], named["aiohttp + ORT"]
    proxy, raw_proxy = named["aiohttp proxy -> aiohttp"], named["raw proxy -> raw"]

    def ratio(mine: Server, other: Server) -> float:
        pairs = zip(mine.results[64], other.results[64], strict=True)
        return statistics.median(a.per_second / b.per_second for a, b in pairs)

    added_us = (hop.median(1).p50_ms - local.median(1).p50_ms) * 1e3
    rows = [
        ("local, 64: against raw + ORT", ratio(local, raw), ">= 0.25"),
        ("local, 64: against aiohttp + ORT", ratio(local, bare), ">= 0.7"),
        (
            "local, 1: p50 against raw + ORT",
            local.median(1).p50_ms / raw.median(1).p50_ms,
            "<= 1.8",
        ),
        ("one hop, 64: against the aiohttp proxy", ratio(hop, proxy), ">= 1.5"),
        ("one hop, 64: against the raw proxy", ratio(hop, raw_proxy), ">= 0.37"),
        ("one hop, 1: added p50, us", added_us, "<= 200"),
    ]
    print()
    for label, value, target in rows:
        print(f"{label:42s} {value:8.2f}   target {target}")


def main() -> None:
    """Start everything, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="meshnode-bench-") as text,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(text)
        alpha = stack.enter_context(_node(folder, "alpha", "--new"))
        invite = str(alpha.control.post("/mesh/v1/invites", {"ttl_s": 600})["invite"])
        beta = stack.enter_context(_node(folder, "beta", invite))
        idle_mb = beta.rss_mb
        model = Path(__file__).parent.parent / "examples" / "digits" / "digits.onnx"
        alpha.control.post(
            "/mesh/v1/deployments",
            {"path": str(model), "name": "digits", "replicas": 1, "on": ["alpha"]},
        )
        while not _served(beta):
            time.sleep(0.05)
        with _servers({"alpha": alpha, "beta": beta}) as servers:
            _measure(servers, options.rounds, options.seconds)
        _report(servers)
        print(f"{'first answer after start, s':42s} {beta.first_answer_s:8.2f}   target <= 1.5")
        print(f"{'idle node without a model, MB RSS':42s} {idle_mb:8.1f}   target <= 80")
        print(
            f"{'node with digits after the load, MB RSS':42s} {alpha.rss_mb:8.1f}   target <= 130"
        )


def _served(node: MeshNode) -> bool:
    models = node.control.get("/mesh/v1/models")
    return any(replica["state"] == "ready" for model in models for replica in model["replicas"])


if __name__ == "__main__":
    main()
