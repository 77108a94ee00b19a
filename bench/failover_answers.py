"""Answers that are errors: of a model on one node, and of an HTTP server in front of a client that knows another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import aiohttp
import numpy as np
from aiohttp import web

from bench.failover_fleet import SLEEP_MS, Body, Row, watched
from bench.failover_load import between, p99_ms
from bench.nodes import free_port
from meshnode.client.async_mesh import AsyncMeshClient
from meshnode.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from bench.failover_fleet import Fleet, Watched
    from bench.failover_load import Record

SLOW_MS: Final = 2500.0
AVOIDED_AFTER_S: Final = 2.0
"""By then a node that fails or is slow gets no more than probes."""

CALLS: Final = 100


async def broken_models(fleet: Fleet, rate: float) -> list[Row]:
    """The model on one node fails or is slow: always, once, or by the fault of its callers."""
    return [
        await _always(fleet, rate),
        await _once(fleet, rate),
        await _blames(fleet, rate),
        await _slow(fleet, rate),
    ]


@contextlib.asynccontextmanager
async def _bad(fleet: Fleet, rate: float, **how: object) -> AsyncIterator[Watched]:
    """Load the gateways, and let the model's processes on one node do `how` for a while."""
    pids = ",".join(str(each.pid) for each in fleet.workers("serve-1"))
    body = Body()
    async with watched(fleet.gateways(), rate, body) as seen:
        body.parameters = {"bad_pids": pids, **how}
        yield seen
        await asyncio.sleep(5)
    await asyncio.sleep(3)


def _share(records: Sequence[Record], count: int) -> float:
    return count / max(1, len(records))


async def _always(fleet: Fleet, rate: float) -> Row:
    async with _bad(fleet, rate, how="INTERNAL") as seen:
        pass
    late = between(seen.load.records, seen.broke_s + AVOIDED_AFTER_S, seen.mended_s)
    failed = [each for each in late if each.failed_over]
    first = sum(bool(each.failed_over) for each in seen.load.records)
    share = _share(late, len(failed))
    return seen.row(
        "a model that always fails on a node (500, 503)", "0 errors: failed over, then <= 1 % tried there",
        fine=first > 0 and share <= 0.01,
        notes=f"{first} failed over, {share:.1%} of those after {AVOIDED_AFTER_S:g} s",
    )  # fmt: skip


async def _once(fleet: Fleet, rate: float) -> Row:
    async with _bad(fleet, rate, how="INTERNAL", once=f"{time.monotonic()}") as seen:
        pass
    during = between(seen.load.records, seen.broke_s, seen.mended_s)
    failed = [each for each in seen.load.records if each.failed_over]  # some were due before
    again = sum(each.node == "serve-1" for each in during)
    return seen.row(
        "500 once by each of a node's processes", "0 errors: tried once more, nobody avoided",
        added_ms=50, fine=0 < len(failed) <= 2 and again > 0.05 * len(during),
        notes=f"{len(failed)} tried again; that node answered {_share(during, again):.0%}",
    )  # fmt: skip


async def _blames(fleet: Fleet, rate: float) -> Row:
    async with _bad(fleet, rate, how="INVALID_ARG") as seen:
        pass
    during = between(seen.load.records, seen.broke_s, seen.mended_s)
    blamed = [each for each in during if each.status == 400]
    others = [each for each in during if each.status not in (200, 400)]
    again = sum(bool(each.failed_over) for each in blamed)
    last = between(during, seen.mended_s - 2, seen.mended_s)
    share = _share(last, sum(each.status == 400 for each in last))
    return Row(
        "400 by a node's model", len(during), len(others), 0, p99_ms(during), 0,
        f"{len(blamed)} answered with 400, {again} tried again; {share:.0%} of the last: not avoided",
        "passed on unretried, nobody avoided", not others and not again and share > 0.1,
    )  # fmt: skip


