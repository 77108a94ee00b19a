"""Whole daemons in this process, on loopback."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshnode.client.mesh import MeshClient
from meshnode.daemon import process
from meshnode.daemon.process import Daemon
from meshnode.datafolder import DataFolder
from meshnode.errors import MeshError
from meshnode.options import JoinOptions
from meshnode.types import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT_S = 15.0


async def eventually(condition: Callable[[], Any], what: str = "it happens") -> Any:
    """Wait until a condition holds and return its value; fail when it never does."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not (value := condition()):
        if asyncio.get_running_loop().time() > deadline:
            pytest.fail(f"not within {LIMIT_S} s: {what}")
        await asyncio.sleep(0.005)
    return value


class Running:
    """A daemon in this process."""

    def __init__(self, options: JoinOptions) -> None:
        self.options = options
        self.folder = DataFolder(Path(options.data_dir))
        self.daemon = Daemon(options, self.folder)
        self.task = asyncio.ensure_future(self.daemon.run())
        self.client = MeshClient.local(Path(options.data_dir))

    async def get(self, path: str) -> Any:
        return await asyncio.to_thread(self.client.get, path)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        return await asyncio.to_thread(self.client.post, path, body)

    async def ready(self) -> Running:
        deadline = asyncio.get_running_loop().time() + LIMIT_S
        while asyncio.get_running_loop().time() < deadline:
            if self.task.done():
                pytest.fail(f"the daemon ended: {self.task}")
            try:
                await self.get("/mesh/v1/status")
            except MeshError:
                await asyncio.sleep(0.01)
            else:
                return self
        pytest.fail("the daemon does not answer")

    async def invite(self) -> str:
        return str((await self.post("/mesh/v1/invites", {"ttl_s": 600}))["invite"])

    async def sees(self, count: int) -> None:
        async def alive() -> int:
            nodes = await self.get("/mesh/v1/nodes")
            return sum(node["state"] == "alive" for node in nodes)

        deadline = asyncio.get_running_loop().time() + LIMIT_S
        while await alive() != count:
            assert asyncio.get_running_loop().time() < deadline, f"it does not see {count}"
            await asyncio.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.daemon._signalled(number)

    async def stop(self) -> int:
        """Leave cleanly and return the exit code."""
        self.signal()
        code = await asyncio.wait_for(self.task, LIMIT_S)
        self.folder.close()
        return code

    async def end(self) -> int:
        """Wait until it ends by itself."""
        try:
            return await asyncio.wait_for(self.task, LIMIT_S)
        finally:
            self.folder.close()

    async def kill(self) -> None:
        """End it without a goodbye, as far as that goes within a process."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.folder.close()


class Daemons:
    """Starts daemons and ends every one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[Running] = []

    def start(self, name: str, invite: str | None = None, **changes: Any) -> Running:
        options: dict[str, Any] = {
            "invite": invite,
            "name": name,
            "region": "default",
            "zone": "",
            "labels": (),
            "listen": Address("127.0.0.1", 0),
            "http": None,
            "data_dir": str(self.folder / name),
            "models": None,
            "new": invite is None and not (self.folder / name).exists(),
            "mdns": False,
            **changes,
        }
        running = Running(JoinOptions(**options))
        self.all.append(running)
        return running


@pytest.fixture
async def daemons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemons]:
    monkeypatch.setattr(process, "GOODBYE_S", 0.05)
    monkeypatch.setattr(process, "DRAIN_LIMIT_S", 2.0)
    started = Daemons(tmp_path)
    yield started
    for running in started.all:
        await running.kill()
