"""Telling systemd what the daemon does, over sockets of both kinds."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from meshnode.daemon.supervisor import notify

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.daemon.conftest import Daemons

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no systemd")


def test_without_a_supervisor_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1234")  # of a kind that we do not speak
    notify("READY=1")
    assert caplog.text == ""


def test_one_that_does_not_listen_is_told_of_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify("READY=1")
    assert "could not be told READY=1" in caplog.text


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_a_daemon_says_when_it_is_ready_and_when_it_stops(
    daemons: Daemons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "abstract" and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's")
    name = f"@meshnode-test-{os.getpid()}" if kind == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(name.replace("@", "\0"))
        supervisor.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        alpha = daemons.start("alpha")
        loop = asyncio.get_running_loop()
        assert await asyncio.wait_for(loop.sock_recv(supervisor, 100), 10) == b"READY=1"
        assert (await alpha.get("/mesh/v1/status"))["state"] == "running"
        alpha.signal()
        assert await asyncio.wait_for(loop.sock_recv(supervisor, 100), 10) == b"STOPPING=1"
        await alpha.end()
