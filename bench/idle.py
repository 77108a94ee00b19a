"""What a node costs that does nothing, and how soon it answers.

    make bench-idle       or  python -m bench.idle [--members 30] [--seconds 30] [--json]

First answers, memory, CPU among many members, and the start of the client library and the command
line; next to bare servers in the same run, since other machines and other days differ by half.
Everything runs on loopback and away from real meshes, and every process is ended by its id at the
end, also after Ctrl-C or an error. What the figures are to reach is in docs/BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench.nodes import (
    START_LIMIT_S,
    MeshNode,
    end_on_sigterm,
    free_port,
    join_arguments,
    node,
    running,
)
from bench.serving import BARE_BODY, OIP_BODY

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path("bench-results") / "idle.json"
SETTLE_S = 8.0
"""After the start: the machine's speed has been measured, and timers have found their pace."""

MESH_SETTLE_S = 25.0
"""Links between many members become idle when nothing was asked on them for sixteen seconds."""

_DIGITS = Path(__file__).parent.parent / "examples" / "digits" / "digits.onnx"
_INFER = "/v2/models/digits/infer"
_LIVE = "/v2/health/live"


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        label: What was measured, with its unit.
        value: The figure.
        target: At most this, now; None for what is only there to compare with.
        then: At most this, later.
    """

    label: str
    value: float
    target: float | None = None
    then: float | None = None

    def __str__(self) -> str:
        line = f"{self.label:57s} {self.value:8.2f}"
        for word, target in (("target", self.target), ("then", self.then)):
            if target is not None:
                verdict = "ok" if self.value <= target else "missed"
                line += f"   {word} <= {target:g} {verdict}"
        return line


@dataclass(frozen=True)
class Server:
    """Something that is started and asked until it answers.

    Attributes:
        name: What the report calls it.
        arguments: What starts it, for Python, given a folder of its own and its port.
        asked: (path, body or None for a GET), in the order in which answers are waited for.
    """

    name: str
    arguments: Callable[[Path, int], list[str]]
    asked: tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True)
class Memory:
    """What a process holds, in megabytes; `own_mb` without pages that it shares with others."""

    rss_mb: float
    own_mb: float


def _mesh_node(folder: Path, port: int) -> list[str]:
    return join_arguments(folder, "alone", "--new", http=f"127.0.0.1:{port}")


def _mesh_node_with_digits(folder: Path, port: int) -> list[str]:
    repository = folder / "models"
    (repository / "digits" / "1").mkdir(parents=True)
    shutil.copy(_DIGITS, repository / "digits" / "1" / "model.onnx")
    return [*_mesh_node(folder, port), "--models", str(repository)]


SERVERS = (
    Server("bare aiohttp", lambda _, port: ["-m", "bench.bare", str(port)], (("/", None),)),
    Server("meshnode", _mesh_node, ((_LIVE, None),)),
    Server(
        "aiohttp + ORT with digits",
        lambda _, port: ["-m", "bench.peers", "aiohttp", str(port)],
        (("/", BARE_BODY),),
    ),
    Server("meshnode with digits", _mesh_node_with_digits, ((_LIVE, None), (_INFER, OIP_BODY))),
)


# First answers and memory


@dataclass(frozen=True)
class Start:
    """One start: seconds until each answer, CPU seconds until the last, memory after a pause."""

    answers_s: tuple[float, ...]
    cpu_s: float
    memory: Memory


def start(server: Server, settle_s: float = SETTLE_S) -> Start:
    """Start a server, ask until it has answered everything, and look at its memory."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="meshnode-bench-") as text:
        arguments = server.arguments(Path(text), port)
        began = time.perf_counter()
        with running(*arguments, quiet=True) as process:
            answers_s = []
            for path, body in server.asked:
                _ask_until_answered(process, port, path, body)
                answers_s.append(time.perf_counter() - began)
            cpu_s = _cpu_s(process.pid)
            time.sleep(settle_s)
            return Start(tuple(answers_s), cpu_s, memory_of(process.pid))


def _ask_until_answered(
    process: subprocess.Popen[bytes], port: int, path: str, body: bytes | None
) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        if _answers(port, path, body):
            return
        time.sleep(0.005)
    raise RuntimeError(f"{process.args!r} did not answer {path} in {START_LIMIT_S:g} s")


