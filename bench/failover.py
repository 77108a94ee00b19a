"""What clients notice when a node, a process or a line fails: real daemons, real faults, a steady load.

    make bench-failover      or  python -m bench.failover [--only kill,freeze] [--rate 200] [--network]

Two gateways that serve nothing and three nodes that serve; half of the requests go to each gateway, when they are
due, whatever becomes of those before. Each row breaks one thing while they come, mends it, and says what clients
saw. Figures to reach are those of docs/BENCHMARKS.md. Faults of the network (`--network`, in `bench.failover_network`) need
root on Linux: each node is a network namespace there.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil

from bench.failover_answers import broken_models, upstream_answers
from bench.failover_fleet import (
    BEFORE_S,
    HEADER,
    PACED,
    SLEEP_MS,
    WARM_UP_S,
    Body,
    Fleet,
    Row,
    paced,
    watched,
)
from bench.failover_load import Gateway, SteadyLoad, ask, between
from bench.failover_streams import broken_streams
from bench.nodes import SETTLE_S, end_on_sigterm
from meshnode.client.async_mesh import AsyncMeshClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS: Final = Path("bench-results") / "failover.json"
NETWORK_RESULTS: Final = Path("bench-results") / "failover-network.json"
DOWN_S: Final = 60.0


async def kill(fleet: Fleet, rate: float) -> Row:
    """A serving node is killed."""
    async with watched(fleet.gateways(), rate) as seen:
        await asyncio.to_thread(fleet.kill, "serve-1")
        await asyncio.sleep(5)
    await _back(fleet, "serve-1")
    return seen.row("SIGKILL of a serving node", "0 errors, p99 +50 ms", added_ms=50)


async def freeze(fleet: Fleet, rate: float) -> Row:
    """A serving node accepts everything and says nothing."""
    async with watched(fleet.gateways(), rate) as seen:
        fleet.signal("serve-1", signal.SIGSTOP)
        await asyncio.sleep(8)
        fleet.signal("serve-1", signal.SIGCONT)
    late = between(seen.load.records, seen.broke_s + 1, seen.mended_s)
    slow = [each for each in late if each.took_s > 0.3]
    await asyncio.sleep(3)
    return seen.row(
        "SIGSTOP of a serving node",
        "0 errors, <= 1 s, then one per gateway and probe",
        worst_ms=1000,
        fine=len(slow) <= 2 * 8,
        notes=f"{len(slow)} slow after the first second",
    )


async def frozen_run(fleet: Fleet, requests: int = 1500, connections: int = 16) -> Row:
    """As many requests as fast as they go, with a node frozen and without it."""
    fleet.signal("serve-1", signal.SIGSTOP)
    frozen_s, failed = await _closed_loop(fleet, requests, connections)
    fleet.signal("serve-1", signal.SIGCONT)
    await asyncio.to_thread(fleet.kill, "serve-1")
    await asyncio.sleep(3)
    absent_s, failed_absent = await _closed_loop(fleet, requests, connections)
    await _back(fleet, "serve-1")
    ratio = frozen_s / absent_s
    return Row(
        "a run with a frozen node", 2 * requests, failed + failed_absent, 0, 0, frozen_s * 1000,
        f"{frozen_s:.1f} s frozen, {absent_s:.1f} s absent: {ratio:.2f}x",
        "<= 1.1x of without it", ratio <= 1.1 and not failed,
    )  # fmt: skip


async def _closed_loop(fleet: Fleet, requests: int, connections: int) -> tuple[float, int]:
    left, failed = requests, 0

    async def client(gateway: Gateway) -> None:
        nonlocal left, failed
        async with gateway.session() as session:
            while left > 0:
                left -= 1
                failed += not (await ask(session, PACED, paced())).ok

    gateways = fleet.gateways()
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(connections):
            group.create_task(client(gateways[number % len(gateways)]))
    return time.monotonic() - began, failed


async def flap(fleet: Fleet, rate: float) -> Row:
    """A serving node freezes for a second, again and again."""
    async with watched(fleet.gateways(), rate) as seen:
        for _ in range(5):
            fleet.signal("serve-1", signal.SIGSTOP)
            await asyncio.sleep(1)
            fleet.signal("serve-1", signal.SIGCONT)
            await asyncio.sleep(1)
    during = between(seen.load.records, seen.broke_s, seen.mended_s)
    failed = sum(bool(each.failed_over) for each in during)
    share = failed / len(during)
    await asyncio.sleep(3)
    return seen.row(
        "a node that freezes each second", "0 errors, <= 1 s",
        worst_ms=1000, notes=f"failed attempts {share:.1%}",
    )  # fmt: skip


async def come_back(fleet: Fleet, rate: float, down_s: float = DOWN_S) -> Row:
    """A serving node is down for a while, and comes back."""
    async with watched(fleet.gateways(), rate) as seen:
        await asyncio.to_thread(fleet.kill, "serve-1")
        await asyncio.sleep(down_s)
        started_s = time.monotonic()
        await asyncio.to_thread(fleet.start, "serve-1")
        await asyncio.to_thread(fleet.wait_ready)
        ready_s = time.monotonic()
        await asyncio.sleep(6)
    there = [
        each.sent_s
        for each in seen.load.records
        if each.node == "serve-1" and each.sent_s > seen.broke_s + 1
    ]
    first_s = min(there, default=ready_s + 99)
    after_s = max(0.0, first_s - ready_s)
    return seen.row(
        f"a node down for {down_s:.0f} s, and back", "0 errors, traffic within 5 s",
        fine=after_s <= 5, notes=f"traffic {after_s:.1f} s after it was ready, {first_s - started_s:.1f} s after its start",
    )  # fmt: skip


async def gateway(fleet: Fleet, rate: float) -> Row:
    """The gateway in use is killed; clients know two."""
    urls = [each.url for each in fleet.gateways()]
    times: list[tuple[float, float]] = []
    failures: list[str] = []
    streams: list[str] = []
    sleep_ms = np.array([SLEEP_MS], np.float32)
    count = np.array([150], np.int32)
    ends_s = time.monotonic() + BEFORE_S + 6

    async def one(client: AsyncMeshClient) -> None:
        began = time.monotonic()
        try:
            await client.infer("paced", {"sleep_ms": sleep_ms})
        except MeshError as error:
            failures.append(f"{error.code}: {error}")
        times.append((began, time.monotonic() - began))

    async def stream(client: AsyncMeshClient) -> None:
        numbers = []
        try:
            async for part in client.stream("numbers", {"count": count}):
                numbers += [int(each) for each in np.ravel(part["number"])]
        except MeshError as error:
            streams.append(f"{error.code} after {len(numbers)}: {error}")
        else:
            streams.append("exact" if numbers == list(range(150)) else f"wrong: {len(numbers)}")

    async with AsyncMeshClient(urls) as client, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(stream(client))
        broke_s = time.monotonic() + BEFORE_S / 2
        killed = False
        while time.monotonic() < ends_s:
            group.create_task(one(client))
            await asyncio.sleep(1 / rate)
            if not killed and time.monotonic() >= broke_s:
                killed = True
                await asyncio.to_thread(fleet.kill, "gate-1")
    await asyncio.to_thread(fleet.start, "gate-1")
    await asyncio.to_thread(fleet.wait_ready)
    before = [took for sent, took in times if sent < broke_s - 0.2]
    after = [took for sent, took in times if sent >= broke_s - 0.2]
    exact = streams.count("exact")
    words = Counter(each.partition(":")[0] for each in failures)
    return Row(
        "SIGKILL of the gateway in use", len(times), len(failures),
        float(np.quantile(before, 0.99)) * 1000, float(np.quantile(after, 0.99)) * 1000,
        max(after) * 1000,
        f"streams exact: {exact} of {len(streams)} {[each for each in streams if each != 'exact']} {dict(words) or ''}",
        "0 errors, streams exact", not failures and exact == len(streams),
    )  # fmt: skip


async def cut_streams(fleet: Fleet) -> list[Row]:
    """The node of a stream, or only its models' processes, is lost after the k-th number."""
    gateways = fleet.gateways()
    lost: list[str] = []
    stopped: list[psutil.Process] = []

    async def kill_node(name: str) -> None:
        lost.append(name)
        await asyncio.to_thread(fleet.kill, name)

    async def replace_node() -> None:
        await _back(fleet, lost.pop())

    async def stop_node(name: str) -> None:
        lost.append(name)
        fleet.signal(name, signal.SIGSTOP)

    async def go_on() -> None:
        fleet.signal(lost.pop(), signal.SIGCONT)
        await asyncio.sleep(5)

    async def stop_workers(name: str) -> None:
        stopped.extend(fleet.workers(name))
        for each in stopped:
            each.suspend()

    async def wake_workers() -> None:
        for each in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.resume()
        stopped.clear()
        await asyncio.sleep(5)
        await asyncio.to_thread(fleet.wait_ready)

    return [
        *await broken_streams("SIGKILL after the k-th number", gateways, kill_node, replace_node),
        *await broken_streams("SIGSTOP after the k-th number", gateways, stop_node, go_on),
        *await broken_streams(
            "a model's process stalls there", gateways, stop_workers, wake_workers
        ),
    ]


