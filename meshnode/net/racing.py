"""Several ways to one goal, the next begun when the one before is slow ("happy eyeballs", RFC 8305).

A node has several addresses and a name stands for several: IPv4 and IPv6, the local network and a
VPN. One of them may swallow what is sent there, so waiting for its time-out before the next is tried
makes a dial slow; trying all at once makes every dial cost as much as there are addresses.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

T = TypeVar("T")


async def staggered(
    attempts: Sequence[Callable[[], Awaitable[T]]],
    stagger_s: float,
    failures: tuple[type[Exception], ...],
    discard: Callable[[T], None],
) -> AsyncGenerator[tuple[int, T | Exception]]:
    """Run attempts in order, each begun when the one before has ended or is slow; yield as they end.

    Whoever has what it wanted closes the generator: what still runs is cancelled then, and what
    has come unasked is discarded. No attempt is begun while an outcome is being looked at.

    Args:
        attempts: What to try, the best first.
        stagger_s: How long an attempt may take before the next is begun beside it.
        failures: Exceptions that are an outcome; others end everything.
        discard: Undoes what an attempt made.

    Yields:
        The number of the attempt, and what it returned or raised.
    """
    outcomes: asyncio.Queue[tuple[int, T | Exception]] = asyncio.Queue()

    async def run(number: int) -> None:
        try:
            outcome: T | Exception = await attempts[number]()
        except Exception as error:  # noqa: BLE001 - raised again below, unless it is an outcome
            outcome = error
        outcomes.put_nowait((number, outcome))

    running: list[asyncio.Task[None]] = []
    ended = 0
    try:
        while ended < len(attempts):
            if len(running) < len(attempts):
                running.append(asyncio.ensure_future(run(len(running))))
            wait_s = stagger_s if len(running) < len(attempts) else None
            try:
                async with asyncio.timeout(wait_s):
                    number, outcome = await outcomes.get()
            except TimeoutError:
                continue
            if isinstance(outcome, Exception) and not isinstance(outcome, failures):
                raise outcome
            ended += 1
            yield number, outcome
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        while not outcomes.empty():
            _, left = outcomes.get_nowait()
            if not isinstance(left, Exception):
                discard(left)
