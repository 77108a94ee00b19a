"""Whose picture is decoded next, and how many wait."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from meshnode.errors import DeadlineExceeded, Saturated
from meshnode.gateway.picture_turns import PictureTurns
from meshnode.limits import (
    MAX_CALLER_WAITING_PICTURES,
    MAX_WAITING_PICTURES,
    SMALL_PICTURE_PIXELS,
)

LARGE = SMALL_PICTURE_PIXELS + 1


async def held(turns: PictureTurns) -> tuple[threading.Event, asyncio.Task[str]]:
    """Begin to decode a large picture that takes until the event is set."""
    gate = threading.Event()

    def decode() -> str:
        assert gate.wait(10)
        return "held"

    task = asyncio.create_task(turns.run("held", LARGE, decode))
    await asyncio.sleep(0)
    return gate, task


async def test_a_small_picture_never_waits_for_a_large_one() -> None:
    turns = PictureTurns()
    gate, task = await held(turns)
    assert await turns.run("b", SMALL_PICTURE_PIXELS, lambda: "small") == "small"
    assert not task.done()
    gate.set()
    assert await task == "held"


async def test_callers_take_turns() -> None:
    turns, order = PictureTurns(), list[str]()
    gate, task = await held(turns)
    others = [
        asyncio.create_task(turns.run(name[0], LARGE, partial(order.append, name)))
        for name in ("a1", "a2", "a3", "b1", "c1")
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(task, *others)
    assert order == ["a1", "b1", "c1", "a2", "a3"]


async def test_too_many_that_wait_are_refused_and_soon_taken_again() -> None:
    turns = PictureTurns()
    gate, task = await held(turns)
    waiting = [
        asyncio.create_task(turns.run("a", LARGE, int)) for _ in range(MAX_CALLER_WAITING_PICTURES)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Saturated, match="wait to be decoded"):
        await turns.run("a", LARGE, int)
    waiting += [
        asyncio.create_task(turns.run(f"b{number}", LARGE, int))
        for number in range(MAX_WAITING_PICTURES - MAX_CALLER_WAITING_PICTURES)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Saturated):
        await turns.run("c", LARGE, int)
    gate.set()
    await asyncio.gather(task, *waiting)
    assert await turns.run("a", LARGE, lambda: 7) == 7


async def test_who_waits_too_long_is_told_and_who_hangs_up_leaves_the_queue() -> None:
    turns = PictureTurns(wait_s=0.01)
    gate, task = await held(turns)
    with pytest.raises(DeadlineExceeded, match="not decoded in"):
        await turns.run("a", LARGE, int)
    gone = asyncio.create_task(turns.run("a", LARGE, int))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert "0 wait" in repr(turns)
    gate.set()
    await task
    assert await turns.run("a", LARGE, lambda: 1) == 1


async def test_a_turn_that_comes_as_its_caller_leaves_goes_to_the_next() -> None:
    turns = PictureTurns()
    gate, task = await held(turns)
    gone = asyncio.create_task(turns.run("a", LARGE, lambda: "a"))
    after = asyncio.create_task(turns.run("b", LARGE, lambda: "b"))
    await asyncio.sleep(0)
    task.add_done_callback(lambda _task: gone.cancel())  # its turn was given just before
    gate.set()
    await task
    assert await after == "b"
    await asyncio.gather(gone, return_exceptions=True)