def _answers(port: int, path: str, body: bytes | None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == 200


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def memory_of(pid: int) -> Memory:
    """Return what a process holds now."""
    info = psutil.Process(pid).memory_full_info()
    return Memory(info.rss / 1e6, info.uss / 1e6)


def measure_starts(rounds: int) -> list[Figure]:
    """Start every server `rounds` times, in turns; medians."""
    starts: dict[str, list[Start]] = {server.name: [] for server in SERVERS}
    for _ in range(rounds):
        for server in SERVERS:
            starts[server.name].append(start(server))
            _progress(f"started {server.name}")
    figures = []
    for server in SERVERS:
        index = len(server.asked) - 1
        seconds = statistics.median(each.answers_s[index] for each in starts[server.name])
        targets = (1.5, 0.8) if server.name.startswith("meshnode") else (None, None)
        what = "first inference" if "digits" in server.name else "first answer"
        figures.append(Figure(f"{what} after start, s: {server.name}", seconds, *targets))
        cpu_s = statistics.median(each.cpu_s for each in starts[server.name])
        figures.append(Figure("  of that on a core, s", cpu_s))
    targets_mb = {"meshnode": (80.0, 70.0), "meshnode with digits": (130.0, 110.0)}
    for server in SERVERS:
        rss_mb = statistics.median(each.memory.rss_mb for each in starts[server.name])
        own_mb = statistics.median(each.memory.own_mb for each in starts[server.name])
        both = targets_mb.get(server.name, (None, None))
        figures.append(Figure(f"idle memory, MB RSS: {server.name}", rss_mb, *both))
        figures.append(Figure("  of that not shared, MB USS", own_mb))
    return figures


# Many members


def measure_mesh(members: int, seconds: float) -> list[Figure]:
    """Run a mesh of idle daemons; how much CPU and memory each of them takes."""
    with (
        tempfile.TemporaryDirectory(prefix="meshnode-bench-") as text,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(text)
        founder = stack.enter_context(node(folder, "n0", "--new", quiet=True))
        time.sleep(SETTLE_S)
        alone_mb = memory_of(founder.pid).rss_mb
        invite = str(founder.control.post("/mesh/v1/invites", {"ttl_s": 3600})["invite"])
        nodes = [founder]
        for index in range(1, members):
            nodes.append(stack.enter_context(node(folder, f"n{index}", invite, quiet=True)))
            _progress(f"{len(nodes)} of {members} members")
        _wait_until_all_see(nodes)
        _progress(f"settling for {MESH_SETTLE_S:g} s")
        time.sleep(MESH_SETTLE_S)
        _progress(f"measuring for {seconds:g} s")
        percent = cpu_percent([each.pid for each in nodes], seconds)
        memory_mb = [memory_of(each.pid).rss_mb for each in nodes]
    mean_mb = statistics.mean(memory_mb)
    grown_kb = (memory_mb[0] - alone_mb) * 1e3 / max(1, members - 1)
    return [
        Figure(
            f"idle CPU with {members} members, % of a core: mean", statistics.mean(percent), 0.5
        ),
        Figure("  median node", statistics.median(percent), 0.5),
        Figure("  busiest node", max(percent)),
        Figure(f"memory with {members} members, MB RSS: mean", mean_mb),
        Figure("  of the first node, KB for each further member", grown_kb),
    ]


def _wait_until_all_see(nodes: list[MeshNode]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if all(len(each.control.get("/mesh/v1/nodes")) == len(nodes) for each in nodes):
            return
        time.sleep(0.5)
    raise RuntimeError(f"not all of {len(nodes)} nodes saw each other in {START_LIMIT_S:g} s")


def cpu_percent(pids: list[int], seconds: float) -> list[float]:
    """Return each process's use of one core over the next `seconds`, in percent."""
    before = [_cpu_s(pid) for pid in pids]
    began = time.perf_counter()
    time.sleep(seconds)
    took = time.perf_counter() - began
    return [100 * (_cpu_s(pid) - used) / took for pid, used in zip(pids, before, strict=True)]


# The client library and the command line


def measure_commands(rounds: int) -> list[Figure]:
    """Run short commands in turns; medians of their wall time, the bare interpreter's beside it."""
    with (
        tempfile.TemporaryDirectory(prefix="meshnode-bench-") as text,
        node(Path(text), "alone", "--new", quiet=True),
    ):
        folder = str(Path(text) / "alone")
        commands = {
            "python": ["-c", "pass"],
            "client": ["-c", "from meshnode import MeshClient"],
            "version": ["-m", "meshnode", "--version"],
            "nodes": ["-m", "meshnode", "nodes", "--data-dir", folder],
        }
        took_ms: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, arguments in commands.items():
                took_ms[name].append(_run_ms(arguments))
            _progress("commands")
    wall_ms = {name: statistics.median(wall for wall, _ in each) for name, each in took_ms.items()}
    cpu_ms = {name: statistics.median(cpu for _, cpu in each) for name, each in took_ms.items()}
    on_top = "from meshnode import MeshClient, ms on top"
    return [
        Figure("python -c pass, ms", wall_ms["python"]),
        Figure(on_top, wall_ms["client"] - wall_ms["python"], 150),
        Figure("  of that on a core, ms", cpu_ms["client"] - cpu_ms["python"]),
        Figure("meshnode --version, ms", wall_ms["version"]),
        Figure("  of that on a core, ms", cpu_ms["version"]),
        Figure("meshnode nodes, ms", wall_ms["nodes"]),
        Figure("  of that on a core, ms", cpu_ms["nodes"]),
    ]


def _run_ms(arguments: list[str]) -> tuple[float, float]:
    """Run this Python; return its wall time and CPU time (0 on Windows) in milliseconds."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall_s, after = time.perf_counter() - began, os.times()
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of children that have ended
    return wall_s * 1e3, cpu_s * 1e3


def _progress(text: str) -> None:
    print(f"\r{text:50s}", end="\r", file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="starts, and commands twice as often")
    parser.add_argument("--members", type=int, default=30, help="0 leaves the mesh out")
    parser.add_argument("--seconds", type=float, default=30.0, help="of idling that are measured")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS} too")
    options = parser.parse_args()
    end_on_sigterm()
    figures = measure_starts(options.rounds)
    figures += measure_commands(2 * options.rounds + 1)
    if options.members:
        figures += measure_mesh(options.members, options.seconds)
    _progress("")
    print()
    for figure in figures:
        print(figure)
    if options.json:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
