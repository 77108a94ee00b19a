"""Places for reading messages, in a loop's own time."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.errors import InvalidRequest, Saturated
from meshnode.gateway.grpc_reading import Places


async def _hold(places: Places, caller: str, held: asyncio.Event | None = None) -> None:
    async with places.place(caller):
        if held is not None:
            held.set()
        await asyncio.Event().wait()


async def test_a_message_that_does_not_come_is_its_callers_fault() -> None:
    with pytest.raises(InvalidRequest, match="did not come"):
        await _hold(Places(1, 1, 0.01), "ann")


@pytest.mark.parametrize("second", ["ann", "ben"])
async def test_who_had_no_place_is_not_told_that_their_message_did_not_come(second: str) -> None:
    places, held = Places(1, 1, 0.05), asyncio.Event()
    first = asyncio.ensure_future(_hold(places, "ann", held))
    await held.wait()
    places._timeout_s = 0.01  # of who comes from now on
    with pytest.raises(Saturated, match="no place"):
        await _hold(places, second)
    with pytest.raises(InvalidRequest):
        await first
    assert repr(places) == "<Places: 0 callers>"


async def test_who_waits_for_a_place_has_all_the_time_for_the_message_itself() -> None:
    places = Places(1, 1, 0.2)
    async with places.place("ann"):
        waiting = asyncio.ensure_future(_read(places, 0.15))
        await asyncio.sleep(0.12)
    await waiting


async def _read(places: Places, takes_s: float) -> None:
    async with places.place("ben"):
        await asyncio.sleep(takes_s)


async def test_a_caller_holds_only_its_share_and_does_not_queue_before_others() -> None:
    places = Places(4, 2, 5.0)
    many = [asyncio.ensure_future(_hold(places, "ann")) for _ in range(50)]
    await asyncio.sleep(0)
    async with asyncio.timeout(0.1), places.place("ben"), places.place("ben"):
        pass
    for each in many:
        each.cancel()
    await asyncio.gather(*many, return_exceptions=True)
    assert repr(places) == "<Places: 0 callers>"
