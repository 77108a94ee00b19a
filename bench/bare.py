"""The smallest aiohttp server: what memory and start cost before anything of ours is there.

python -m bench.bare PORT
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web


async def _serve(port: int) -> None:
    async def handle(_: web.BaseRequest) -> web.Response:
        return web.Response(text="ok")

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
