"""Connections of strangers: few at a time, few of one source."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING

from meshnode.net import incoming
from meshnode.throttle import Throttle
from tests.unit.net.conftest import eventually

if TYPE_CHECKING:
    import pytest

    from tests.unit.net.conftest import MeshMaker, Node


async def open_from(host: str, to: Node) -> socket.socket:
    made = socket.socket()
    made.setblocking(False)
    made.bind((host, 0))
    await asyncio.get_running_loop().sock_connect(made, (to.address.host, to.address.port))
    return made


async def is_closed(connection: socket.socket) -> bool:
    try:
        async with asyncio.timeout(0.2):
            return await asyncio.get_running_loop().sock_recv(connection, 1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


async def test_a_source_that_opens_too_many_connections_is_closed_unheard_and_others_are_not(
    mesh: MeshMaker, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = await mesh.start("one"), mesh.build("two")
    one.hub.incoming._throttle = Throttle(burst=3, refill_s=60.0, max_sources=8)
    opened = [await open_from("127.0.0.9", one) for _ in range(5)]
    await eventually(lambda: one.hub.incoming.throttled == 2)
    assert [await is_closed(each) for each in opened] == [False] * 3 + [True] * 2
    await two.join(one)  # from 127.0.0.1
    assert one.hub.refused == 0
    assert "127.0.0.9 opens too many connections" in caplog.text
    for each in opened:
        each.close()


async def test_where_too_many_wait_the_source_with_most_of_them_makes_room(
    mesh: MeshMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "MAX_LINKS_UNAUTHENTICATED", 4)
    one = await mesh.start("one")
    patient = await open_from("127.0.0.8", one)
    await eventually(lambda: len(one.hub.incoming.connections) == 1)
    crowd = []
    for number in range(8):
        crowd.append(await open_from("127.0.0.9", one))
        refused = max(0, number - 2)
        await eventually(partial(lambda refused: one.hub.refused == refused, refused))
    assert not await is_closed(patient)
    assert [await is_closed(each) for each in crowd] == [True] * 5 + [False] * 3
    for each in [patient, *crowd]:
        each.close()


async def test_links_that_end_at_an_address_which_is_gone_are_parted_with(mesh: MeshMaker) -> None:
    one, two, _ = await mesh.pair()
    one.hub.leave_addresses({"192.0.2.1"})
    assert list(one.hub.peers()) == [two.id]
    one.hub.leave_addresses({"127.0.0.1"})
    assert list(one.hub.peers()) == []
    assert one.user.downs()[0].reason == "this device has another address now"
    await eventually(lambda: not list(two.hub.peers()))
