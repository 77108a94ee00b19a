"""Requests per second and latency of digits, served locally and one hop away.

    make bench            or  python -m bench.serving [--seconds 5] [--rounds 3]

Every server runs in the same run, interleaved, under the same load generator on the same machine,
so only ratios mean something. What the ratios are to reach is in docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.load import LoadResult, generator, load
from bench.nodes import MeshNode, end_on_sigterm, free_port, is_ready, node, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = (1, 8, 64)
_IMAGE = [round((index * 7 % 17) / 16, 4) for index in range(64)]
BARE_BODY = json.dumps({"inputs": _IMAGE}, separators=(",", ":")).encode()
OIP_BODY = json.dumps(
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


@contextlib.contextmanager
def _peer(mode: str, backend: int | None = None) -> Iterator[int]:
    port = free_port()
    extra = [] if backend is None else [str(backend)]
    with running("-m", "bench.peers", mode, str(port), *extra) as process:
        wait_for(port, process)
        yield port


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
            Server("raw protocol + ORT", raw, "/", BARE_BODY),
            Server("aiohttp + ORT", bare, "/", BARE_BODY),
            Server("meshnode, local", nodes["alpha"].port, infer, OIP_BODY),
            Server("raw proxy -> raw", raw_proxy, "/", BARE_BODY),
            Server("aiohttp proxy -> aiohttp", proxy, "/", BARE_BODY),
            Server("meshnode, one hop", nodes["beta"].port, infer, OIP_BODY),
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
    end_on_sigterm()
    with (
        tempfile.TemporaryDirectory(prefix="meshnode-bench-") as text,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(text)
        alpha = stack.enter_context(node(folder, "alpha", "--new"))
        invite = str(alpha.control.post("/mesh/v1/invites", {"ttl_s": 600})["invite"])
        beta = stack.enter_context(node(folder, "beta", invite))
        model = Path(__file__).parent.parent / "examples" / "digits" / "digits.onnx"
        alpha.control.post(
            "/mesh/v1/deployments",
            {"path": str(model), "name": "digits", "replicas": 1, "on": ["alpha"]},
        )
        while not is_ready(beta.control):
            time.sleep(0.05)
        with _servers({"alpha": alpha, "beta": beta}) as servers:
            _measure(servers, options.rounds, options.seconds)
        _report(servers)
        label = "node with digits after the load, MB RSS"
        print(f"{label:42s} {alpha.rss_mb:8.1f}   target <= 130")


if __name__ == "__main__":
    main()
