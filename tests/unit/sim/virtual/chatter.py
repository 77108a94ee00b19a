"""A small world with everything in it that could make two runs differ."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from meshnode.sim.impairments import Impairment
from meshnode.sim.virtual.connector import VirtualConnector
from meshnode.sim.virtual.loop import VirtualLoop
from meshnode.sim.virtual.tls import StandInContext

if TYPE_CHECKING:
    from meshnode.sim.virtual.host import VirtualHost

HOSTS = 5


def chatter(seed: int) -> str:
    """Let five hosts talk by HTTP, TLS and datagrams through faults; return the hash of what came."""
    loop = VirtualLoop(seed)
    loop.set_exception_handler(lambda _loop, _context: None)
    hosts = [loop.add_host(f"host-{n}", f"region-{n % 3}") for n in range(HOSTS)]
    for host in hosts:
        host.run(_live(host, random.Random(f"{seed}/node/{host.name}/1")))
    loop.network.impair(Impairment(loss=0.1, duplication=0.1), ["host-1"], ["host-2", "host-3"])
    loop.after(4, hosts[1].freeze)
    loop.after(6, hosts[1].thaw)
    loop.after(5, hosts[4].crash)
    loop.after(5, lambda: loop.network.cut(["host-0"], ["host-3"]))
    loop.run_for(12)
    digest = loop.trace.digest()
    loop.close()
    return digest


async def _live(host: VirtualHost, rng: random.Random) -> None:
    loop = asyncio.get_running_loop()
    app = web.Application()
    app.router.add_post("/", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", 8080).start()
    tls = StandInContext(host.name.encode(), server_side=True)
    await asyncio.start_server(_greet, "0.0.0.0", 8443, ssl=tls)
    transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("0.0.0.0", 7000))
    async with aiohttp.ClientSession(connector=VirtualConnector()) as session:
        while True:
            others = {
                asyncio.create_task(_talk(session, f"host-{number}", rng.randrange(5000)))
                for number in range(HOSTS)
            }
            done, late = await asyncio.wait(others, timeout=1.0)
            for task in done:
                transport.sendto(str(task.result()).encode(), ("10.0.0.1", 7000))
            for task in late:
                task.cancel()
            await asyncio.sleep(rng.random())


async def _talk(session: aiohttp.ClientSession, name: str, size: int) -> int:
    try:
        reader, writer = await asyncio.open_connection(name, 8443, ssl=StandInContext())
        heard = len(await reader.read())
        writer.close()
        async with session.post(f"http://{name}:8080/", data=b"x" * size) as answer:
            return heard + len(await answer.read())
    except (OSError, aiohttp.ClientError):
        return 0


async def _answer(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def _greet(_: asyncio.StreamReader, writer: Any) -> None:
    writer.write(b"hello")
    writer.close()