async def _back(fleet: Fleet, name: str) -> None:
    await asyncio.to_thread(fleet.start, name)
    await asyncio.to_thread(fleet.wait_ready)
    await asyncio.sleep(2)


async def _rows(fleet: Fleet, rate: float, only: Sequence[str]) -> list[Row]:
    """Break one thing after the other, and print what clients noticed."""
    rows: list[Row] = []
    async with SteadyLoad(fleet.gateways(), PACED, Body(), rate):
        await asyncio.sleep(WARM_UP_S)

    def told(*found: Row) -> None:
        for row in found:
            print(row, flush=True)
            rows.append(row)

    for name, play in STEADY.items():
        if not only or name in only:
            told(await play(fleet, rate))
    if not only or "run" in only:
        told(await frozen_run(fleet))
    if not only or "model" in only:
        told(*await broken_models(fleet, rate))
    if not only or "answers" in only:
        told(*await upstream_answers(fleet))
    if not only or "stream" in only:
        told(*await cut_streams(fleet))
    return rows


STEADY: Final = {
    "kill": kill,
    "freeze": freeze,
    "flap": flap,
    "back": come_back,
    "gateway": gateway,
}
NAMES: Final = (*STEADY, "run", "model", "answers", "stream")
NETWORK_NAMES: Final = ("load", "streams")


def main() -> int:
    """Break, print, and write `bench-results/failover.json`; 1 if something was not reached."""
    parser = argparse.ArgumentParser(prog="bench.failover", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only",
        default="",
        help=f"comma-separated: {', '.join(NAMES)}; with --network {', '.join(NETWORK_NAMES)}",
    )
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument(
        "--network", action="store_true", help="the faults of the network instead (root, Linux)"
    )
    asked = parser.parse_args()
    names = NETWORK_NAMES if asked.network else NAMES
    only = [word for word in asked.only.split(",") if word]
    if unknown := set(only) - set(names):
        parser.error(f"there is no {min(unknown)!r}; there are {', '.join(names)}")
    end_on_sigterm()
    print(HEADER)
    if asked.network:
        from bench.failover_network import broken_network  # needs root, Linux and programs

        rows = broken_network(asked.rate, only)
    else:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            fleet = Fleet(Path(folder))
            stack.callback(fleet.close)
            fleet.start_all()
            time.sleep(SETTLE_S)
            rows = asyncio.run(_rows(fleet, asked.rate, only))
    results = NETWORK_RESULTS if asked.network else RESULTS
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
