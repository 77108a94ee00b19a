"""Streams that lose what makes them after the k-th number: nothing short may ever look complete.

`numbers` is resumable, so another node goes on; `once_numbers` is not, so the client is told in the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import aiohttp

from bench.failover_fleet import Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from bench.failover_load import Gateway

RESUMABLE: Final = "numbers"
PLAIN: Final = "once_numbers"

COUNT: Final = 100
BROKEN_AFTER: Final = 20
"""Numbers that the client has when the fault comes: the k-th token."""

STREAMS: Final = 4
LIMIT_S: Final = 20.0

STALL_LIMIT_S: Final = 2.5
"""`STREAM_STALL_S`: silence of a stream that is none of its model's."""

CAUGHT_UP_S: Final = 2.0
"""Running a model anew up to what the client has: `BROKEN_AFTER` numbers of 20 ms, perhaps after another's turn."""


@dataclass
class Counted:
    """What a client saw of one stream.

    Attributes:
        model: That was asked.
        node: Who made it at first.
        numbers: That came.
        ended: How: `exact`, `error` (said in the stream), `broken off` (its body has no end), `short`, `wrong`.
        gap_s: The longest time without anything.
    """

    model: str
    node: str = ""
    numbers: list[int] = field(default_factory=list)
    ended: str = "hung"
    gap_s: float = 0.0
    has_some: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, gateway: Gateway) -> None:
        """Read it to its end."""
        last_s = time.monotonic()
        async with gateway.session() as session:
            try:
                async with self._asked(session) as answer:
                    self.node = _node_of(answer)
                    if answer.status != 200:
                        self.ended = f"HTTP {answer.status}"
                        return
                    event = ""
                    async for raw in answer.content:
                        word, _, value = raw.decode().rstrip("\n").partition(": ")
                        event = value if word == "event" else event if word else ""
                        if word == "data":  # not the signs of life between events
                            now_s = time.monotonic()
                            self.gap_s, last_s = max(self.gap_s, now_s - last_s), now_s
                        if word == "data" and self._take(event, value):
                            return
                    self.ended = "short, and looks complete"
            except (aiohttp.ClientError, TimeoutError):
                self.ended = "broken off"
            finally:
                self.gap_s = max(self.gap_s, time.monotonic() - last_s)

    def _asked(self, session: aiohttp.ClientSession) -> aiohttp.client._RequestContextManager:
        body = {"inputs": {"count": [COUNT]}}
        return session.post(f"/mesh/v1/models/{self.model}/stream", json=body)

    def _take(self, event: str, data: str) -> bool:
        """Take an event; return whether it is the last."""
        if event == "error":
            self.ended = "error"
            return True
        if event == "done":
            whole = self.numbers == list(range(COUNT))
            self.ended = "exact" if whole else "short, and looks complete"
            return True
        self.numbers += json.loads(data).get("outputs", {}).get("number", [])
        if self.numbers != list(range(len(self.numbers))):
            self.ended = "wrong"
            return True
        if len(self.numbers) >= BROKEN_AFTER:
            self.has_some.set()
        return False


def _node_of(answer: aiohttp.ClientResponse) -> str:
    route = answer.headers.get("Mesh-Route", "")
    return dict(pair.strip().partition("=")[::2] for pair in route.split(";")).get("node", "")


async def broken_streams(
    fault: str,
    gateways: Sequence[Gateway],
    begin: Callable[[str], Awaitable[None]],
    end: Callable[[], Awaitable[None]],
) -> list[Row]:
    """Break what makes streams after their k-th number; a row for either kind of model.

    Args:
        fault: What is broken, in words.
        gateways: To ask, in turn.
        begin: Breaks a node, by name: that of a stream which is under way.
        end: Mends it, before the next kind is played.
    """
    rows = []
    for model in (RESUMABLE, PLAIN):
        streams = [Counted(model) for _ in range(STREAMS)]
        tasks = [
            asyncio.create_task(each.run(gateways[number % len(gateways)]))
            for number, each in enumerate(streams)
        ]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LIMIT_S):
                await asyncio.gather(*(each.has_some.wait() for each in streams))
        under_way = [each for each, task in zip(streams, tasks, strict=True) if not task.done()]
        broken = next((each.node for each in under_way), "")
        hit = [each for each in under_way if each.node == broken]
        await begin(broken)
        _, left = await asyncio.wait(tasks, timeout=LIMIT_S)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await end()
        rows.append(_row(fault, model, hit, streams))
    return rows


def _row(fault: str, model: str, hit: Sequence[Counted], streams: Sequence[Counted]) -> Row:
    fine = {"exact"} if model == RESUMABLE else {"exact", "error"}
    errors = sum(each.ended not in fine for each in streams)
    gap_s = max((each.gap_s for each in hit), default=0.0)
    limit_s = STALL_LIMIT_S + (CAUGHT_UP_S if model == RESUMABLE else 0.5)
    reach = "goes on exactly" if model == RESUMABLE else "an error in the stream"
    endings = dict(Counter(each.ended for each in streams))
    return Row(
        f"{fault}, {'resumable' if model == RESUMABLE else 'not resumable'}",
        len(streams), errors, 0, 0, gap_s * 1000, f"{len(hit)} hit: {endings}",
        f"{reach}, silence <= {limit_s:g} s", bool(hit) and not errors and gap_s <= limit_s,
    )  # fmt: skip
