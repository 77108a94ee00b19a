"""Faults of the network under the load of `bench.failover`: each node is a device of its own on one bridge.

Requests go through the gateways' control sockets, which are files, so that the load runs outside of the network that
is broken.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.failover_fleet import (
    GATEWAYS,
    MODELS,
    PACED,
    PLAYED,
    SERVERS,
    WARM_UP_S,
    Body,
    Row,
    watched,
)
from bench.failover_load import Gateway, SteadyLoad
from bench.failover_streams import broken_streams
from bench.nodes import SETTLE_S
from meshnode.client.control import SOCKET_NAME
from tests.network.devices import Network, poll, why_not_here
from tests.network.lan import Host, Lan, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LONG_S: Final = 8.0

MENDED_S: Final = 12.0
"""After a fault: by then lost segments are sent again, and links that were given up are new."""

_MANGLED: Final = """table inet block {
    chain output {
        type filter hook output priority mangle;
        ip protocol tcp tcp flags & psh == psh @ih,64,8 set 0x5a
    }
}"""
"""Writes one byte of each segment that leaves: TLS sees that its records are not what was sent."""


def _others(hosts: list[Host], one: Host) -> str:
    return ", ".join(each.address for each in hosts if each is not one)


def _hears_nobody(victim: Host, others: str) -> None:
    victim.block(f"ip saddr {{ {others} }} drop")


def _is_not_heard(victim: Host, others: str) -> None:
    victim.block_out(f"ip daddr {{ {others} }} drop")


def _both_ways(victim: Host, others: str) -> None:
    _hears_nobody(victim, others)
    _is_not_heard(victim, others)


def _reset(victim: Host, _others: str) -> None:
    victim.block("meta l4proto tcp reject with tcp reset")


def _changed(victim: Host, _others: str) -> None:
    victim.device.nft(_MANGLED)


FAULTS: Final[dict[str, Callable[[Host, str], None]]] = {
    "all packets of a node dropped": _both_ways,
    "one-way: a node hears nobody": _hears_nobody,
    "one-way: nobody hears a node": _is_not_heard,
    "connections of a node reset": _reset,
    "bytes of a node changed": _changed,
}


def broken_network(rate: float, only: Sequence[str]) -> list[Row]:
    """Break the lines of a serving node, one way after the other, and print what clients noticed.

    Args:
        rate: Requests per second.
        only: `load`, `streams` or both; empty for both.

    Raises:
        SystemExit: if this machine can have no such devices, with the reason.
    """
    if (reason := why_not_here()) is not None:
        raise SystemExit(f"the network cannot be broken here: {reason}")
    with (
        tempfile.TemporaryDirectory(prefix="lan-") as folder,
        Network(Path(folder), environment()) as network,
    ):
        lan = Lan(network)
        try:
            hosts = lan.add(*GATEWAYS, *SERVERS)
            first, *others = hosts
            first.join("--new", "--allow-code").ready()
            for host in others:
                models = ["--models", str(MODELS)] if host.name in SERVERS else []
                host.join(first.invite(), "--allow-code", *models)
            for host in others:
                host.ready()
            lan.wait_whole()
            gateways = hosts[: len(GATEWAYS)]
            for each in gateways:
                poll(lambda each=each: _ready(each), 60, "the replicas are ready")
            time.sleep(SETTLE_S)
            return asyncio.run(_play(hosts, rate, only))
        finally:
            lan.close()


def _ready(gateway: Host) -> bool:
    ready = {
        (model["name"], replica["node"])
        for model in gateway.client.get("/mesh/v1/models")
        for replica in model["replicas"]
        if replica["state"] == "ready"
    }
    return ready >= {(model, server) for model in PLAYED for server in SERVERS}


async def _play(hosts: list[Host], rate: float, only: Sequence[str]) -> list[Row]:
    gateways = [
        Gateway("http://localhost", str(host.data_dir / SOCKET_NAME))
        for host in hosts[: len(GATEWAYS)]
    ]
    rows: list[Row] = []

    def told(*found: Row) -> None:
        for row in found:
            print(row, flush=True)
            rows.append(row)

    async with SteadyLoad(gateways, PACED, Body(), rate):
        await asyncio.sleep(WARM_UP_S)
    if not only or "load" in only:
        for fault in FAULTS:
            told(await _under_load(hosts, fault, gateways, rate))
    if not only or "streams" in only:
        for fault in FAULTS:
            told(*await _in_streams(hosts, fault, gateways))
    return rows


async def _under_load(hosts: list[Host], fault: str, gateways: list[Gateway], rate: float) -> Row:
    victim = next(host for host in hosts if host.name == SERVERS[0])
    async with watched(gateways, rate) as seen:
        await asyncio.to_thread(FAULTS[fault], victim, _others(hosts, victim))
        await asyncio.sleep(LONG_S)
        await asyncio.to_thread(victim.unblock)
    await asyncio.sleep(MENDED_S)
    return seen.row(fault, "0 errors, <= 1 s", worst_ms=1000)


async def _in_streams(hosts: list[Host], fault: str, gateways: list[Gateway]) -> list[Row]:
    broken: list[Host] = []

    async def break_it(name: str) -> None:
        broken.append(next(host for host in hosts if host.name == name))
        await asyncio.to_thread(FAULTS[fault], broken[0], _others(hosts, broken[0]))

    async def mend() -> None:
        await asyncio.to_thread(broken.pop().unblock)
        await asyncio.sleep(MENDED_S)

    return await broken_streams(f"{fault}, k-th number", gateways, break_it, mend)