async def _slow(fleet: Fleet, rate: float) -> Row:
    async with _bad(fleet, rate, bad_ms=SLOW_MS) as seen:
        pass
    late = between(seen.load.records, seen.broke_s + AVOIDED_AFTER_S, seen.mended_s)
    slow = [each for each in late if each.took_s > 1]
    share = _share(late, len(slow))
    return seen.row(
        f"first byte {SLOW_MS / 1000:g} s late on a node", "0 errors; <= 1 % slow after 2 s",
        fine=share <= 0.01, notes=f"{len(slow)} slow after {AVOIDED_AFTER_S:g} s: {share:.1%}",
    )  # fmt: skip


class Upstream:
    """An HTTP server that answers as told, and passes on what it is not told about.

    Attributes:
        url: Where it is.
        script: Answers to give, the next first: status, headers, body.
        always: The answer to all, instead; None for none.
        asked: How many inferences came.
    """

    def __init__(self, behind: str) -> None:
        """Pass on to a gateway's URL."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self.script: list[tuple[int, dict[str, str], str]] = []
        self.always: tuple[int, dict[str, str], str] | None = None
        self.asked = 0
        self._behind = behind

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Upstream]:
        """Serve within the block."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(self.url.rpartition(":")[2])).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.method == "POST":
            self.asked += 1
            said = self.always or (self.script.pop(0) if self.script else None)
            if said is not None:
                status, headers, text = said
                return web.Response(status=status, headers=headers, text=text)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in ("host", "content-length")
        }
        async with (
            aiohttp.ClientSession(self._behind, auto_decompress=False) as session,
            session.request(request.method, request.path_qs, headers=headers, data=body) as answer,
        ):
            kept = {
                name: value
                for name, value in answer.headers.items()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            }
            return web.Response(status=answer.status, headers=kept, body=await answer.read())


def _json(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], str]:
    marks = {"Content-Type": "application/json", "Mesh-Error": code}
    marks |= {name.replace("_", "-"): value for name, value in headers.items()}
    return status, marks, f'{{"error": "as the bench wants it", "code": "{code}"}}'


async def upstream_answers(fleet: Fleet) -> list[Row]:
    """What the client library makes of an upstream's errors, alone or beside a gateway."""
    gateway = fleet.gateways()[0].url
    async with Upstream(gateway).serving() as upstream:
        rows = []
        upstream.script = [_json(429, "saturated", Retry_After="1")]
        ended, took_s = await _calls([upstream.url], 1)
        rows.append(
            Row(
                "upstream: 429 with Retry-After", 1, 1 - ended.count("ok"), 0, 0, took_s * 1000,
                f"asked again after {took_s:.1f} s", "asked again after its second, not before",
                ended == ["ok"] and 1.0 <= took_s <= 2.0 and upstream.asked == 2,
            )
        )  # fmt: skip
        upstream.asked, upstream.always = 0, _json(503, "shutting_down")
        ended, took_s = await _calls([upstream.url, gateway], CALLS)
        rows.append(
            Row(
                "upstream: 503 persistent", CALLS, CALLS - ended.count("ok"), 0, 0, 0,
                f"asked there {upstream.asked} times", "failed over: 0 errors",
                ended.count("ok") == CALLS,
            )
        )  # fmt: skip
        upstream.asked, upstream.always = 0, _json(400, "invalid_request")
        ended, took_s = await _calls([upstream.url, gateway], 1)
        rows.append(
            Row(
                "upstream: 400", 1, 0, 0, 0, took_s * 1000,
                f"{ended[0]}; asked {upstream.asked} times", "passed on unretried",
                ended == ["invalid_request"] and upstream.asked == 1,
            )
        )  # fmt: skip
    return rows


async def _calls(urls: Sequence[str], count: int) -> tuple[list[str], float]:
    """Return how calls of one client ended (`ok` or the error's code), and how long they took."""
    began = time.monotonic()
    ended = []
    async with AsyncMeshClient(urls) as client:
        for _ in range(count):
            try:
                await client.infer("paced", {"sleep_ms": np.array([SLEEP_MS], np.float32)})
            except MeshError as error:
                ended.append(error.code)
            else:
                ended.append("ok")
    return ended, time.monotonic() - began
