"""Several addresses of one node: the next is tried when the one before is slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.errors import LinkLost
from meshnode.limits import MAX_RESOLVED_ADDRESSES
from meshnode.net import sockets
from meshnode.net.racing import staggered
from meshnode.types import Address
from tests.unit.net.conftest import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.unit.net.conftest import MeshMaker

STAGGER_S = 0.02


class Attempts:
    """What attempts did, by number."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.discarded: list[int] = []

    def make(self, number: int, after_s: float, error: Exception | None = None) -> Any:
        async def attempt() -> int:
            self.begun.append(number)
            try:
                await asyncio.sleep(after_s)
            except asyncio.CancelledError:
                self.cancelled.append(number)
                raise
            if error is not None:
                raise error
            return number

        return attempt

    async def first(self, *attempts: Callable[[], Awaitable[int]]) -> tuple[int, list[Any]]:
        """Take the first that succeeds, as a dial does."""
        outcomes: list[Any] = []
        race = staggered(attempts, STAGGER_S, (OSError,), self.discarded.append)
        async with contextlib.aclosing(race) as ended:
            async for number, outcome in ended:
                outcomes.append(outcome)
                if not isinstance(outcome, Exception):
                    return number, outcomes
        return -1, outcomes


async def test_an_attempt_that_succeeds_soon_is_the_only_one() -> None:
    attempts = Attempts()
    assert await attempts.first(attempts.make(0, 0.0), attempts.make(1, 0.0)) == (0, [0])
    assert attempts.begun == [0]


async def test_a_slow_one_is_overtaken_and_cancelled() -> None:
    attempts = Attempts()
    won, _ = await attempts.first(*(attempts.make(n, 9.0 if n < 2 else 0.0) for n in range(4)))
    assert won == 2
    assert attempts.begun == [0, 1, 2]
    assert attempts.cancelled == [0, 1]


async def test_a_failure_begins_the_next_at_once_and_all_failures_are_told() -> None:
    attempts = Attempts()
    errors = [OSError(str(number)) for number in range(3)]
    began = asyncio.get_running_loop().time()
    won, outcomes = await attempts.first(*(attempts.make(n, 0.0, errors[n]) for n in range(3)))
    assert (won, outcomes) == (-1, errors)
    assert asyncio.get_running_loop().time() - began < STAGGER_S
    assert await attempts.first() == (-1, [])


async def test_what_comes_unasked_is_discarded() -> None:
    attempts = Attempts()
    race = staggered(
        [attempts.make(0, 2 * STAGGER_S), attempts.make(1, 2 * STAGGER_S)],
        STAGGER_S,
        (OSError,),
        attempts.discarded.append,
    )
    async with contextlib.aclosing(race) as ended:
        assert await anext(ended) == (0, 0)
        await asyncio.sleep(3 * STAGGER_S)  # meanwhile the other comes too
    assert attempts.discarded == [1]


async def test_an_unforeseen_error_is_not_swallowed() -> None:
    attempts = Attempts()
    with pytest.raises(ValueError, match="a mistake"):
        await attempts.first(attempts.make(0, 0.0, ValueError("a mistake")), attempts.make(1, 9.0))


# Dialling


async def test_a_node_is_reached_soon_though_its_first_address_swallows_everything(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = mesh.build("one"), await mesh.start("two")
    swallowed: list[Any] = []
    connect_to = sockets._connect_to

    async def connect(family: int, where: tuple[Any, ...]) -> socket.socket:
        if where[0] == "192.0.2.1":
            swallowed.append(where)
            await asyncio.sleep(60)
        return await connect_to(family, where)

    monkeypatch.setattr(sockets, "_connect_to", connect)
    began = asyncio.get_running_loop().time()
    await one.hub.connect((Address("192.0.2.1", 1), two.address), two.id)
    assert asyncio.get_running_loop().time() - began < 2.0
    assert len(swallowed) == 1


async def test_all_addresses_of_a_name_are_tried_the_ip_versions_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = [(socket.AF_INET6, (f"2001:db8::{n}", 1, 0, 0)) for n in range(1, 9)]
    found += [(socket.AF_INET, (f"192.0.2.{n}", 1)) for n in range(1, 3)]
    tried: list[str] = []

    async def resolve(address: Address, kind: socket.SocketKind) -> Any:
        return found

    async def refuse(family: int, where: tuple[Any, ...]) -> socket.socket:
        tried.append(where[0])
        raise ConnectionRefusedError(where[0])

    monkeypatch.setattr(sockets, "_resolve", resolve)
    monkeypatch.setattr(sockets, "_connect_to", refuse)
    with pytest.raises(ConnectionRefusedError, match="2001:db8::1"):
        await sockets.connect(Address("node.example", 1), None)
    assert tried[:5] == [
        *("2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3"),
    ]
    assert len(tried) == MAX_RESOLVED_ADDRESSES


async def test_a_name_that_leads_nowhere_allowed_is_lost() -> None:
    with pytest.raises(LinkLost, match="may not lead"):
        await sockets.connect(LOOPBACK, frozenset())


async def test_every_address_is_named_that_did_not_answer(mesh: MeshMaker) -> None:
    one = mesh.build("one")
    closed = await mesh.start("two")
    await closed.hub.close()
    other = Address("127.0.0.1", 1)
    with pytest.raises(LinkLost, match=rf"^{closed.address}: .*refused.*; {other}: .*refused"):
        await one.hub.connect((closed.address, other), None)


async def test_a_dial_that_is_cancelled_as_it_succeeds_leaves_no_socket_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[socket.socket] = []
    make = sockets.new

    def record(family: int, kind: socket.SocketKind) -> socket.socket:
        made.append(make(family, kind))
        return made[-1]

    monkeypatch.setattr(sockets, "new", record)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        address = Address("127.0.0.1", server.getsockname()[1])
        for turns in range(
            30
        ):  # cancelled after each number of turns of the loop, until it is done by then
            dial = asyncio.ensure_future(sockets.connect(address, None))
            for _ in range(turns):
                await asyncio.sleep(0)
            if dial.done():
                dial.result().close()
                break
            dial.cancel()
            await asyncio.gather(dial, return_exceptions=True)
            assert all(each.fileno() == -1 for each in made), turns
        else:
            pytest.fail("it was never done")
