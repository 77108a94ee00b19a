"""Ending a daemon of this machine: asked over its control channel, or, when it is deaf, killed.

Whether it runs is told by the lock of its data folder, and it is gone when that is free.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING

from meshnode.client.mesh import MeshClient
from meshnode.errors import ConfigError, DeadlineExceeded, MeshError, PeerError
from meshnode.folderlock import Holder, holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POLL_S = 0.05
"""How often the lock is looked at."""

ANSWER_S = 10.0
"""How long a daemon may take to say that it will end; it has nothing to look up."""

GRACE_S = 2.0
"""How long a daemon that is to end at once may take to say goodbye to its peers."""

_KILLED_S = 10.0  # the kernel frees a killed process's locks at once, a core dump may take a while


def ask_to_end(
    data_dir: Path,
    *,
    timeout_s: float,
    leave: bool = False,
    only_ready: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Holder | None:
    """Ask the daemon of a data folder to end, and wait until it has.

    Args:
        data_dir: The folder.
        timeout_s: How long to wait for that, in seconds.
        leave: Whether it shall forget its mesh as well.
        only_ready: Whether one that is still starting shall be left alone: it says no goodbye.
        say: Told what is waited for.

    Returns:
        Who it was, or None if no daemon ran.

    Raises:
        ConfigError: if it belongs to another user.
        PeerError: if it does not answer, or is still starting where only a ready one is meant; the
            message names it and says what to do.
        DeadlineExceeded: if it has not ended in time; it goes on ending.
    """
    running = holder(data_dir)
    if running is None:
        return None
    _ask(data_dir, running, leave=leave, only_ready=only_ready or leave)
    say(f"stopping {running}: it says goodbye and finishes what runs ...")
    if not _is_gone(data_dir, running, timeout_s):
        raise DeadlineExceeded(
            f"{running} still runs after {timeout_s:g} s: it finishes requests; wait for it with "
            "--timeout, or end it at once with `meshnode stop --now`"
        )
    return running


def end_at_once(data_dir: Path) -> Holder | None:
    """End the daemon of a data folder within seconds, whether or not it answers.

    It is asked first, so that its peers hear of it; requests that run are cut off.

    Returns:
        Who it was, or None if no daemon ran.

    Raises:
        ConfigError: if it belongs to another user.
        PeerError: if it cannot be ended.
    """
    running = holder(data_dir)
    if running is None:
        return None
    try:
        MeshClient.local(data_dir).post("/mesh/v1/shutdown", {}, timeout_s=GRACE_S)
    except MeshError:
        pass  # it is killed anyway
    else:
        if _is_gone(data_dir, running, GRACE_S):
            return running
    if running.pid is None or holder(data_dir) != running:
        raise PeerError(
            f"the process that runs on {data_dir} is not known for sure; try again in a moment"
        )
    _signal(running.pid, signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    if not _is_gone(data_dir, running, _KILLED_S):
        raise PeerError(
            f"{running} cannot be killed: it waits for its disk or a device; restart it"
        )
    return running


def _ask(data_dir: Path, running: Holder, *, leave: bool, only_ready: bool) -> None:
    try:
        MeshClient.local(data_dir).post("/mesh/v1/shutdown", {"leave": leave}, timeout_s=ANSWER_S)
    except ConfigError:
        # It has no control channel yet (it is still joining) or no more. A signal does as well,
        # unless it shall also forget, or say goodbye.
        if only_ready or running.pid is None or sys.platform == "win32":
            raise PeerError(
                f"{running} is still starting, or ending; try again in a moment"
            ) from None
        if holder(data_dir) == running:
            _signal(running.pid, signal.SIGTERM)
    except (DeadlineExceeded, PeerError):
        raise PeerError(
            f"{running} runs on {data_dir} and does not answer; end it at once with "
            "`meshnode stop --now`"
        ) from None


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise ConfigError(
            f"the meshnode daemon (pid {pid}) belongs to another user; ask them, or use sudo"
        ) from None


def _is_gone(data_dir: Path, running: Holder, limit_s: float) -> bool:
    """Wait until nobody, or somebody else, holds the lock."""
    deadline = time.monotonic() + limit_s
    while True:
        current = holder(data_dir)
        if current is None or (current.pid is not None and current != running):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
