"""The process of one node, as whoever rehearses holds it: start, orders, signals, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec
import psutil

from meshnode.errors import PeerError
from meshnode.settings.fields import PREFIX
from meshnode.sim.processes.orders import REPORT_DECODER, line_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshnode.sim.processes.orders import AnyReport, Order, Plan

NODE_MODULE: Final = "meshnode.sim.processes.node"

_LOG_TAIL_BYTES: Final = 2000
_MAX_LINE_BYTES: Final = 65_536


class NodeProcess:
    """One boot of a node.

    Attributes:
        name: The node's.
        ended: Set when the process is gone.
    """

    def __init__(
        self,
        name: str,
        log: Path,
        heard: Callable[[AnyReport], None],
        gone: Callable[[NodeProcess], None],
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            name: The node's.
            log: Where its output goes, after what is there.
            heard: Told of each report.
            gone: Called when the process is gone, whatever ended it.
        """
        self.name = name
        self.ended = asyncio.Event()
        self._log = log
        self._heard = heard
        self._gone = gone
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<NodeProcess {self.name}, pid {self.pid}>"

    @property
    def pid(self) -> int:
        """Its process id; 0 before it was started."""
        return 0 if self._process is None else self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return None if self._process is None else self._process.returncode

    async def start(self, plan: Plan) -> None:
        """Start it.

        Raises:
            PeerError: if that fails.
        """
        # The user's settings are for a node of theirs. What libraries leave in the temporary folder
        # goes with the rehearsal's.
        environ = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        environ |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), plan.folder)
        try:
            with self._log.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    NODE_MODULE,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=output,
                    env=environ,
                    limit=_MAX_LINE_BYTES,
                    **_apart(),
                )
        except OSError as error:
            raise PeerError(f"the process of {self.name} cannot be started: {error}") from error
        self._send(line_of(plan))
        self._listening = asyncio.ensure_future(self._listen())

    def order(self, order: Order) -> None:
        """Tell it to do something; one that is gone does nothing."""
        self._send(line_of(order))

    def kill(self) -> None:
        """End it at once; one that is stopped too."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def suspend(self) -> None:
        """Let it stand still."""
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.pid).suspend()

    def resume(self) -> None:
        """Let it run on."""
        with contextlib.suppress(psutil.Error):
            psutil.Process(self.pid).resume()

    def how_it_ended(self) -> str:
        """Return by which signal it was ended, or with which code and last words."""
        code = self.code or 0
        if code < 0:
            return f"by {signal.Signals(-code).name}"
        return f"with code {code}: {self.last_words()}"

    def last_words(self) -> str:
        """Return the end of its log on one line."""
        with contextlib.suppress(OSError):
            text = self._log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
            return " | ".join(text.split("\n")).strip(" |") or "it said nothing"
        return "it left no log"

    async def close(self) -> None:
        """Kill it if it still runs, and wait until nothing of it is left."""
        self.kill()
        if self._listening is not None:
            await self._listening

    def _send(self, line: bytes) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._process.stdin.write(line)

    async def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            with contextlib.suppress(msgspec.MsgspecError):
                self._heard(REPORT_DECODER.decode(line))
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self.ended.set()
        self._gone(self)


def _apart() -> dict[str, Any]:
    """Return what starts a process in a group of its own: Ctrl-C reaches the rehearsal only.

    It is not a session of its own: the kernel wakes and ends a group whose parent in the same session
    has died, if it was stopped.
    """
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"process_group": 0}
