from __future__ import annotations

import asyncio

import pytest

from meshnode.errors import DeadlineExceeded, Saturated
from meshnode.models.slots import Slots


async def turn() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_slot_is_taken_at_once_and_a_full_one_waited_for_in_order() -> None:
    slots = Slots(1, 10)
    await slots.enter(1)
    order: list[str] = []

    async def wait(name: str) -> None:
        await slots.enter(1)
        order.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in ("first", "second")]
    await turn()
    assert repr(slots) == "<Slots running=1/1 waiting=2>"
    slots.leave()
    await turn()
    assert order == ["first"]
    slots.leave()
    await asyncio.gather(*tasks)
    slots.leave()
    assert (order, slots.running, slots.waiting) == (["first", "second"], 0, 0)


async def test_a_full_queue_refuses_at_once() -> None:
    slots = Slots(1, 0)
    await slots.enter(1)
    with pytest.raises(Saturated, match="1 requests run and 0 wait"):
        await slots.enter(1)


async def test_a_deadline_in_the_queue_frees_its_place() -> None:
    slots = Slots(1, 1)
    await slots.enter(1)
    with pytest.raises(DeadlineExceeded):
        await slots.enter(0)
    assert (slots.running, slots.waiting) == (1, 0)


async def test_who_is_cancelled_in_the_queue_leaves_it() -> None:
    slots = Slots(1, 1)
    await slots.enter(1)
    task = asyncio.create_task(slots.enter(1))
    await turn()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots.waiting == 0


async def test_who_is_cancelled_just_after_it_was_granted_passes_the_slot_on() -> None:
    slots = Slots(1, 2)
    await slots.enter(1)
    unlucky = asyncio.create_task(slots.enter(1))
    lucky = asyncio.create_task(slots.enter(1))
    await turn()
    slots.leave()
    unlucky.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unlucky
    await lucky
    assert (slots.running, slots.waiting) == (1, 0)


async def test_a_slot_is_not_given_to_one_that_has_just_given_up() -> None:
    """The deadline and the free slot fall into the same turn of the loop."""
    slots = Slots(1, 2)
    await slots.enter(1)
    late = asyncio.create_task(slots.enter(1))
    patient = asyncio.create_task(slots.enter(1))
    await turn()
    late.cancel()
    slots.leave()
    with pytest.raises(asyncio.CancelledError):
        await late
    await patient
    assert (slots.running, slots.waiting) == (1, 0)


async def test_drained_waits_for_the_last_one() -> None:
    slots = Slots(2, 2)
    await slots.drained()
    await slots.enter(1)
    await slots.enter(1)
    waiters = [asyncio.create_task(slots.drained()) for _ in range(2)]
    slots.leave()
    await turn()
    assert not any(task.done() for task in waiters)
    slots.leave()
    await asyncio.gather(*waiters)


def test_a_deadline_that_comes_after_the_slot_changes_nothing() -> None:
    from meshnode.models.slots import _expire

    loop = asyncio.new_event_loop()
    future: asyncio.Future[None] = loop.create_future()
    future.set_result(None)
    _expire(future)
    assert future.result() is None
    loop.close()
