"""A coroutine that is cancelled closes its connection, so that the mesh stops its work."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

from meshnode import AsyncMeshClient

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from tests.unit.client.conftest import StandIn


async def test_cancelling_hangs_up(stand_in: Callable[..., StandIn]) -> None:
    asked, hung_up = threading.Event(), threading.Event()

    def behave(line: socket.socket, _request: bytes) -> None:
        asked.set()
        line.settimeout(10)
        if line.recv(1) == b"":
            hung_up.set()

    async with AsyncMeshClient(stand_in(behave).url) as client:
        task = asyncio.create_task(client.get("/x"))
        assert await asyncio.to_thread(asked.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(hung_up.wait, 10)


async def test_a_client_can_be_made_before_its_loop_runs_and_closed_unused() -> None:
    client = await asyncio.to_thread(AsyncMeshClient, "http://127.0.0.1:1")
    await client.close()
    assert repr(client) == "<AsyncMeshClient of http://127.0.0.1:1, closed>"
